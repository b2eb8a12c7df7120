"""`Detector.run_as`: a sub-detector of shared weights is the smaller detector that is built with them."""

from __future__ import annotations

import pytest
import torch

from rtdetr_tool.checkpoints.loading import load_into
from rtdetr_tool.errors import UserError
from rtdetr_tool.models.backbones.windowed_vit import resize_patches
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.sub_detectors import sub_detectors, sub_spec_values

SIZES = {"train_spatial_size": [64, 64], "eval_spatial_size": [64, 64]}
RTDETR = {
    "backbone": "timm/test_resnet", "hidden_dim": 16, "nheads": 2, "feat_channels": [16, 16, 16],
    "dim_feedforward": 16, "num_queries": 12, "num_select": 5, "dec_layers": 3, "dn_number": 4,
}  # fmt: skip
DFINE = {"arch": "dfine", "dfine": {"variant": "n", "num_queries": 12, "dec_layers": 3, "dn_number": 4}}
RFDETR = {
    "arch": "rfdetr",
    "rfdetr": {"hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 4, "dim_feedforward": 16, "num_queries": 6,
               "group_detr": 2, "resolution": 64, "dec_layers": 3},
}  # fmt: skip
MASKS = {**RFDETR, "rfdetr": {**RFDETR["rfdetr"], "segmentation_head": True}}
POSES = {**RFDETR, "rfdetr": {**RFDETR["rfdetr"], "use_grouppose_keypoints": True, "num_keypoints_per_class": [2]}}
PREFIX = {"decoder_layers": [1, 2], "num_queries": [5], "resolution": [96]}
PATCHES = {"decoder_layers": [2], "num_queries": [4], "num_windows": [1], "patch_size": [8, 32], "resolution": [96]}


def spec_of(model, choices, **changes):
    data = {
        "model": model,
        "dataset": {"num_classes": 3, "augmentation": dict(SIZES)},
        "train": {"supernet": {"enabled": True, **choices}, **changes},
    }
    return spec_from_dict(data)


def detector_of(model, seed=0):
    """A detector in which no tensor is zero and no head equals another."""
    torch.manual_seed(seed)
    detector = build_detector(model, 3)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return detector


def images(size, count=2):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(3))


def fields(predictions):
    masks = predictions.masks if predictions.masks is not None else torch.zeros(1)
    points = predictions.keypoints.values if predictions.keypoints is not None else torch.zeros(1)
    return predictions.logits, predictions.boxes, masks, points


@pytest.mark.parametrize(
    ("model", "choices", "count"),
    [
        pytest.param(RTDETR, PREFIX, 12, id="rtdetr"),
        pytest.param(DFINE, PREFIX, 12, id="dfine"),
        pytest.param(RFDETR, PATCHES, 44, id="rfdetr"),
        pytest.param(MASKS, PATCHES, 44, id="masks", marks=pytest.mark.slow),
        pytest.param(POSES, PATCHES, 44, id="poses", marks=pytest.mark.slow),
    ],
)
@torch.inference_mode()
def test_it_predicts_what_the_smaller_detector_with_these_weights_does(model, choices, count):
    spec = spec_of(model, choices)
    whole, subs = detector_of(spec.model).eval(), sub_detectors(spec)
    assert len(subs) == count and subs[0].differing == {}
    before = fields(whole(images(subs[0].size)))
    for sub in subs[1 :: count // 4]:
        data = {"model": dict(model), "dataset": {"num_classes": 3, "augmentation": {}}, "train": {}}
        for name, value in sub_spec_values(sub, spec.model).items():
            *sections, leaf = name.split(".")
            place = data
            for section in sections:
                place[section] = place = dict(place.get(section, {}))
            place[leaf] = value
        small = build_detector(spec_from_dict(data).model, 3)
        load_into(small, whole.state_dict(), source="the whole model")
        whole.run_as(**sub.numbers)
        assert whole.size_multiple == small.size_multiple
        for got, expected in zip(fields(whole(images(sub.size))), fields(small.eval()(images(sub.size))), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert got.shape and fields(small(images(sub.size)))[0].shape[1] == sub.numbers["num_queries"]
    whole.run_as()
    for got, expected in zip(fields(whole(images(subs[0].size))), before, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("model", "numbers"),
    [
        (RTDETR, {"decoder_layers": 1, "num_queries": 5}),
        (DFINE, {"decoder_layers": 1, "num_queries": 5}),
        (RFDETR, {"decoder_layers": 1, "num_queries": 4, "num_windows": 1, "patch_size": 8}),
        (MASKS, {"decoder_layers": 1, "num_queries": 4, "num_windows": 1, "patch_size": 8}),
    ],
    ids=["rtdetr", "dfine", "rfdetr", "masks"],
)
def test_in_training_only_its_layers_have_gradients_and_the_shared_weights_do(model, numbers):
    detector = detector_of(spec_of(model, {"resolution": [64]}).model)
    detector.run_as(**numbers)
    boxes = torch.tensor([[0.4, 0.5, 0.3, 0.3]])
    targets = [Target(boxes, torch.tensor([1]), number, (64, 64), (64, 64)) for number in range(2)]
    output = detector(images((64, 64)), targets)
    assert len(output.layer_logits) == 1
    parts = (output.layer_logits, output.layer_boxes, output.encoder_logits, output.encoder_boxes)
    sum(part.sum() for part in parts).backward()
    skipped = {id(parameter) for parameter in detector.skipped()}
    names = {name: parameter for name, parameter in detector.named_parameters() if id(parameter) in skipped}
    assert any("decoder.layers.1." in name for name in names) and any("decoder.layers.2." in name for name in names)
    assert not any("decoder.layers.0." in name for name in names)
    assert all(parameter.grad is None for parameter in names.values())
    used = dict(detector.named_parameters())
    first = next(name for name in used if "decoder.layers.0." in name and name.endswith("linear1.weight"))
    assert used[first].grad.abs().sum() > 0
    if "patch_size" in numbers:
        assert used["backbone.patch_embed.weight"].grad.abs().sum() > 0
        rows = detector.decoder.query_feat.weight.grad.unflatten(0, (2, -1)).abs().sum(-1)
        assert (rows[:, :4] > 0).all() and not rows[:, 4:].any()


def test_a_resized_patch_keeps_its_embedding():
    # FlexiViT: the embedding of a patch enlarged to 12 pixels by the resized kernel is that of the original patch.
    torch.manual_seed(0)
    kernel, patch = torch.randn(5, 3, 6, 6), torch.randn(1, 3, 6, 6)
    larger = torch.nn.functional.interpolate(patch, size=(12, 12), mode="bicubic", antialias=True)
    expected = torch.nn.functional.conv2d(patch, kernel)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(larger, resize_patches(kernel, 12)), expected, rtol=1e-3, atol=1e-3
    )


def test_the_values_of_a_family_without_sub_detectors_are_refused():
    from rtdetr_tool.models.detector import Detector

    class Plain(Detector):
        def forward(self, images, targets=None): ...
        def features(self, images): ...
        def deploy(self): ...

    plain = Plain(torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity())
    plain.run_as()
    with pytest.raises(UserError, match="Plain has no sub-detectors with other values of patch_size"):
        plain.run_as(patch_size=8)
