from __future__ import annotations

import pytest
import torch

from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.dinov2_windowed import resize_positions
from rtdetr_tool.models.backbones.windowed_vit import check_size, join_windows, split_windows
from tests.models.rfdetr_parts import tiny_backbone


def images(height=48, width=64):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_windows_are_cut_in_reading_order_and_put_back():
    numbers = torch.arange(2 * 4 * 6).reshape(2, 24, 1).float()
    windows = split_windows(numbers, 4, 6, 2)
    assert windows[:, :, 0].tolist()[:4] == [
        [0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]
    ]  # fmt: skip
    assert windows[4, 0, 0] == 24  # the second image
    assert torch.equal(join_windows(windows, 4, 6, 2), numbers)


def test_blocks_numbered_like_a_tap_attend_to_the_whole_image():
    merged = [block.merge for block in tiny_backbone(depth=12, out_indices=(3, 6, 9, 12)).blocks]
    assert [index for index, merge in enumerate(merged) if merge == 2] == [3, 6, 9]
    legacy = [block.merge for block in tiny_backbone(depth=12, out_indices=(2, 5, 8, 11), num_windows=4).blocks]
    assert [index for index, merge in enumerate(legacy) if merge == 4] == [2, 5, 8, 11]


@pytest.mark.parametrize(("out_indices", "spreads"), [((1,), False), ((1, 2), True)])
def test_a_window_hears_of_others_only_in_a_global_block(out_indices, spreads):
    vit = tiny_backbone(out_indices=out_indices).eval()  # block 0 is windowed, block 1 is global
    inputs = images(48, 48)
    changed = inputs.clone()
    changed[:, :, :8, :8] = 0.0  # one patch of the first window
    with torch.no_grad():
        difference = (vit(inputs)[-1] - vit(changed)[-1]).abs().amax((0, 1)) > 1e-7
    assert difference[:3, :3].any()
    assert difference[3:, 3:].any().item() == spreads


def test_the_maps_have_the_size_of_the_patch_grid():
    vit = tiny_backbone(out_indices=(0, 2, 4))
    assert [tuple(level.shape) for level in vit(images())] == [(2, 16, 6, 8)] * 3
    assert vit.channels == (16, 16, 16) and vit.strides == (8, 8, 8) and vit.size_multiple == 16


def test_images_are_normalized_inside():
    vit = tiny_backbone().eval()
    gray = torch.tensor(vit.normalization.mean.flatten().tolist())[:, None, None].expand(1, 3, 48, 48)
    with torch.no_grad():
        embedded = vit._embed(gray, 6, 6)
        black = vit.patch_embed(torch.zeros(1, 3, 48, 48)).flatten(2).transpose(1, 2) + vit.position[:, 1:]
    torch.testing.assert_close(embedded[:, 1:], split_windows(black, 6, 6, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(6, 8), (4, 4), (9, 5)])
def test_positions_are_resized_as_torch_resizes_images(size):
    position = torch.randn(1, 37, 5, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(position, *size)
    grid = position[:, 1:].reshape(1, 6, 6, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(resized[:, 1:], expected.flatten(2).transpose(1, 2), atol=2e-5, rtol=0)
    assert torch.equal(resized[:, 0], position[:, 0])


def test_drop_path_rises_linearly_and_acts_in_training_only():
    vit = tiny_backbone(drop_path=0.9)
    assert [round(block.drop_path.drop_prob, 4) for block in vit.blocks] == [0.0, 0.3, 0.6, 0.9]
    inputs = images()
    torch.manual_seed(0)
    first, second = vit.train()(inputs)[-1], vit(inputs)[-1]
    assert not torch.equal(first, second)
    assert torch.equal(vit.eval()(inputs)[-1], vit(inputs)[-1])


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        vit = tiny_backbone(activation_checkpoint=recompute).train()
        vit(images())[-1].square().sum().backward()
        gradients.append(vit.blocks[0].attention.query.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("out_indices", [(), (3, 1), (2, 2), (5,), (-1,)])
def test_taps_that_cannot_be_are_refused(out_indices):
    with pytest.raises(UserError, match="expected 0 to 4, ascending"):
        tiny_backbone(out_indices=out_indices)


def test_sizes_are_checked():
    check_size(64, 96, 32)
    with pytest.raises(UserError, match=r"70 x 96 .* multiples of 32 .*nearest: 64 or 96 x 96"):
        check_size(70, 96, 32)
    with pytest.raises(UserError, match="nearest: 32 x 32"):
        check_size(20, 32, 32)
