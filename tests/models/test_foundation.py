"""The frozen foundation model next to the backbone, with a tiny RADIO with random weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from rtdetr_tool.catalog import FOUNDATION_MODELS
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.foundation import (
    CLIP_MEAN,
    CLIP_STD,
    FoundationRTDETR,
    FrozenRadio,
    ImageQueryDecoder,
    with_image_query,
)
from rtdetr_tool.families.rtdetr.model.radio import RadioViT, radio_weights
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.denoising import denoising_attention_mask
from rtdetr_tool.models.hybrid_encoder import HybridEncoder

CHANNELS = (8, 16, 24, 32)
RADIO_WIDTH = 24


def tiny_radio(seed: int = 3) -> RadioViT:
    torch.manual_seed(seed)
    return RadioViT(RADIO_WIDTH, depth=2, num_heads=4, grid=10)


@pytest.fixture
def weights():
    return tiny_radio().state_dict()


@pytest.fixture
def radio(weights) -> FrozenRadio:
    frozen = FrozenRadio(tiny_radio(seed=4))
    frozen.load(weights, "test.pth")
    return frozen


@pytest.fixture
def detector(radio, disturbed) -> FoundationRTDETR:
    torch.manual_seed(0)
    backbone = ResNetBackbone("resnet18d", (1, 2, 3), channels=CHANNELS, layers=(1, 1, 1, 1), stem_width=8)
    encoder = HybridEncoder(
        (*backbone.channels, radio.width), 16, num_heads=4, dim_feedforward=24, num_outputs=len(backbone.channels)
    )
    decoder = RTDETRDecoder(
        [16] * 3, 3, 16, num_queries=9, num_layers=3, num_heads=4, dim_feedforward=24, num_denoising=6
    )
    return disturbed(FoundationRTDETR(backbone, encoder, decoder, radio))


# The transformer


@pytest.mark.parametrize("row", FOUNDATION_MODELS.values(), ids=list(FOUNDATION_MODELS))
def test_the_catalog_counts_the_parameters(row):
    with torch.device("meta"):
        vit = RadioViT(row.width, row.depth, row.num_heads)
    assert sum(parameter.numel() for parameter in vit.parameters()) == row.parameters
    assert vit.summary_dim == 3 * row.width
    shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    assert shapes["patch_generator.pos_embed"] == (1, 128 * 128, row.width)
    assert shapes["patch_generator.cls_token.token"] == (8, row.width)
    assert shapes["patch_generator.embedder.weight"] == (row.width, 3 * 16 * 16)
    assert shapes[f"blocks.{row.depth - 1}.mlp.fc1.weight"] == (4 * row.width, row.width)


def test_summary_and_places_are_the_tokens_they_are_named_after():
    vit = tiny_radio()
    vit.blocks = torch.nn.Identity()
    images = torch.randn(2, 3, 32, 48)
    actual = vit(images)
    token = vit.patch_generator.cls_token["token"]
    torch.testing.assert_close(actual.summary, token[:3].flatten().expand(2, -1))
    assert actual.spatial.shape == (2, RADIO_WIDTH, 2, 3)
    patch = images[1, :, 16:32, 32:48].reshape(-1)
    expected = vit.patch_generator.embedder(patch) + vit.patch_generator.positions(2, 3)[0, 5]
    torch.testing.assert_close(actual.spatial[1, :, 1, 2], expected, atol=1e-5, rtol=1e-5)


def test_positions_of_a_smaller_image_keep_their_aspect_ratio():
    """With a table of row and column numbers, a wide image spans all columns, and rows with the same spacing."""
    vit = tiny_radio()
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    with torch.no_grad():
        vit.patch_generator.pos_embed[0, :, 0] = rows.flatten()
        vit.patch_generator.pos_embed[0, :, 1] = columns.flatten()
        table = vit.patch_generator.positions(2, 4).view(2, 4, RADIO_WIDTH)
        assert torch.equal(vit.patch_generator.positions(10, 10), vit.patch_generator.pos_embed)
    torch.testing.assert_close(table[0, :, 1], torch.tensor([0.0, 3.0, 6.0, 9.0]))
    torch.testing.assert_close(table[:, 0, 0], torch.tensor([0.0, 3.0]))


# Its weights


@pytest.mark.parametrize("prefix", ["", "radio_model.model.", "base_model.", "frozen_radio.radio.radio.model."])
def test_weights_are_found_under_every_wrapper_and_heads_are_skipped(weights, prefix):
    stored = {f"{prefix}{name}": tensor.half() for name, tensor in weights.items()}
    stored |= {"_heads.clip.weight": torch.zeros(2), "input_conditioner.norm_mean": torch.zeros(3)}
    frozen = FrozenRadio(tiny_radio(seed=4))
    frozen.load(stored, "half.pth")
    assert frozen.loaded_from == "half.pth"
    for name, tensor in frozen.vit.state_dict().items():
        torch.testing.assert_close(tensor, weights[name].half().float())


def test_files_that_do_not_fit_are_named_with_what_is_needed(weights):
    with pytest.raises(CheckpointError, match=r"resnet.pth is not a RADIO model.*C-RADIOv2"):
        radio_weights({"conv1.weight": torch.zeros(1)}, "resnet.pth")
    with pytest.raises(CheckpointError, match=r"v3.pth is RADIO version 3"):
        radio_weights({**weights, "blocks.0.ls1.grandma": torch.zeros(1)}, "v3.pth")
    with pytest.raises(CheckpointError, match=r"big.pth does not match this foundation model"):
        FrozenRadio(RadioViT(RADIO_WIDTH, depth=3, num_heads=4, grid=10)).load(weights, "big.pth")


def test_without_weights_it_refuses_to_run():
    with pytest.raises(CheckpointError, match=r"Set model\.frozen_fm\.checkpoint to their file"):
        FrozenRadio(tiny_radio())(torch.rand(1, 3, 64, 64))


def test_made_on_the_meta_device_it_gets_memory_with_its_weights(weights):
    with torch.device("meta"):
        vit = RadioViT(RADIO_WIDTH, depth=2, num_heads=4, grid=10)
    frozen = FrozenRadio(vit).to("cpu")
    frozen.load(weights, "test.pth")
    assert frozen(torch.rand(1, 3, 64, 64)).summary.shape == (1, 3 * RADIO_WIDTH)


# The frozen module


def test_it_sees_the_image_at_half_the_size_as_clip_does(radio):
    images = torch.rand(2, 3, 128, 64)
    half = F.interpolate(images, scale_factor=0.5)
    half = (half - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = radio.vit(half)
    actual = radio(images)
    torch.testing.assert_close(actual.summary, expected.summary)
    torch.testing.assert_close(actual.spatial, F.max_pool2d(expected.spatial, 2))
    assert actual.spatial.shape == (2, RADIO_WIDTH, 2, 1)


def test_nothing_that_walks_over_modules_sees_it(detector):
    assert not any("radio" in name for name, _ in detector.named_parameters())
    assert not any("radio" in name for name in detector.state_dict())
    detector.train()
    detector.requires_grad_(True)
    assert not any(module.training for module in detector.frozen_radio.vit.modules())
    assert not any(parameter.requires_grad for parameter in detector.frozen_radio.vit.parameters())


def test_it_follows_its_owner_into_copies_and_types(detector, images):
    twin = copy.deepcopy(detector).bfloat16()
    assert {parameter.dtype for parameter in twin.frozen_radio.vit.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in detector.frozen_radio.vit.parameters()} == {torch.float32}
    rough, exact = twin.frozen_radio(images.bfloat16()), detector.frozen_radio(images)
    assert rough.spatial.dtype == rough.summary.dtype == torch.bfloat16
    torch.testing.assert_close(rough.summary.float(), exact.summary, atol=0.1, rtol=0.1)


def test_it_follows_the_images_where_its_owner_is_moved_piece_by_piece(radio):
    radio.mean, radio.std = radio.mean.to("meta"), radio.std.to("meta")
    assert radio(torch.rand(1, 3, 64, 64, device="meta")).summary.is_meta
    assert all(parameter.is_meta for parameter in radio.vit.parameters())


def test_it_runs_in_mixed_precision(radio, images):
    exact = radio(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = radio(images)
    torch.testing.assert_close(rough.summary.float(), exact.summary, atol=0.1, rtol=0.1)
    torch.testing.assert_close(rough.spatial.float(), exact.spatial, atol=0.1, rtol=0.1)


# The detector


def test_names_are_those_of_tao(detector):
    names = set(detector.state_dict())
    for layer in range(3):
        for part in ("image_query_proj", "image_query_norm"):
            assert {f"decoder.decoder.{part}.{layer}.weight", f"decoder.decoder.{part}.{layer}.bias"} <= names
    assert detector.state_dict()["decoder.decoder.image_query_proj.0.weight"].shape == (16, 3 * RADIO_WIDTH)
    for name in (
        "input_proj.3.0",
        "lateral_convs.2.conv",
        "fpn_blocks.2.conv1.conv",
        "downsample_convs.2.conv",
        "pan_blocks.2.conv2.conv",
    ):
        assert f"encoder.{name}.weight" in names
    assert not any(name.startswith("decoder.input_proj.3") for name in names)


@pytest.mark.parametrize("size", [(64, 64), (128, 192), (96, 160)])
def test_both_features_matter_at_every_size(detector, size):
    images = torch.rand(1, 3, *size)
    detector.eval()
    with torch.no_grad():
        maps = detector.encoder([*detector.backbone(images), detector.frozen_radio(images).spatial]).maps
        summary = detector.frozen_radio(images).summary
        assert [tuple(level.shape[-2:]) for level in maps] == [(size[0] // s, size[1] // s) for s in (8, 16, 32)]
        result = detector(images)
        other_summary = detector.decoder(maps, None, summary + 1)
        zero = torch.zeros_like(detector.frozen_radio(images).spatial)
        other_maps = detector.decoder(detector.encoder([*detector.backbone(images), zero]).maps, None, summary)
    assert result.logits.shape == (1, 9, 3)
    for other in (other_summary, other_maps):
        assert (result.boxes - other.boxes).abs().max() > 1e-4


class Recorder(torch.nn.Module):
    """A decoder layer that records its inputs and returns the content."""

    def forward(self, content, reference, memory, shapes, position, attention_mask):
        self.seen = content, reference, position, attention_mask
        return content


def test_each_layer_gets_its_own_query_of_the_whole_image_and_gives_the_others_back():
    torch.manual_seed(0)
    decoder = ImageQueryDecoder([Recorder(), Recorder()], eval_idx=1, summary_dim=6, hidden_dim=4)
    content, reference, summary = torch.randn(2, 3, 4), torch.rand(2, 3, 4), torch.randn(2, 6)
    head = torch.nn.Linear(4, 4)
    for index, layer in enumerate(decoder.layers):
        actual = decoder.attend(index, content, reference, None, [], head, None, summary)
        assert torch.equal(actual, content)
        queries, boxes, positions, mask = layer.seen
        expected = F.layer_norm(decoder.image_query_proj[index](summary), (4,))
        torch.testing.assert_close(queries[:, 3], expected)
        assert torch.equal(queries[:, :3], content) and torch.equal(boxes[:, :3], reference)
        assert boxes[:, 3].tolist() == [[0.5, 0.5, 1.0, 1.0]] * 2
        torch.testing.assert_close(positions, head(boxes))
        assert mask is None
    assert not torch.equal(decoder.layers[0].seen[0][:, 3], decoder.layers[1].seen[0][:, 3])


def test_an_image_query_is_seen_by_all_and_sees_what_a_matching_query_sees():
    mask = denoising_attention_mask(groups=2, group_size=2, num_queries=3, device=torch.device("cpu"))
    wider = with_image_query(mask)
    expected = denoising_attention_mask(groups=2, group_size=2, num_queries=4, device=torch.device("cpu"))
    assert torch.equal(wider, expected) and wider.shape == (8, 8)


def test_every_trained_parameter_gets_a_gradient(detector, images, targets):
    result = detector.train()(images, targets)
    total = sum(
        tensor.sum()
        for tensor in (
            result.layer_logits,
            result.layer_boxes,
            result.encoder_logits,
            result.encoder_boxes,
            result.denoising.logits,
        )
    )
    total.backward()
    unused = {name for name, parameter in detector.named_parameters() if parameter.grad is None}
    assert unused == {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in unused} == {"downsample_convs", "pan_blocks"}
    assert all(name.split(".")[2] == "2" for name in unused)


def test_ddp_finds_every_parameter_used(detector, images, targets, tmp_path):
    """Without `find_unused_parameters`, a parameter without gradient would make the second step fail."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(detector.train(), find_unused_parameters=False)
        for _ in range(2):
            result = wrapped(images, targets)
            outputs = (result.layer_logits, result.layer_boxes, result.encoder_logits, result.encoder_boxes)
            (sum(tensor.sum() for tensor in outputs) + result.denoising.logits.sum()).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_denoising_queries_and_matching_queries_are_told_apart(detector, images, targets):
    result = detector.train()(images, targets)
    assert result.layer_boxes.shape == (3, 2, 9, 4)
    assert result.denoising.boxes.shape[2] == 2 * 2 * result.denoising.groups


def test_a_deployed_copy_finds_the_same(detector, images):
    with torch.no_grad():
        expected, actual = detector.eval()(images), detector.deploy()(images)
    torch.testing.assert_close(actual.boxes, expected.boxes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_the_static_graph_finds_what_torch_finds(detector):
    import onnxruntime

    assert detector.static_batch == 1
    model = ExportModel(detector).eval()
    graph = export_graph(model, (64, 96), batch=detector.static_batch, opset=17)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images)
    for ours, reference in zip(session.run(None, {"inputs": images.numpy()}), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), reference, atol=1e-4, rtol=1e-4)


# Checkpoints


def test_a_checkpoint_of_ours_loads_without_radio(detector, images):
    saved = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    twin = copy.deepcopy(detector)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert load_into(twin, saved, source="ours.pth").complete
        torch.testing.assert_close(twin.eval()(images).boxes, detector.eval()(images).boxes)


def test_taos_checkpoint_brings_radio_along(detector, images):
    file = {
        **detector.state_dict(),
        **{
            f"frozen_radio.radio.radio.model.{name}": tensor + 0.1
            for name, tensor in detector.frozen_radio.vit.state_dict().items()
        },
    }
    before = detector.frozen_radio.vit.state_dict()["blocks.0.mlp.fc1.weight"].clone()
    assert load_into(detector, file, source="tao.pth").complete
    after = detector.frozen_radio.vit.state_dict()["blocks.0.mlp.fc1.weight"]
    torch.testing.assert_close(after, before + 0.1)
    assert detector.frozen_radio.loaded_from == "tao.pth"


def test_a_checkpoint_without_radio_needs_the_file_of_its_weights(detector):
    detector.frozen_radio = FrozenRadio(tiny_radio())
    with pytest.raises(CheckpointError, match=r"Set model\.frozen_fm\.checkpoint to their file"):
        load_into(detector, detector.state_dict(), source="ours.pth")
