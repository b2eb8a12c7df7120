"""Write the tables of RF-DETR's fields in docs/rfdetr.md."""

from __future__ import annotations

from pathlib import Path

from rtdetr_tool.families.keywords import Keyword
from rtdetr_tool.families.rfdetr.keywords import MODEL, TRAIN
from rtdetr_tool.families.rfdetr.recipe import RECIPE
from rtdetr_tool.files import write_atomically
from rtdetr_tool.spec.fields import default_of
from rtdetr_tool.spec.schema import walk_fields

PAGE = Path(__file__).parents[1] / "docs" / "rfdetr.md"
START, END = "<!-- fields: written by scripts/generate_rfdetr_fields.py -->", "<!-- end of fields -->"
STATUS = {"works": "works", "warned": "accepted with a warning", "refused": "refused"}


def tables() -> str:
    """Both tables, each with a line of counts."""
    return "\n\n".join(
        f"### `{title}`\n\n{counts(rows)}\n\n{table(rows)}"
        for title, rows in (("TrainConfig", TRAIN), ("ModelConfig", MODEL))
    )


def counts(rows: tuple[Keyword, ...]) -> str:
    works, warned, refused = (sum(row.status == status for row in rows) for status in STATUS)
    return f"{len(rows)} fields: {works} work, {warned} are accepted with a warning, {refused} are refused."


def table(rows: tuple[Keyword, ...]) -> str:
    lines = ["| field | default there | here | default here | field of the spec, or reason |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row.name}` | {shown(row.default)} | {STATUS[row.status]} | {default_here(row)} | {description(row)} |"
        for row in rows
    ]
    return "\n".join(lines)


def description(row: Keyword) -> str:
    field = f"`{row.rule}`" if isinstance(row.rule, str) else ""
    return "; ".join(filter(None, (field, row.note)))


def default_here(row: Keyword) -> str:
    if not isinstance(row.rule, str):
        return "" if row.default is ... else shown(row.default) if row.status == "refused" else ""
    defaults = {name: default_of(entry) for name, entry, _ in walk_fields()}
    value = RECIPE.get(row.rule, defaults[row.rule])
    return "the variant's" if value is None and row.rule.startswith("model.") else shown(value)


def shown(value: object) -> str:
    return "required" if value is ... else f"`{value!r}`"


def with_tables(page: str) -> str:
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    write_atomically(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
    print(f"wrote {PAGE}")
