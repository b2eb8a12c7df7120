"""The `data.yaml` of a YOLO dataset: class names, keypoints, and the image folders of each split."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import yaml

from rtdetr_tool.data.source import read_bytes, refuse_link_out, spellings
from rtdetr_tool.data.yolo_pose import YoloPose, read_pose
from rtdetr_tool.errors import DataError, MissingData, MissingSplit
from rtdetr_tool.messages import first_of

logger = logging.getLogger(__name__)

LARGEST_YAML = 2 << 20  # bytes; about 100,000 classes
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class Description:
    """Content of a `data.yaml`. Paths may leave the folder only if the user specified the YAML file itself."""

    path: str
    root: str  # the paths of splits are relative to it
    names: list[str]
    pose: YoloPose | None
    splits: dict[str, list[str]] = field(default_factory=dict)  # as written: folders, or lists of images
    confined: bool = True

    def entries(self, split: str) -> list[str]:
        for name in spellings(split):
            if name in self.splits:
                return self.splits[name]
        known = ", ".join(self.splits) or "none"
        raise MissingSplit(
            f"{self.path} has no split {split!r}; expected one of its splits: {known}. Set `split` of the source to "
            f"one of them, or add a line `{split}: folder`."
        )

    def allows(self, path: str) -> bool:
        """Whether a path may be read: it is inside the folder, or the user specified the YAML file itself."""
        folder = os.path.dirname(os.path.abspath(self.path))
        return not self.confined or os.path.commonpath([folder, os.path.abspath(path)]) == folder

    def resolved(self, text: str, starts: Iterable[str]) -> str:
        """The first existing file or folder for `text`, relative to `starts`.

        Roboflow's exports write `../train/images` for a folder next to the YAML file, so a path that does not exist is
        also tried without the leading dots.
        """
        plain = text.replace("\\", "/") if os.sep == "/" else text
        inside = plain
        while inside.startswith("../"):
            inside = inside[3:]
        parts = dict.fromkeys((plain, inside))
        candidates = [os.path.normpath(os.path.join(start, part)) for part in parts for start in dict.fromkeys(starts)]
        allowed = [path for path in candidates if self.allows(path)]
        for path in allowed:
            if os.path.exists(path):
                return path
        if not allowed:
            raise DataError(
                f"{self.path} has the path {text!r}, which is outside the dataset; expected a path in "
                f"{os.path.dirname(self.path) or '.'}. If you trust the file, set dataset_dir to the file itself."
            )
        raise MissingData(f"{self.path} has the path {text!r}, which does not exist (tried {', '.join(allowed)}).")


def describe(place: str) -> Description:
    """Read and validate a `data.yaml`."""
    place = os.path.normpath(place)
    path = yaml_of(place)
    if not path:
        raise DataError(f"{place} is not a YOLO dataset; expected one of {', '.join(YAML_NAMES)} in it.")
    confined = os.path.isdir(place)
    if confined:
        refuse_link_out(path, place, "The file")
    content = _load_yaml(path)
    folder = os.path.dirname(path) or "."
    root = folder
    given_root = content.get("path")
    if isinstance(given_root, str) and given_root.strip():
        inside = Description(path, folder, [], None, confined=confined)
        candidate = os.path.normpath(os.path.join(folder, given_root.strip()))
        if inside.allows(candidate) and os.path.isdir(candidate):
            root = candidate
        else:
            logger.info("%s: ignoring `path: %s`; using %s", path, given_root, folder)
    if content.get("download"):
        logger.info("%s: ignoring `download`", path)
    splits = {
        name: [text.strip() for text in ([value] if isinstance(value, str) else value)]
        for split in ("train", "val", "test")
        for name in spellings(split)
        if _is_path_or_paths(value := content.get(name))
    }
    names = _names(content, path)
    return Description(path, root, names, read_pose(content, names, path), splits, confined)


def yaml_of(place: str) -> str:
    if os.path.isfile(place) and place.lower().endswith((".yaml", ".yml")):
        return place
    return next((path for name in YAML_NAMES if os.path.isfile(path := os.path.join(place, name))), "")


def _load_yaml(path: str) -> dict[str, Any]:
    """Load YAML with all scalars as text, because a class may be called `no` or `007`."""
    data = read_bytes(path, "The file", LARGEST_YAML)
    try:
        content = yaml.load(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason} at byte {error.start}).") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not describe a YOLO dataset; expected `names`, `train` and `val`.")
    return content


def _names(content: Mapping[str, Any], path: str) -> list[str]:
    """Class names by index, from a list or a mapping `index: name`."""
    names = content.get("names")
    if isinstance(names, dict):
        expected = [str(index) for index in range(len(names))]
        if sorted(map(str, names)) != sorted(expected):
            raise DataError(
                f"The indices of `names` in {path} are {first_of(names, 8)}; expected 0 to {len(names) - 1}, each once."
            )
        names = [names[index] for index in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} has no valid `names`; expected a list of class names, or a mapping index: name.")
    names = [name.strip() for name in names]
    count = content.get("nc")
    if isinstance(count, str) and count.strip() != str(len(names)):
        raise DataError(f"nc is {count} in {path}, but `names` has {len(names)} entries. Correct one of them.")
    return names


def _is_path_or_paths(value: Any) -> TypeGuard[str | list[str]]:
    entries = [value] if isinstance(value, str) else value
    return isinstance(entries, list) and bool(entries) and all(isinstance(e, str) and e.strip() for e in entries)
