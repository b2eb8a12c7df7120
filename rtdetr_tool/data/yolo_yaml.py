"""The `data.yaml` of a YOLO data set: class names, and where the images of each split are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rtdetr_tool.data.source import read_bytes, refuse_link_out, spellings
from rtdetr_tool.errors import DataError, MissingSplit

logger = logging.getLogger(__name__)

LARGEST_YAML = 2 << 20  # bytes: 100,000 classes
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class Description:
    """What a `data.yaml` says. Paths lead out of the folder only where the user named the yaml file itself."""

    path: str
    root: str  # what the paths of the splits begin at
    names: list[str]
    has_keypoints: bool
    splits: dict[str, list[str]] = field(default_factory=dict)  # as written: folders, or files that list images
    confined: bool = True

    def entries(self, split: str) -> list[str]:
        for name in spellings(split):
            if name in self.splits:
                return self.splits[name]
        known = ", ".join(self.splits) or "none"
        raise MissingSplit(
            f"{self.path} has no split {split!r}; its splits are: {known}. Name one of them as the source's `split`, "
            f"or add a line `{split}: folder`."
        )

    def allows(self, path: str) -> bool:
        """Whether a path may be read: inside of the folder, or the user named the file that says it."""
        folder = os.path.dirname(os.path.abspath(self.path))
        return not self.confined or os.path.commonpath([folder, os.path.abspath(path)]) == folder

    def resolved(self, text: str, starts: Iterable[str]) -> str:
        """The first existing file or folder that `text` can mean, seen from `starts`.

        Exports of Roboflow say `../train/images` of a folder beside the yaml; what leads to nothing is tried without
        the dots.
        """
        plain = text.replace("\\", "/") if os.sep == "/" else text
        inside = plain
        while inside.startswith("../"):
            inside = inside[3:]
        meant = dict.fromkeys((plain, inside))
        places = [os.path.normpath(os.path.join(start, part)) for part in meant for start in dict.fromkeys(starts)]
        allowed = [path for path in places if self.allows(path)]
        for path in allowed:
            if os.path.exists(path):
                return path
        if not allowed:
            raise DataError(
                f"{self.path} names {text!r}, which is outside of the data set's folder. Only what lies in "
                f"{os.path.dirname(self.path) or '.'} is read; if you trust the file, name it itself as dataset_dir."
            )
        raise DataError(f"{self.path} names {text!r}, which does not exist (looked for {', '.join(allowed)}).")


def describe(place: str) -> Description:
    """Read and check a `data.yaml`."""
    place = os.path.normpath(place)
    path = yaml_of(place)
    if not path:
        raise DataError(f"{place} has no YOLO data set: there is no {', '.join(YAML_NAMES)} in it.")
    confined = os.path.isdir(place)
    if confined:
        refuse_link_out(path, place, "The file")
    content = _load_yaml(path)
    folder = os.path.dirname(path) or "."
    root = folder
    stated = content.get("path")
    if isinstance(stated, str) and stated.strip():
        inside = Description(path, folder, [], False, confined=confined)
        candidate = os.path.normpath(os.path.join(folder, stated.strip()))
        if inside.allows(candidate) and os.path.isdir(candidate):
            root = candidate
        else:
            logger.info("%s: `path: %s` is not followed; its folders are looked for in %s", path, stated, folder)
    if content.get("download"):
        logger.info("%s: `download` is ignored; nothing is downloaded or run", path)
    splits = {
        name: [text.strip() for text in ([value] if isinstance(value, str) else value)]
        for split in ("train", "val", "test")
        for name in spellings(split)
        if _is_path_or_paths(value := content.get(name))
    }
    return Description(path, root, _names(content, path), "kpt_shape" in content, splits, confined)


def yaml_of(place: str) -> str:
    if os.path.isfile(place) and place.lower().endswith((".yaml", ".yml")):
        return place
    return next((path for name in YAML_NAMES if os.path.isfile(path := os.path.join(place, name))), "")


def _load_yaml(path: str) -> dict[str, Any]:
    """Every scalar as the text that stands there: a class may be called `no` or `007`."""
    data = read_bytes(path, "The file", LARGEST_YAML)
    try:
        content = yaml.load(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not the description of a YOLO data set: it needs `names`, `train` and `val`.")
    return content


def _names(content: Mapping[str, Any], path: str) -> list[str]:
    """Class names by index, from a list or a mapping `index: name`."""
    names = content.get("names")
    if isinstance(names, dict):
        expected = [str(index) for index in range(len(names))]
        if sorted(map(str, names)) != sorted(expected):
            raise DataError(
                f"The indices of `names` in {path} are {', '.join(map(str, list(names)[:8]))}; they must be 0 to "
                f"{len(names) - 1}, each once."
            )
        names = [names[index] for index in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} must have `names`: a list of class names, or a mapping index: name.")
    names = [name.strip() for name in names]
    count = content.get("nc")
    if isinstance(count, str) and count.strip() != str(len(names)):
        raise DataError(f"{path} contradicts itself: nc is {count}, but `names` has {len(names)} entries.")
    return names


def _is_path_or_paths(value: Any) -> bool:
    entries = [value] if isinstance(value, str) else value
    return isinstance(entries, list) and bool(entries) and all(isinstance(e, str) and e.strip() for e in entries)
