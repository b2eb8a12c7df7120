"""The modules of a detector that the nodes of its ONNX graph come from, as users name them in patterns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from onnx import NodeProto

CLASSES = {"Conv": "Conv2d", "MatMul": "Linear", "Gemm": "Linear"}
ON_MAPS = "value_proj"  # a linear layer whose nodes are convolutions (`ops.layers.PointwiseLinear`)
ROOTS = ("", "model.", "model.model.")  # paths in our networks, and as TAO's modules have them


def module_path(node_name: str) -> str:
    """`/detector/encoder/fpn_blocks.0/bottlenecks/bottlenecks.1/Conv` -> `encoder.fpn_blocks.0.bottlenecks.1`.

    The exporter names a node by the modules that it is inside of, and a member of a list by the list and its index.
    """
    parts: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(part)
    return ".".join(parts).removeprefix("detector.")


def class_of(node: NodeProto) -> str:
    """The class of the node's module; for other operators than layers the operator."""
    if node.op_type == "Conv" and _first_call(module_path(node.name)).endswith(f".{ON_MAPS}"):
        return CLASSES["MatMul"]
    return CLASSES.get(node.op_type, node.op_type)


def _first_call(path: str) -> str:
    """The exporter names the second call of a module `name_1`."""
    return re.sub(r"_\d+(?=\.|$)", "", path)


def matches(pattern: str, node: NodeProto) -> bool:
    """Whether a pattern (`*`, `?`) matches the path of the node's module, its class, or the node's own name."""
    path = module_path(node.name)
    paths = dict.fromkeys((path, _first_call(path)))
    names = [node.name, class_of(node), *(root + each for each in paths for root in ROOTS if each)]
    return any(fnmatchcase(name, pattern) for name in names)


def unmatched(patterns: Iterable[str], nodes: Mapping[str, NodeProto]) -> dict[str, list[str]]:
    """Patterns that match none of the nodes, with module paths that are similar."""
    paths = list(dict.fromkeys([*map(module_path, nodes), *CLASSES.values()]))
    return {
        pattern: difflib.get_close_matches(pattern.replace("*", ""), paths, n=3, cutoff=0.3)
        for pattern in patterns
        if not any(matches(pattern, node) for node in nodes.values())
    }
