"""Checks across the fields of an RF-DETR."""

from __future__ import annotations

from collections.abc import Iterator

from rtdetr_tool.catalog import CONVNEXT, ENCODERS
from rtdetr_tool.errors import nearest_multiples
from rtdetr_tool.families.rfdetr.resolved import ResolvedRfdetrSpec, resolve_rfdetr, size_multiple
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec


def rfdetr_problems(section: RfdetrSpec, name: str) -> Iterator[str]:
    """Inconsistencies between fields; `name` is the section's."""
    full = resolve_rfdetr(section)
    encoder = ENCODERS[full.encoder]
    for field_name in ("out_feature_indexes", "projector_scale"):
        values = getattr(full, field_name)
        if not values or values != sorted(set(values)):
            yield f"{name}.{field_name}: {values} is invalid; expected at least one, ascending, without duplicates"
    first = 1 if encoder.kind == CONVNEXT else 0
    if any(not first <= index <= encoder.num_outputs for index in full.out_feature_indexes):
        parts = "stages" if encoder.kind == CONVNEXT else "blocks"
        yield (
            f"{name}.out_feature_indexes: {full.out_feature_indexes} is invalid; expected {first} to "
            f"{encoder.num_outputs}, the {parts} of {full.encoder}"
        )
    elif encoder.kind == CONVNEXT and full.out_feature_indexes and full.out_feature_indexes[-1] < 3:
        yield (
            f"{name}.out_feature_indexes: {full.out_feature_indexes} is invalid; expected stage 3 or 4 of "
            f"{full.encoder} as the last one"
        )
    for field_name in encoder.unused_fields:
        if (value := getattr(section, field_name)) is not None:
            yield (
                f"{name}.{field_name}: {value} has no effect with {name}.encoder {full.encoder} ({encoder.kind}); "
                "remove it"
            )
    for field_name in ("sa_nheads", "ca_nheads"):
        heads = getattr(full, field_name)
        if full.hidden_dim % heads:
            yield (
                f"{name}.{field_name}: {heads} is invalid; expected a divisor of {name}.hidden_dim, which is "
                f"{full.hidden_dim}"
            )
    if full.hidden_dim % 4:
        yield f"{name}.hidden_dim: {full.hidden_dim} is invalid; expected a multiple of 4"
    multiple = size_multiple(section)
    if full.segmentation_head and full.mask_downsample_ratio > multiple:
        yield (
            f"{name}.mask_downsample_ratio: {full.mask_downsample_ratio} is invalid; expected at most {multiple} "
            f"({_reason(full)}), the side of the smallest image"
        )
    if full.use_grouppose_keypoints:
        yield from _keypoint_problems(section, full, name)
    if full.resolution % multiple:
        nearest = nearest_multiples(full.resolution, multiple)
        yield (
            f"{name}.resolution: {full.resolution} is invalid; expected a multiple of {multiple} "
            f"({_reason(full)}), nearest: {nearest}"
        )


def _reason(full: ResolvedRfdetrSpec) -> str:
    """Where the multiple of image sizes comes from."""
    if ENCODERS[full.encoder].kind == CONVNEXT:
        return f"the last stride of {full.encoder}"
    return f"patch_size {full.patch_size} * num_windows {full.num_windows}"


def _keypoint_problems(section: RfdetrSpec, full: ResolvedRfdetrSpec, name: str) -> Iterator[str]:
    """What keypoints require of other fields."""
    if full.segmentation_head:
        yield f"{name}.segmentation_head and {name}.use_grouppose_keypoints cannot both be set"
    for field_name in ("bbox_reparam", "lite_refpoint_refine"):
        if not getattr(full, field_name):
            yield f"{name}.use_grouppose_keypoints is not supported with {name}.{field_name}=false; use true"
    if section.num_keypoints_per_class is not None and not any(section.num_keypoints_per_class):
        yield (
            f"{name}.num_keypoints_per_class: {section.num_keypoints_per_class} is invalid; expected the number of "
            "keypoints by class index, at least one above 0"
        )
    narrower = full.grouppose_keypoint_dim_downscale
    heads = [max(1, full.sa_nheads // narrower), max(1, full.ca_nheads // narrower)]
    if full.hidden_dim % narrower or any(full.hidden_dim // narrower % count for count in heads):
        yield (
            f"{name}.grouppose_keypoint_dim_downscale: {narrower} is invalid; expected a divisor of {name}.hidden_dim "
            f"({full.hidden_dim}), sa_nheads ({full.sa_nheads}) and ca_nheads ({full.ca_nheads})"
        )
