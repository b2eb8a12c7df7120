from __future__ import annotations

import pytest

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.errors import SpecError
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.spec import read_spec

ARCH = "model.arch=rfdetr"


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_null_fields_are_the_variants(variant):
    full, row = resolve_rfdetr(RfdetrSpec(variant=variant)), RFDETR_VARIANTS[variant]
    assert (full.resolution, full.patch_size, full.num_windows) == (row.resolution, row.patch_size, row.num_windows)
    assert full.out_feature_indexes == list(row.out_feature_indexes)
    assert full.positional_encoding_size == row.positional_encoding_size
    assert None not in vars(full).values()


def test_a_given_resolution_sets_the_position_embeddings_unless_they_are_dinov2s():
    assert resolve_rfdetr(RfdetrSpec(resolution=448)).positional_encoding_size == 28
    assert resolve_rfdetr(RfdetrSpec(resolution=448, positional_encoding_size=5)).positional_encoding_size == 5
    assert resolve_rfdetr(RfdetrSpec(variant="base", resolution=448)).positional_encoding_size == 37


def test_an_encoder_without_learned_positions_has_no_use_for_their_number():
    section = RfdetrSpec(encoder="dinov3_windowed_base", resolution=448)
    assert resolve_rfdetr(section).positional_encoding_size == 24  # the variant's, as if nothing was set
    full = resolve_rfdetr(RfdetrSpec(variant="base", encoder="dinov3_convnext_tiny"))
    assert full.out_feature_indexes == [2, 3, 4]


def test_sub_detectors_cannot_differ_in_what_their_encoder_does_not_have():
    for encoder, fixed in (("dinov3_convnext_tiny", True), ("dinov3_windowed_small", False)):
        model = read_spec(None, [ARCH, f"model.rfdetr.encoder={encoder}"]).spec.model
        for choice in ("num_windows", "patch_size"):
            reason = f"its encoder {encoder} has no {choice}"
            assert model.family.fixed_reason(model, choice) == (reason if fixed else "")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.rfdetr.resolution=400", "a multiple of 32 (patch_size 16 * num_windows 2), nearest: 384 or 416"),
        ("model.rfdetr.resolution=20", "nearest: 32"),
        ("model.rfdetr.out_feature_indexes=[3,2]", "at least one, ascending, without duplicates"),
        ("model.rfdetr.projector_scale=[P4,P4]", "at least one, ascending, without duplicates"),
        ("model.rfdetr.sa_nheads=5", "a divisor of model.rfdetr.hidden_dim, which is 256"),
        ("model.rfdetr.hidden_dim=100", "model.rfdetr.sa_nheads: 8 is invalid"),
        ("model.rfdetr.variant=tiny", "nano, small, medium, base, large, large_2025, xlarge, 2xlarge"),
        ("dataset.augmentation.eval_spatial_size=[40,64]", "each a multiple of 32, nearest: 32 or 64 x 64"),
        ("dataset.augmentation.multi_scales=[100]", "multiples of 32, nearest: 96 or 128"),
        (
            "model.rfdetr.encoder=dinov3_windowed_small model.rfdetr.positional_encoding_size=24",
            "positional_encoding_size: 24 has no effect with model.rfdetr.encoder dinov3_windowed_small (DINOv3)",
        ),
        (
            "model.rfdetr.encoder=dinov3_convnext_tiny model.rfdetr.num_windows=1",
            "num_windows: 1 has no effect with model.rfdetr.encoder dinov3_convnext_tiny (DINOv3 ConvNeXt); remove it",
        ),
        (
            "model.rfdetr.encoder=dinov3_convnext_tiny model.rfdetr.out_feature_indexes=[0,4]",
            "out_feature_indexes: [0, 4] is invalid; expected 1 to 4, the stages of dinov3_convnext_tiny",
        ),
        (
            "model.rfdetr.encoder=dinov3_convnext_tiny model.rfdetr.out_feature_indexes=[1,2]",
            "out_feature_indexes: [1, 2] is invalid; expected stage 3 or 4 of dinov3_convnext_tiny as the last one",
        ),
        (
            "model.rfdetr.encoder=dinov3_convnext_tiny model.rfdetr.resolution=400",
            "a multiple of 32 (the last stride of dinov3_convnext_tiny), nearest: 384 or 416",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(override, said):
    with pytest.raises(SpecError) as caught:
        read_spec(None, [ARCH, *override.split()])
    assert said in str(caught.value)


def test_sizes_must_fit_the_windows_of_the_variant():
    sizes = "dataset.augmentation.train_spatial_size=[560,560] dataset.augmentation.eval_spatial_size=[560,616]"
    others = [ARCH, *sizes.split(), "dataset.augmentation.multi_scales=[]"]
    assert read_spec(None, [*others, "model.rfdetr.variant=base"]).spec.model.rfdetr.variant == "base"
    with pytest.raises(SpecError, match=r"eval_spatial_size: \[560, 616\] is invalid.*multiple of 32"):
        read_spec(None, [*others, "model.rfdetr.variant=nano"])


@pytest.mark.parametrize("variant", RFDETR_VARIANTS)
def test_sizes_that_are_not_given_are_the_variants(variant):
    row = RFDETR_VARIANTS[variant]
    given = read_spec(None, [ARCH, f"model.rfdetr.variant={variant}"]).spec.dataset.augmentation
    assert given.eval_spatial_size == [row.resolution, row.resolution]
    assert given.train_spatial_size == [given.multi_scales[-1]] * 2  # batches are resized from there
    assert len(given.multi_scales) == 11 and given.multi_scales[5] == row.resolution
    own = [f"model.rfdetr.resolution={2 * row.resolution}", "dataset.augmentation.multi_scales=[]"]
    sizes = read_spec(None, [ARCH, f"model.rfdetr.variant={variant}", *own]).spec.dataset.augmentation
    assert sizes.train_spatial_size == sizes.eval_spatial_size == [2 * row.resolution] * 2 and sizes.multi_scales == []


def test_fields_of_the_other_family_are_named():
    notes = read_spec(None, [ARCH, "model.num_queries=100"]).notes
    assert notes == ["model.num_queries has no effect: model.arch rfdetr does not use it"]
    notes = read_spec(None, ["model.rfdetr.dec_layers=4"]).notes
    assert notes == ["model.rfdetr.dec_layers has no effect: model.arch rtdetr does not use it"]
    assert read_spec(None, [ARCH]).notes == []
