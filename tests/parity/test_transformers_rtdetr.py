"""Our RT-DETR against transformers' with the same weights: outputs, losses, gradients, one optimizer step.

transformers orders the position embedding by rows since version 5 (`pe_order="rows"`), the official code and TAO by
columns (the default). On square maps, both are the same.
"""

from __future__ import annotations

import pytest
import torch
from transformers.models.rt_detr import modeling_rt_detr

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.transformers_names import (
    from_transformers,
    is_transformers_rtdetr,
    to_transformers,
)
from rtdetr_tool.models.denoising import build_denoising

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["basic", "bottleneck"])
def pair(request, build_pair):
    return build_pair(request.param)


def _outputs(pair, images):
    with torch.no_grad():
        reference, ours = pair.theirs(images), pair.ours(images)
    return (ours.logits, ours.boxes), (reference.logits, reference.pred_boxes)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_rename_table_covers_every_tensor_in_both_directions(build_pair, layer_type, frozen):
    pair = build_pair(layer_type, frozen=frozen, num_denoising=10)
    reference = pair.theirs.state_dict()
    ours = from_transformers(reference)
    assert is_transformers_rtdetr(reference) and not is_transformers_rtdetr(ours)
    assert set(ours) == set(pair.ours.state_dict())
    back = to_transformers(ours)
    assert set(back) == set(reference)
    assert all(torch.equal(back[name], reference[name]) for name in reference)


def test_files_written_by_transformers_convert_too(build_pair, tmp_path):
    from safetensors.torch import load_file

    pair = build_pair("basic", num_denoising=10)
    pair.theirs.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert any(".encoder.encoder." in name for name in written)  # the names before version 5
    ours = from_transformers(written)
    assert set(ours) == set(pair.ours.state_dict())
    assert all(torch.equal(ours[name], tensor) for name, tensor in pair.ours.state_dict().items())


def test_a_name_without_counterpart_is_an_error():
    with pytest.raises(CheckpointError, match=r"model\.decoder\.mask_head\.weight"):
        from_transformers({"model.decoder.mask_head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"projection of model\.decoder\.layers\.0\.self_attn"):
        from_transformers({"model.decoder.layers.0.self_attn.q_proj.weight": torch.zeros(1)})


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (64, 128), (160, 96)])
def test_logits_and_boxes_are_equal(pair, query_difference, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    difference = query_difference(*_outputs(pair.eval(), images))
    print(f"largest difference of outputs: {difference:.1e}")  # shown by pytest -rP
    assert difference < TOLERANCE


def test_the_official_position_order_is_another_one_on_rectangles(build_pair, query_difference, monkeypatch):
    pair = build_pair("basic").eval()
    images = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    pair.ours.encoder.pe_order = "columns"
    assert query_difference(*_outputs(pair, images)) > 10 * TOLERANCE

    def official(self, width, height, device, dtype):
        """The embedding of lyuwenyu/RT-DETR: the outer loop is over x."""
        x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
        frequency = self.temperature ** -(torch.arange(self.embed_dim // 4) / (self.embed_dim // 4))
        angles = [axis.reshape(-1, 1) * frequency for axis in (x, y)]
        return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)[None].to(dtype)

    monkeypatch.setattr(modeling_rt_detr.RTDetrSinePositionEmbedding, "forward", official)
    assert query_difference(*_outputs(pair, images)) < TOLERANCE


def test_a_fused_copy_is_equal_too(pair, query_difference, images):
    pair.eval()
    with torch.no_grad():
        reference, ours = pair.theirs(images), pair.ours.deploy()(images)
    assert query_difference((ours.logits, ours.boxes), (reference.logits, reference.pred_boxes)) < TOLERANCE


@pytest.mark.parametrize("method", ["default", "discrete"])
@pytest.mark.parametrize("size", [(64, 64), (64, 128), (160, 96)])
def test_version_2_is_the_same_network(build_pair, query_difference, method, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(7))
    pair = build_pair("basic", version=2, method=method).eval()
    difference = query_difference(*_outputs(pair, images))
    print(f"largest difference of outputs, version 2: {difference:.1e}")
    assert difference < TOLERANCE


def test_denoising_queries_are_equal_when_drawn_from_the_same_seed(targets, as_labels):
    embed = torch.nn.Embedding(6, 8)
    torch.manual_seed(3)
    classes, boxes, mask, meta = modeling_rt_detr.get_contrastive_denoising_training_group(
        as_labels(targets), 5, 20, embed, num_denoising_queries=17
    )
    torch.manual_seed(3)
    ours = build_denoising(targets, 5, 20, 17)
    torch.testing.assert_close(ours.boxes, boxes, atol=1e-5, rtol=1e-5)
    assert torch.equal(embed(ours.labels), classes)
    assert torch.equal(ours.attention_mask, mask == -torch.inf)
    assert ours.groups == meta["dn_num_group"] == 4
    for index, expected in zip(ours.positive_index, meta["dn_positive_idx"], strict=True):
        assert torch.equal(index, expected)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("num_denoising", [0, 12])
@pytest.mark.parametrize("frozen", [True, False])
def test_loss_terms_gradients_and_one_optimizer_step_are_equal(
    build_pair, criterion, images, targets, as_labels, losses_of_theirs, num_denoising, frozen, layers
):
    pair = build_pair("basic", frozen=frozen, num_denoising=num_denoising, decoder_layers=layers).train()
    torch.manual_seed(3)
    if layers == 1:
        output = pair.theirs(images, labels=as_labels(targets))
        loss_of_theirs, terms_of_theirs = output.loss, output.loss_dict
    else:
        loss_of_theirs, terms_of_theirs = losses_of_theirs(pair.theirs, images, as_labels(targets))
    torch.manual_seed(3)
    ours = criterion(pair.ours(images, targets), targets)

    terms = {name: loss for name, loss in ours.items() if name != "loss"}
    assert set(terms) == set(terms_of_theirs)
    assert any("_dn_0" in name for name in terms) == (num_denoising > 0)
    for name, loss in terms.items():
        assert loss.item() == pytest.approx(terms_of_theirs[name].item(), abs=TOLERANCE), name
    assert ours["loss"].item() == pytest.approx(loss_of_theirs.item(), rel=1e-5)
    worst = max(abs(loss.item() - terms_of_theirs[name].item()) for name, loss in terms.items())
    print(f"largest difference of loss terms: {worst:.1e}")

    before = {name: tensor.clone() for name, tensor in pair.ours.state_dict().items()}
    for model, loss in ((pair.theirs, loss_of_theirs), (pair.ours, ours["loss"])):
        # eps above rounding noise, because Adam would amplify gradients that are only rounding, such as of key biases
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, eps=1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    expected = from_transformers(pair.theirs.state_dict())
    after = pair.ours.state_dict()
    moved, apart = 0, 0.0
    for name, tensor in expected.items():
        # fixed norms round once and transformers twice, which affects the variances of later norms
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=5e-5, msg=lambda m, n=name: f"{n}: {m}")
        apart = max(apart, float((after[name] - tensor).abs().max()))
        moved += bool((after[name] - before[name]).abs().max() > 1e-5)
    print(f"largest difference of weights after a step: {apart:.1e}")
    assert moved > 0.6 * len(list(pair.ours.parameters()))


def test_the_validation_loss_is_that_of_the_last_layer(pair, criterion, images, targets, as_labels):
    pair.eval()
    with torch.no_grad():
        reference = pair.theirs(images, labels=as_labels(targets)).loss_dict
        ours = criterion(pair.ours(images), targets)
    assert set(ours) == {"loss", "loss_vfl", "loss_bbox", "loss_giou"}
    for name in ("loss_vfl", "loss_bbox", "loss_giou"):
        assert ours[name].item() == pytest.approx(reference[name].item(), abs=TOLERANCE)
