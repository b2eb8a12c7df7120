"""Class names as the keys that identify classes across annotation files: unique, and not easily confused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping


def unique_names(
    categories: Mapping[int, str], on_change: Callable[[str, str], object] = lambda kind, text: None
) -> dict[int, str]:
    """The categories of one file (id -> name) with unique names, in the same order.

    Of several categories with the same name, the one with the lowest id keeps it, and the id is appended to the names
    of the others. A category without a name is named by its id. Each change is passed to `on_change` as a kind
    (`category_name_repeated` or `category_unnamed`) and a description.
    """
    used = set(categories.values()) - {""}
    kept: set[str] = set()
    renamed: dict[int, str] = {}
    for category_id in sorted(categories):
        name = categories[category_id]
        if name and name not in kept:
            kept.add(name)
            continue
        new = f"{name} id {category_id}" if name else str(category_id)
        while new in used:
            new += f" id {category_id}"
        renamed[category_id] = new
        used.add(new)
        kind = "category_name_repeated" if name else "category_unnamed"
        on_change(kind, f"id {category_id}: {new!r}")
    return {category_id: renamed.get(category_id, name) for category_id, name in categories.items()}


def confusable(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that only differ in case, spaces, hyphens and underscores."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[_without_spelling(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def other_spellings(unknown: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """(name, known name) for each unknown name that is known in another spelling."""
    spellings = {_without_spelling(name): name for name in known}
    return [(name, spellings[key]) for name in unknown if (key := _without_spelling(name)) in spellings]


def spelling_hint(unknown: Iterable[str], known: Iterable[str]) -> str:
    """` ('car' is 'Car' there)` for unknown names that are known in another spelling; empty if there are none."""
    pairs = other_spellings(unknown, known)
    return f" ({', '.join(f'{name!r} is {other!r} there' for name, other in pairs[:4])})" if pairs else ""


def _without_spelling(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())
