"""Convert a COCO dataset to Roboflow, YOLO or Pascal VOC, to check that a spec gives the same results with each.

    python scripts/convert_dataset.py demo/data demo/yolo --format yolo

reads `annotations/instances_{train,val,test}.json`, or `person_keypoints_{train,val,test}.json` if there are none, and
the images in the folders of the same names, and copies them. Numbers are written with full precision. Crowd regions
become difficult objects in VOC; YOLO does not support them. Keypoints are written to COCO, Roboflow and YOLO files; in
YOLO all classes have the same number of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

from rtdetr_tool.ops.keypoints import swaps_of_names

FORMATS = ("coco", "roboflow", "yolo", "voc")


def write_format(name: str, root: Path, splits: Mapping[str, dict], images: Mapping[str, Path]) -> Path:
    """Write a dataset to a new folder; `splits` are COCO dicts and `images` the image folders, both by split."""
    root.mkdir(parents=True)
    {"coco": _coco, "roboflow": _roboflow, "yolo": _yolo, "voc": _voc}[name](root, splits, images)
    return root


def as_boxes(content: dict) -> dict:
    """A COCO dict with the areas of the boxes, because the other formats store no areas."""
    annotations = [{**a, "area": a["bbox"][2] * a["bbox"][3]} for a in content["annotations"]]
    return {**content, "annotations": annotations}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _coco(root: Path, splits: Mapping[str, dict], images: Mapping[str, Path]) -> None:
    (root / "annotations").mkdir()
    for split, content in splits.items():
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            _copy(images[split] / image["file_name"], root / split / image["file_name"])


def _roboflow(root: Path, splits: Mapping[str, dict], images: Mapping[str, Path]) -> None:
    """Roboflow's layout, with the placeholder category 0 that groups the others, and `valid` for `val`."""
    for split, content in splits.items():
        folder = root / split.replace("val", "valid")
        folder.mkdir()
        categories = [{"id": 0, "name": "things", "supercategory": "none"}]
        categories += [{**category, "supercategory": "things"} for category in content["categories"]]
        (folder / "_annotations.coco.json").write_text(json.dumps({**content, "categories": categories}))
        for image in content["images"]:
            _copy(images[split] / image["file_name"], folder / image["file_name"])


def _yolo(root: Path, splits: Mapping[str, dict], images: Mapping[str, Path]) -> None:
    """YOLO as exported by Roboflow and Ultralytics: `train: ../train/images`, relative to the folder itself."""
    keypoints = next((c["keypoints"] for c in splits["train"]["categories"] if c.get("keypoints")), [])
    for split, content in splits.items():
        index = {c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
        (root / split / "labels").mkdir(parents=True)
        for image in content["images"]:
            _copy(images[split] / image["file_name"], root / split / "images" / image["file_name"])
            lines = []
            for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
                x, y, width, height = a["bbox"]
                shares = ((x + width / 2) / image["width"], (y + height / 2) / image["height"])
                shares += (width / image["width"], height / image["height"])
                if keypoints:
                    shares += _pose_values(a.get("keypoints") or [0] * 3 * len(keypoints), image)
                lines.append(" ".join([str(index[a["category_id"]]), *(f"{share:.17g}" for share in shares)]))
            if lines:  # images without objects have no label file
                (root / split / "labels" / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines) + "\n")
    names = [c["name"] for c in sorted(splits["train"]["categories"], key=lambda c: c["id"])]
    description = {split: f"../{split}/images" for split in splits} | {"nc": len(names), "names": names}
    if keypoints:
        description |= {
            "kpt_shape": [len(keypoints), 3],
            "flip_idx": list(swaps_of_names(keypoints) or []),
            "kpt_names": {index: list(keypoints) for index in range(len(names))},
        }
    (root / "data.yaml").write_text(yaml.safe_dump(description))


def _pose_values(points: list[float], image: Mapping) -> tuple[float, ...]:
    """COCO's x, y, visibility of each keypoint with coordinates as fractions."""
    sides = (image["width"], image["height"], 1)
    return tuple(value / sides[number % 3] for number, value in enumerate(points))


def _voc(root: Path, splits: Mapping[str, dict], images: Mapping[str, Path]) -> None:
    """The layout of the VOC challenge, with the order of classes in labels.txt."""
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    categories = sorted(splits["train"]["categories"], key=lambda c: c["id"])
    (root / "labels.txt").write_text("".join(f"{c['name']}\n" for c in categories))
    for split, content in splits.items():
        name_of = {c["id"]: c["name"] for c in content["categories"]}
        stems = []
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            stems.append(stem)
            _copy(images[split] / image["file_name"], root / "JPEGImages" / image["file_name"])
            objects = [
                voc_object(name_of[a["category_id"]], a["bbox"], a.get("iscrowd", 0))
                for a in content["annotations"]
                if a["image_id"] == image["id"]
            ]
            (root / "Annotations" / f"{stem}.xml").write_text(
                voc_xml(image["file_name"], image["width"], image["height"], objects)
            )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def voc_xml(file_name: str, width: int, height: int, objects: list[str]) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{escape(file_name)}</filename>{size}{''.join(objects)}</annotation>"


def voc_object(name: str, bbox: list[float], difficult: int = 0) -> str:
    """An object with a COCO box (x, y, width, height), converted to VOC's pixels, which are counted from 1."""
    x, y, width, height = bbox
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
    box = "".join(f"<{edge}>{value:.17g}</{edge}>" for edge, value in edges.items())
    return f"<object><name>{escape(name)}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a COCO dataset to another format.")
    parser.add_argument("source", type=Path, help="folder with annotations/instances_<split>.json")
    parser.add_argument("out", type=Path, help="new folder to write to")
    parser.add_argument("--format", choices=FORMATS, required=True)
    options = parser.parse_args(arguments)
    annotations = options.source / "annotations"
    kind = "instances" if any(annotations.glob("instances_*.json")) else "person_keypoints"
    files = {split: annotations / f"{kind}_{split}.json" for split in ("train", "val", "test")}
    splits = {split: json.loads(path.read_text()) for split, path in files.items() if path.is_file()}
    if "train" not in splits:
        parser.error(f"{files['train']} does not exist")
    if options.out.exists():
        parser.error(f"{options.out} already exists")
    write_format(options.format, options.out, splits, {split: options.source / split for split in splits})
    print(f"{options.out}: {', '.join(splits)} as {options.format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
