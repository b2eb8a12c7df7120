"""Names of classes as keys: unique within a file, and what joins the classes of several files."""

from __future__ import annotations

from collections.abc import Mapping

from rtdetr_tool.data.repairs import Repairs


def unique_names(categories: Mapping[int, str], repairs: Repairs | None = None) -> dict[int, str]:
    """The categories of one file (id -> name) with a name of its own for each, in their order.

    Of several with one name, that of the lowest id keeps it and the others get their id behind it; one without a name
    is called by its id. Both are counted in `repairs`.
    """
    repairs = Repairs() if repairs is None else repairs
    taken = set(categories.values()) - {""}
    kept: set[str] = set()
    renamed: dict[int, str] = {}
    for category_id in sorted(categories):
        name = categories[category_id]
        if name and name not in kept:
            kept.add(name)
            continue
        renamed[category_id] = _free(f"{name} id {category_id}" if name else str(category_id), category_id, taken)
        taken.add(renamed[category_id])
        kind = "category_name_repeated" if name else "category_unnamed"
        repairs.add(kind, f"id {category_id}: {renamed[category_id]!r}")
    return {category_id: renamed.get(category_id, name) for category_id, name in categories.items()}


def _free(name: str, category_id: int, taken: set[str]) -> str:
    while name in taken:
        name += f" id {category_id}"
    return name


def join(known: dict[int, str], categories: Mapping[int, str], repairs: Repairs, ids_count: bool = True) -> None:
    """Add the categories of one more file to those `known`: by name, whatever their ids are.

    A new name keeps its id where that is free. With `ids_count` ids that change are counted in `repairs`; without it
    they are this package's own and mean nothing.
    """
    id_of = {name: category_id for category_id, name in known.items()}
    following = max((*known, *(categories if ids_count else ())), default=-1) + 1
    for category_id, name in categories.items():
        joined = id_of.get(name)
        if joined is None:
            joined = category_id if ids_count and category_id not in known else following
            if joined == following:
                following += 1
            if joined != category_id and ids_count:
                other = f"{category_id} {name!r} (there {known[category_id]!r}) becomes {joined}"
                repairs.add("category_id_taken", other)
            known[joined] = name
        elif joined != category_id and ids_count:
            repairs.add("category_renumbered", f"{category_id} {name!r} becomes {joined}")
