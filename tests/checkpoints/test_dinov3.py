"""DINOv3 weights of transformers, Meta and timm under our names, with transformers' feature maps."""

from __future__ import annotations

import pytest
import timm
import torch

from rtdetr_tool.catalog import CONVNEXT, ENCODERS
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.family_weights import weights_of
from rtdetr_tool.checkpoints.io import save_checkpoint
from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.families.rfdetr.architecture import architecture_of_rfdetr
from rtdetr_tool.families.rfdetr.package_file import write_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.families.rtdetr.weights import backbone_weights
from rtdetr_tool.models.backbones.dinov3 import Dinov3ConvNext, Dinov3Vit
from rtdetr_tool.models.backbones.single_stride import SingleStrideConvNext
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.pixels import normalize
from rtdetr_tool.spec import DatasetSpec, ExperimentSpec, ModelSpec, spec_from_dict
from rtdetr_tool.training.initial_weights import load_initial_weights

SIZES = ((64, 64), (32, 96), (160, 64))
VIT, PLUS = "vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"
SMALL_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2}
SMALL_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


@torch.no_grad()
def randomized(network):
    """Random numbers in every tensor, except for the biases of query, key and value."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        is_bias = name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
        parameter.copy_(torch.zeros_like(parameter) if is_bias else parameter + 0.2 * torch.randn_like(parameter))
    return network.eval()


def transformers_vit(gated=False):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128, num_register_tokens=4,
        use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    return randomized(transformers.DINOv3ViTModel(config))


def load(backbone, tensors, source="weights.safetensors"):
    return load_into(backbone.eval().published, backbone_weights(tensors, source), source=source, strict=False)


def images(size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", ["model.", ""], ids=["transformers 5", "hub"])
@pytest.mark.parametrize(("name", "gated"), [(VIT, False), (PLUS, True)])
@torch.no_grad()
def test_a_vit_of_transformers_has_transformers_feature_maps(name, gated, prefix):
    reference, backbone = transformers_vit(gated), Dinov3Vit(name, (2,), **SMALL_VIT)
    tensors = {key.replace("model.layer.", f"{prefix}layer."): tensor for key, tensor in reference.state_dict().items()}
    assert load(backbone, tensors).complete
    for size in SIZES:
        outputs = reference(normalize(images(size)), output_hidden_states=True)
        for ours, hidden in zip(backbone.vit_maps(images(size)), outputs.hidden_states[1:], strict=True):
            expected = reference.norm(hidden)[:, 5:].transpose(1, 2).unflatten(2, (size[0] // 16, size[1] // 16))
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        last = outputs.last_hidden_state[:, 5:].transpose(1, 2).flatten(1)
        torch.testing.assert_close(backbone.vit_maps(images(size))[-1].flatten(1), last, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_convnext_of_transformers_has_transformers_feature_maps():
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    reference = randomized(transformers.DINOv3ConvNextModel(config))
    backbone = Dinov3ConvNext("convnext_tiny", (0, 1, 2, 3), **SMALL_CONVNEXT)
    assert load(backbone, reference.state_dict()).complete
    for size in SIZES:
        expected = reference(normalize(images(size)), output_hidden_states=True).hidden_states[1:]
        for ours, hidden in zip(backbone(images(size)), expected, strict=True):
            torch.testing.assert_close(ours, hidden, atol=1e-5, rtol=1e-5)


def meta_names(weights, bias=0.0):
    """A ViT's tensors as in Meta's files, with what these have in addition."""
    renamed = {"mask_token": torch.ones(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, tensor in weights.items():
        for ours, foreign in (
            ("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"),
            ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3" if "fc1_g" in str(list(weights)) else "mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(ours, foreign)
        renamed[name] = tensor
        if name.endswith("attn.qkv.weight"):
            values = torch.full((96,), bias)
            values[32:64] = torch.nan  # of the key, which is masked
            renamed |= {name.replace("weight", "bias"): values, name.replace("weight", "bias_mask"): torch.ones(96)}
    return renamed


@pytest.mark.parametrize("name", [VIT, PLUS])
def test_a_vit_of_meta_is_what_timm_converts_it_to(name):
    from timm.models.eva import checkpoint_filter_fn

    network = randomized(timm.create_model(name, num_classes=0, **SMALL_VIT))
    tensors = meta_names(network.state_dict())
    assert {"storage_tokens", "blocks.0.ls1.gamma"} <= set(tensors)
    backbone = Dinov3Vit(name, (2,), **SMALL_VIT)
    assert load(backbone, tensors).complete
    converted = checkpoint_filter_fn(tensors, network)
    ours = backbone.published.state_dict()
    assert ours.keys() == converted.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in converted.items())


def test_meta_s_convnext_has_one_more_norm_that_no_map_depends_on():
    network = timm.create_model("convnext_tiny", num_classes=0, **SMALL_CONVNEXT)
    backbone = Dinov3ConvNext("convnext_tiny", (1, 2, 3), **SMALL_CONVNEXT)
    tensors = {}
    for name, tensor in network.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        stage = name.split(".")[1]
        name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.").replace("blocks.", "")
        for ours, foreign in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
            name = name.replace(ours, foreign)
        tensors[name] = tensor + 1
    tensors["norms.3.weight"] = tensors["norm.weight"]
    assert load(backbone, tensors).complete
    published = network.state_dict()
    assert all(torch.equal(tensor, published[key] + 1) for key, tensor in backbone.published.state_dict().items())


@pytest.mark.parametrize("form", ["transformers", "meta"])
def test_biases_in_the_attention_are_an_error_because_the_network_has_none(form):
    if form == "meta":
        tensors = meta_names(timm.create_model(VIT, num_classes=0, **SMALL_VIT).state_dict(), bias=0.5)
    else:
        tensors = transformers_vit().state_dict()
        tensors["model.layer.2.attention.v_proj.bias"][3] = 0.5
    with pytest.raises(
        CheckpointError, match=r"w\.pth .*bias is not 0 everywhere, but DINOv3 as published has no bias"
    ):
        backbone_weights(tensors, "w.pth")


def test_a_missing_projection_is_named():
    tensors = transformers_vit().state_dict()
    del tensors["model.layer.1.attention.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"missing tensors layer\.1\.attention\.k_proj\.weight"):
        backbone_weights(tensors, "w.pth")


@pytest.fixture
def small_encoders(monkeypatch):
    """RF-DETR's encoders with the sizes of the networks in this file."""
    for name, row in ENCODERS.items():
        small = {"width": 8, "depth": 2} if row.kind == CONVNEXT else {"width": 32, "depth": 4, "num_heads": 2}
        monkeypatch.setitem(ENCODERS, name, row._replace(**small))
    monkeypatch.setattr("rtdetr_tool.families.rfdetr.build.SingleStrideConvNext", small_convnext)


def small_convnext(name, stages, drop_path_rate=0.0, **options):
    return SingleStrideConvNext(name, stages, drop_path_rate=drop_path_rate, **SMALL_CONVNEXT, **options)


def rfdetr_with(encoder, path, **fields):
    """The backbone of an RF-DETR after loading a file as `model.pretrained_backbone_path`, and the report."""
    indices = {} if "convnext" in encoder else {"out_feature_indexes": [1, 2, 3, 4]}
    section = RfdetrSpec(
        encoder=encoder, num_queries=4, group_detr=1, dim_feedforward=16, dec_layers=1, **{**indices, **fields}
    )
    model = ModelSpec(arch="rfdetr", pretrained_backbone_path=str(path), rfdetr=section)
    detector = build_detector(model, 3).eval()
    report = load_initial_weights(detector, ExperimentSpec(model=model, dataset=DatasetSpec(num_classes=3)), ())
    return detector.backbone, report


@pytest.mark.parametrize("encoder", ["dinov3_windowed_small", "dinov3_windowed_small_plus"])
@torch.no_grad()
def test_a_vit_of_transformers_has_transformers_feature_maps_in_rfdetr(encoder, small_encoders, tmp_path, caplog):
    caplog.set_level("INFO")
    reference = transformers_vit(gated="plus" in encoder)
    path = save_checkpoint(reference.state_dict(), tmp_path / "model.pth")
    backbone, report = rfdetr_with(encoder, path, num_windows=1)
    assert report.complete and not report.unused
    for size in SIZES:
        hidden = reference(normalize(images(size)), output_hidden_states=True).hidden_states[1:]
        for ours, tokens in zip(backbone(images(size)), hidden, strict=True):
            expected = reference.norm(tokens)[:, 5:].transpose(1, 2).unflatten(2, (size[0] // 16, size[1] // 16))
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert "DINOv3 License, which also applies to weights trained from them" in caplog.text


@pytest.mark.parametrize("form", ["timm", "meta"])
@pytest.mark.parametrize(("name", "encoder"), [(VIT, "dinov3_windowed_small"), (PLUS, "dinov3_windowed_small_plus")])
def test_files_of_timm_and_meta_have_the_same_tensors_in_rfdetr(name, encoder, form, small_encoders, tmp_path):
    tensors = randomized(timm.create_model(name, num_classes=0, **SMALL_VIT)).state_dict()
    path = save_checkpoint(meta_names(tensors) if form == "meta" else tensors, tmp_path / "dinov3.pth")
    backbone, report = rfdetr_with(encoder, path)
    assert report.complete
    assert torch.equal(backbone.registers, tensors["reg_token"])
    assert torch.equal(backbone.blocks[2].attention.key.weight, tensors["blocks.2.attn.qkv.weight"][32:64])
    assert torch.equal(backbone.blocks[3].scale2, tensors["blocks.3.gamma_2"])
    up, gate = ("fc1_x", "fc1_g") if "plus" in encoder else ("fc1", None)
    assert torch.equal(backbone.blocks[1].fc1.weight, tensors[f"blocks.1.mlp.{up}.weight"])
    assert gate is None or torch.equal(backbone.blocks[1].gate.weight, tensors[f"blocks.1.mlp.{gate}.weight"])


@torch.no_grad()
def test_a_convnext_of_transformers_is_loaded_into_rfdetr(small_encoders, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    reference = randomized(transformers.DINOv3ConvNextModel(config))
    path = save_checkpoint(reference.state_dict(), tmp_path / "convnext.pth")
    backbone, report = rfdetr_with("dinov3_convnext_tiny", path)
    assert report.complete
    expected = reference(normalize(images((64, 96))), output_hidden_states=True).hidden_states[1:]
    torch.testing.assert_close(backbone(images((64, 96)))[1], expected[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (
            "dinov2_windowed_small",
            r"dinov3\.pth is not a DINOv2 backbone, which model\.rfdetr\.encoder dinov2",
        ),
        ("dinov3_convnext_tiny", r"is not a DINOv3 ConvNeXt backbone.*expected those of DINOv3 ConvNeXt"),
    ],
)
def test_a_file_of_another_kind_of_backbone_is_an_error(encoder, said, small_encoders, tmp_path):
    tensors = timm.create_model(VIT, num_classes=0, **SMALL_VIT).state_dict()
    with pytest.raises(CheckpointError, match=said):
        rfdetr_with(encoder, save_checkpoint(tensors, tmp_path / "dinov3.pth"))


def test_the_backbone_of_an_rfdetr_with_another_encoder_is_an_error(small_encoders, tmp_path):
    few = {"num_queries": 4, "group_detr": 1, "dec_layers": 1, "out_feature_indexes": [1, 2, 3, 4]}
    sources = {}
    for name in ("dinov2_windowed_small", "dinov3_windowed_small"):
        detector = build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(encoder=name, **few)), 3)
        sources[name] = save_checkpoint({"model": detector.state_dict()}, tmp_path / f"{name}.pth")
    assert rfdetr_with("dinov3_windowed_small", sources["dinov3_windowed_small"])[1].complete
    with pytest.raises(CheckpointError, match=r"is a DINOv2 of width 32 with 4 blocks, but .* is a DINOv3 of width 32"):
        rfdetr_with("dinov3_windowed_small", sources["dinov2_windowed_small"])


def test_timm_is_asked_for_the_weights_of_dinov3(monkeypatch, small_encoders):
    asked = []

    def create(name, pretrained, num_classes):
        asked.append(name)
        raise OSError("no route to host")

    detectors = {
        name: ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(encoder=name)) for name in ENCODERS if "dinov3" in name
    }
    monkeypatch.setattr(timm, "create_model", create)
    for model in detectors.values():
        for source in ("timm", "timm/other"):
            with pytest.raises(CheckpointError, match="could not load"):
                weights_of(model.family).read_backbone(source, model)
    assert asked[:2] == ["vit_small_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3.other"]
    assert asked[-2:] == ["convnext_large.dinov3_lvd1689m", "convnext_large.other"]


@pytest.mark.parametrize("levels", [["P4"], ["P3", "P5"]], ids=str)
@pytest.mark.parametrize("encoder", ["dinov3_windowed_base", "dinov3_convnext_small"])
def test_an_rfdetr_with_dinov3_is_recognized_by_its_tensors_and_not_written_for_rfdetr(encoder, levels, tmp_path):
    fields = {"encoder": encoder, "projector_scale": levels, "dec_layers": 1, "num_queries": 4, "group_detr": 1}
    with torch.device("meta"):
        weights = build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(**fields)), 3).state_dict()
    model, classes = architecture_of_rfdetr(weights)
    assert model["rfdetr"]["encoder"] == encoder and classes == 3
    assert ("out_feature_indexes" in model["rfdetr"]) == ("convnext" in encoder)
    with torch.device("meta"):
        rebuilt = build_detector(spec_from_dict({"model": model}).model, 3).state_dict()
    assert {name: tensor.shape for name, tensor in rebuilt.items()} == {n: t.shape for n, t in weights.items()}
    meta = build_metadata("", {"model": model, "dataset": {"num_classes": 3}}, [])
    with pytest.raises(CheckpointError, match=f"cannot be written for rfdetr, which has no encoder {encoder}"):
        write_rfdetr(tmp_path / "file.pth", weights, meta)
    assert not list(tmp_path.iterdir())


def test_a_detector_does_not_take_the_blocks_of_another_encoder(small_encoders, tmp_path):
    """They have the same shapes, but rely on other positions."""
    few = {"num_queries": 4, "group_detr": 1, "dec_layers": 3, "out_feature_indexes": [1, 2, 3, 4]}
    names = ("dinov2_registers_windowed_small", "dinov3_windowed_small")
    models = {name: ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(encoder=name, **few)) for name in names}
    detectors = {name: build_detector(model, 3) for name, model in models.items()}
    for name, other in (names, names[::-1]):
        path = save_checkpoint({"model": detectors[other].state_dict()}, tmp_path / f"{other}.pth")
        report = load_into(detectors[name], read_detector(path).weights, source="file", strict=False)
        assert {n for n in report.loaded if n.startswith("backbone.")} == set()
        assert "decoder.refpoint_embed.weight" in report.loaded
