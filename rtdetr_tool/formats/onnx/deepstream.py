"""Configuration files for NVIDIA DeepStream's `nvinfer`: the labels and a configuration for its TAO parser.

Keys and parser are those of TAO's own export. Unlike there, letterboxing, the number of detections and the threshold
are those of the model. `network-mode` is FP32, because the FP16 conversion of nvinfer does not keep nodes in FP32; use
an engine of `gen_trt_engine` for FP16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from rtdetr_tool.catalog import LAYOUTS
from rtdetr_tool.files import write_atomically
from rtdetr_tool.ops.classes import ClassMap

LABELS, CONFIG = "labels.txt", "nvdsinfer_config.yaml"
PARSER_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser_tao.so"
PARSER_FUNCTION = "NvDsInferParseCustomDDETRTAO"
FP32, DETECTOR, NO_CLUSTERING = 0, 0, 4
COLOR_FORMATS = {3: 0, 1: 2}  # channels -> RGB or gray


def write_side_files(
    onnx_file: Path,
    class_map: ClassMap,
    size: tuple[int, int],
    preserve_aspect_ratio: bool,
    num_select: int,
    threshold: float,
    channels: int = 3,
) -> tuple[Path, Path]:
    """`labels.txt` and `nvdsinfer_config.yaml` next to the ONNX file; `size` is (height, width) of the input."""
    labels, names = label_lines(class_map), LAYOUTS["tao"].outputs
    config = {
        "property": {
            "gie-unique-id": 1,
            "onnx-file": onnx_file.name,
            "labelfile-path": LABELS,
            "net-scale-factor": 1 / 255,
            "offsets": "0;0;0",
            "infer-dims": f"{channels};{size[0]};{size[1]}",
            "model-color-format": COLOR_FORMATS[channels],
            "network-type": DETECTOR,
            "network-mode": FP32,
            "cluster-mode": NO_CLUSTERING,
            "num-detected-classes": len(labels),
            "maintain-aspect-ratio": int(preserve_aspect_ratio),
            "symmetric-padding": 0,
            "output-blob-names": ";".join([names["logits"], names["boxes"]]),
            "output-tensor-meta": 1,
            "workspace-size": 1048576,
            "parse-bbox-func-name": PARSER_FUNCTION,
            "custom-lib-path": PARSER_LIBRARY,
        },
        "class-attrs-all": {"pre-cluster-threshold": threshold, "topk": num_select},
    }
    paths = onnx_file.parent / LABELS, onnx_file.parent / CONFIG
    write_atomically(paths[0], "".join(f"{label}\n" for label in labels))
    write_atomically(paths[1], yaml.safe_dump(config, sort_keys=True))
    return paths


def label_lines(class_map: ClassMap) -> Sequence[str]:
    """One line per class output of the network; outputs without a class are `background` (0) or `unused_i`."""
    return [
        " ".join(name.split()) if name is not None else "background" if index == 0 else f"unused_{index}"
        for index, name in enumerate(class_map.names)
    ]
