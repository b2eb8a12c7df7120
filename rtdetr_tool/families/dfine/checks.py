"""What the fields of a D-FINE require of each other."""

from __future__ import annotations

from collections.abc import Iterator

from rtdetr_tool.catalog import DFINE_HEADS, DFINE_VARIANTS
from rtdetr_tool.families.dfine.spec import DfineSpec, resolve_dfine

SIZE_MULTIPLE = 32  # stride of the coarsest level


def dfine_problems(section: DfineSpec, name: str) -> Iterator[str]:
    """One line for each disagreement; `name` is the section's."""
    full = resolve_dfine(section)
    levels = len(DFINE_VARIANTS[section.variant].indices)
    for field_name in ("hidden_dim", "dec_hidden_dim"):
        value = getattr(full, field_name)
        if value % DFINE_HEADS:
            yield f"{name}.{field_name}: {value} is invalid; expected a multiple of {DFINE_HEADS}, the number of heads"
    if len(full.num_points) != levels:
        yield (
            f"{name}.num_points: expected {levels} items, one per level of variant {section.variant}, but got "
            f"{len(full.num_points)}"
        )
    if full.reg_max % 2:
        yield f"{name}.reg_max: {full.reg_max} is invalid; expected an even number"
    if full.eval_idx >= full.dec_layers:
        yield (
            f"{name}.eval_idx: {full.eval_idx} is invalid; expected -1 to {full.dec_layers - 1} "
            f"({name}.dec_layers is {full.dec_layers})"
        )
    if round(full.layer_scale * full.dec_hidden_dim) % DFINE_HEADS:
        yield (
            f"{name}.layer_scale: {full.layer_scale} is invalid; expected a width of {name}.dec_hidden_dim "
            f"({full.dec_hidden_dim}) * layer_scale that is a multiple of {DFINE_HEADS}"
        )
    if int(full.expansion * full.hidden_dim // 2) < 1:
        yield f"{name}.expansion: {full.expansion} is invalid; expected at least 2 / {name}.hidden_dim"
