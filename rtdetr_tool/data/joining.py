"""Join the classes of several sources, and match those of a source with training data or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rtdetr_tool.class_names import confusable, spelling_hint
from rtdetr_tool.data.repairs import Repairs
from rtdetr_tool.data.source import Source
from rtdetr_tool.errors import DataError
from rtdetr_tool.messages import first_of
from rtdetr_tool.ops.classes import ClassMap


def add_categories(
    known: dict[int, str], categories: Mapping[int, str], repairs: Repairs, ids_known: bool = True
) -> None:
    """Add the categories of another file to `known`, joined by name, not by id.

    A new name keeps its id if the id is free. With `ids_known`, changed ids are counted in `repairs`; without it, the
    ids were assigned by this package and have no meaning.
    """
    id_of = {name: category_id for category_id, name in known.items()}
    next_id = max((*known, *(categories if ids_known else ())), default=-1) + 1
    for category_id, name in categories.items():
        joined = id_of.get(name)
        if joined is None:
            joined = category_id if ids_known and category_id not in known else next_id
            if joined == next_id:
                next_id += 1
            if joined != category_id and ids_known:
                change = f"{category_id} {name!r} (there {known[category_id]!r}) becomes {joined}"
                repairs.add("category_id_taken", change)
            known[joined] = name
        elif joined != category_id and ids_known:
            repairs.add("category_renumbered", f"{category_id} {name!r} becomes {joined}")


def needs_other_splits(sources: Sequence[Source]) -> bool:
    """Whether the classes depend on the other splits of the dataset."""
    return any(source.names_seen or source.groups for source in sources)


def decide_classes(sources: Sequence[Source], other_splits: Sequence[Source]) -> None:
    """Decide the classes of `sources` over all splits; `other_splits` are the sources of the other splits.

    A category that only groups others is skipped if no object of any split has it. If no file lists the classes, they
    are those of the objects of all splits.
    """
    all_sources = [*sources, *other_splits]
    used = set().union(*(source.used for source in all_sources))
    names = set().union(*(source.categories.values() for source in all_sources if source.names_seen))
    for source in sources:
        for category_id in sorted(source.groups):
            if source.categories[category_id] not in used:
                name = source.categories.pop(category_id)
                source.repairs.add("category_placeholder", f"{category_id} {name!r}")
        source.groups = set()
        if source.names_seen:
            categories = dict(enumerate(sorted(names)))
            source.renumber(categories)
            source.categories = categories


def joined_categories(sources: Sequence[Source]) -> dict[int, str]:
    """All categories of the sources, joined by name; renumbers each source.

    Sources with known ids come first, in their order.
    """
    known: dict[int, str] = {}
    for source in sorted(sources, key=lambda source: not source.ids_known):
        add_categories(known, source.categories, source.repairs, source.ids_known)
        source.renumber(known)
    report_confusable(sources)
    return known


def report_confusable(sources: Sequence[Source]) -> None:
    """Count categories with nearly the same name in the repairs of the last source that has one of them.

    Readers and joining compare names exactly, so that no objects of different classes are merged by mistake.
    """
    numbers = {name: category_id for source in sources for category_id, name in source.categories.items()}
    for group in confusable(numbers):
        last = [source for source in sources if set(group) & set(source.categories.values())][-1]
        last.repairs.add("category_confusable", " and ".join(f"{numbers[name]} {name!r}" for name in group))


def match_classes(source: Source, class_map: ClassMap) -> ClassMap:
    """`class_map` with the ids of `source`; a source that has only names takes over the ids of `class_map`.

    Raises:
        DataError: objects have a class that `class_map` does not have, or names and ids are in conflict.
    """
    try:
        matched = _match(source, class_map)
    except DataError:
        if not _drop_unused(source, set(class_map.categories.values())):
            raise
        matched = _match(source, class_map)
    return _with_poses(source, matched)


def _with_poses(source: Source, class_map: ClassMap) -> ClassMap:
    """`class_map` with the keypoints of `source`; DataError if it has other numbers of keypoints."""
    for entry in class_map.entries:
        pose = source.poses.get(entry.category_id)
        if pose is not None and entry.pose is not None and len(pose.names) != len(entry.pose.names):
            raise DataError(
                f"Category {entry.name!r} has {len(pose.names)} keypoints in {source.name}, but "
                f"{len(entry.pose.names)} in the training data or checkpoint; expected the same in both."
            )
    return class_map.with_poses(source.poses)


def _drop_unused(source: Source, known: set[str]) -> bool:
    """Drop categories that are neither used by an object nor `known`; False if there are none, or no others."""
    used = source.used
    unused = [number for number, name in source.categories.items() if name not in used and name not in known]
    if not unused or len(unused) == len(source.categories):
        return False
    for category_id in unused:
        source.repairs.add("category_unused", f"{category_id} {source.categories.pop(category_id)!r}")
    return True


def _match(source: Source, class_map: ClassMap) -> ClassMap:
    known, categories = class_map.categories, source.categories
    names = set(categories.values())
    unknown = sorted(names - set(known.values()))
    by_name = not unknown and len(names) == len(categories) and len(set(known.values())) == len(known)
    if not class_map.ids_known or (by_name and source.ids_known and not categories.items() <= known.items()):
        class_map = class_map.with_ids_of(categories, source.name)
    elif by_name:
        source.renumber(known)
    elif not source.ids_known:
        hint = spelling_hint(unknown, known.values())
        raise DataError(
            f"{source.name} has classes that the training data or checkpoint does not have: "
            f"{first_of(map(repr, unknown), 6)}{hint}. Its classes are {first_of(map(repr, known.values()), 12)}. "
            "Remove or rename these classes, or train with them."
        )
    class_map.check_categories(source.categories, source.name)
    return class_map
