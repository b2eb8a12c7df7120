"""Checks across the fields of an RT-DETR."""

from __future__ import annotations

from collections.abc import Iterator

from rtdetr_tool.catalog import CLASS_LOSSES, STRIDES
from rtdetr_tool.families.rtdetr.spec import RtdetrFields

SIZE_MULTIPLE = 32  # stride of the coarsest level


def rtdetr_problems(model: RtdetrFields, name: str) -> Iterator[str]:
    """Inconsistencies between fields, one line each; `name` is the section's."""
    levels = model.num_feature_levels
    for name_of_list in ("return_interm_indices", "feat_strides", "feat_channels"):
        values = getattr(model, name_of_list)
        if len(values) != levels:
            yield (
                f"{name}.{name_of_list}: {values} has {len(values)} items; expected as many as "
                f"{name}.num_feature_levels, which is {levels}"
            )
    indices = model.return_interm_indices
    if indices != list(range(indices[0], indices[0] + len(indices))) if indices else True:
        yield f"{name}.return_interm_indices: {indices} is invalid; expected neighboring stages, ascending"
    for index in model.use_encoder_idx:
        if index >= levels:
            yield f"{name}.use_encoder_idx: {index} is invalid; expected 0 to {levels - 1}, one of the levels"
    if len(set(model.use_encoder_idx)) != len(model.use_encoder_idx):
        yield f"{name}.use_encoder_idx: {model.use_encoder_idx} has a level twice; expected each at most once"
    if any(channels != model.hidden_dim for channels in model.feat_channels):
        yield (
            f"{name}.feat_channels: {model.feat_channels} is invalid; expected {name}.hidden_dim "
            f"({model.hidden_dim}) for every level, the number of channels of the encoder's output"
        )
    if model.hidden_dim % 4:
        yield f"{name}.hidden_dim: {model.hidden_dim} is invalid; expected a multiple of 4"
    if model.hidden_dim % model.nheads:
        yield (
            f"{name}.nheads: {model.nheads} is invalid; expected a divisor of {name}.hidden_dim, which is "
            f"{model.hidden_dim}"
        )
    if model.dec_hidden_dim is not None and model.dec_hidden_dim % model.nheads:
        yield (
            f"{name}.dec_hidden_dim: {model.dec_hidden_dim} is invalid; expected a multiple of {name}.nheads, "
            f"which is {model.nheads}"
        )
    if len(model.num_points) not in (1, levels):
        yield (
            f"{name}.num_points: {model.num_points} has {len(model.num_points)} items; expected 1, or as many as "
            f"{name}.num_feature_levels, which is {levels}"
        )
    if int(model.hidden_dim * model.expansion) < 1:
        yield f"{name}.expansion: {model.expansion} is invalid; expected at least 1 / {name}.hidden_dim"
    if model.eval_idx >= model.dec_layers:
        yield (
            f"{name}.eval_idx: {model.eval_idx} is invalid; expected -1 to {model.dec_layers - 1} "
            f"({name}.dec_layers is {model.dec_layers})"
        )
    if not model.loss_types:
        yield f"{name}.loss_types: [] is invalid; expected boxes, or one of {', '.join(CLASS_LOSSES)}, or both"
    if all(loss in model.loss_types for loss in CLASS_LOSSES):
        both = ", ".join(CLASS_LOSSES)
        yield f"{name}.loss_types: {model.loss_types} has two class losses; expected only one of {both}"
    if len(indices) == levels and len(model.feat_strides) == levels:
        strides = [STRIDES[index] for index in indices]
        if model.feat_strides != strides:
            yield (
                f"{name}.feat_strides: {model.feat_strides} is invalid; expected {strides}, the strides of stages "
                f"{indices} of {model.backbone}"
            )
