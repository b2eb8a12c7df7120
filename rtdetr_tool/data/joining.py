"""The classes that several sources have together, and those that a source shares with training data or a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from rtdetr_tool.data.class_names import join
from rtdetr_tool.data.classes import ClassMap
from rtdetr_tool.data.source import Source
from rtdetr_tool.errors import DataError


def undecided(sources: Sequence[Source]) -> bool:
    """Whether other splits of the data have a say in what the classes are."""
    return any(source.names_seen or source.groups for source in sources)


def decide_classes(sources: Sequence[Source], others: Sequence[Source]) -> None:
    """Settle the classes of `sources` over all splits; `others` are the sources of the other splits.

    A category that only groups others is skipped where no object of any split has it. Where nothing lists the classes,
    those of the objects of all splits count.
    """
    every = [*sources, *others]
    used = set().union(*(source.used for source in every))
    seen = set().union(*(source.categories.values() for source in every if source.names_seen))
    for source in sources:
        for category_id in sorted(source.groups):
            if source.categories[category_id] not in used:
                name = source.categories.pop(category_id)
                source.repairs.add("category_placeholder", f"{category_id} {name!r}")
        source.groups = set()
        if source.names_seen:
            together = dict(enumerate(sorted(seen)))
            source.renumber(together)
            source.categories = together


def joined_categories(sources: Sequence[Source]) -> dict[int, str]:
    """All categories of the sources, joined by name; each source takes over the ids.

    Sources whose ids are known come first, in their order.
    """
    known: dict[int, str] = {}
    for source in sorted(sources, key=lambda source: not source.ids_known):
        join(known, source.categories, source.repairs, source.ids_known)
        source.renumber(known)
    return known


def matched(source: Source, class_map: ClassMap) -> ClassMap:
    """The classes with ids as in `source`, which takes over theirs if it knows names only.

    Raises:
        DataError: objects have a class that is not among them, or the names contradict each other.
    """
    try:
        return _matched(source, class_map)
    except DataError:
        if not _drop_unused(source, set(class_map.categories.values())):
            raise
    return _matched(source, class_map)


def _drop_unused(source: Source, known: set[str]) -> bool:
    """Skip categories that no object has and that are not `known`; False where there are none, or no other ones."""
    used = source.used
    unused = [number for number, name in source.categories.items() if name not in used and name not in known]
    if not unused or len(unused) == len(source.categories):
        return False
    for category_id in unused:
        source.repairs.add("category_unused", f"{category_id} {source.categories.pop(category_id)!r}")
    return True


def _matched(source: Source, class_map: ClassMap) -> ClassMap:
    ours, theirs = class_map.categories, source.categories
    names = set(theirs.values())
    unknown = sorted(names - set(ours.values()))
    by_name = not unknown and len(names) == len(theirs) and len(set(ours.values())) == len(ours)
    if not class_map.ids_known or (by_name and source.ids_known and not theirs.items() <= ours.items()):
        class_map = class_map.with_ids_of(theirs, source.name)
    elif by_name:
        source.renumber(ours)
    elif not source.ids_known:
        raise DataError(
            f"{source.name} has classes that the training data or checkpoint does not have: "
            f"{', '.join(map(repr, unknown[:6]))}. They are {', '.join(map(repr, list(ours.values())[:12]))}."
        )
    class_map.check_categories(source.categories, source.name)
    return class_map
