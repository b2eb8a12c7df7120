"""Properties of a checkpoint's ONNX graph, and its latency in onnxruntime compared with PyTorch in the same run.

    .venv/bin/python scripts/bench_export.py results/train/rtdetr_model_best.pth [--opset 17] [--steps 30] [--threads 2]

Both process the same image alternately, in an order that changes with every step; medians and their ratio are printed.
PyTorch runs the detector as in evaluate: RepVGG fused, norms folded, channels_last.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from rich.console import Console
from rich.table import Table

from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.formats.comparison import compare_on
from rtdetr_tool.formats.export_model import ExportModel
from rtdetr_tool.formats.images import image_source_of, synthetic_images
from rtdetr_tool.formats.onnx.export import export_graph
from rtdetr_tool.formats.onnx.file import parsed
from rtdetr_tool.formats.onnx.runtime import OnnxRuntime
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.formats.torch.runtime import TorchRuntime
from rtdetr_tool.spec import read_spec


def alternate(sides: dict[str, Callable[[], object]], steps: int, warm_up: int = 3) -> dict[str, float]:
    """Median milliseconds of each side; the order alternates with every step."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(steps + warm_up):
        order = list(sides) if step % 2 else list(sides)[::-1]
        for name in order:
            start = time.perf_counter()
            sides[name]()
            if step >= warm_up:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--images", nargs="*", help="image folders (default: generated images)")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    opened = open_detector(options.checkpoint, read_spec(None))
    augmentation = opened.spec.dataset.augmentation
    size = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    source = image_source_of(
        opened.spec.dataset, options.images, augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio
    )
    images = synthetic_images(6, size) if source is None else source.load(6)

    model, eager = ExportModel(opened.detector).eval(), TorchRuntime(opened.detector, opened.class_map)
    columns = ("batch", "opset", "nodes", "MB", "seconds", "score difference", "box difference", "at batch")
    table = Table(*columns, title=f"{opened.spec.model.backbone}, {size[0]} x {size[1]}")
    sessions = {}
    for batch in (1, None):
        start = time.perf_counter()
        graph = export_graph(model, size, batch, options.opset)
        seconds = time.perf_counter() - start
        name = "dynamic" if batch is None else "static"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.onnx"
            onnx.save(graph, file)
            size_mb = file.stat().st_size / 1e6
            sessions[name] = OnnxRuntime(parsed(file, graph), threads=options.threads)
        for compared in (1, 3) if batch is None else (1,):
            difference = compare_on(images, compared, eager.predict, sessions[name].predict, 1e-3)
            table.add_row(
                name, str(options.opset), str(len(graph.graph.node)), f"{size_mb:.1f}", f"{seconds:.1f}",
                f"{difference.score:.1e}", f"{difference.box:.1e}", str(compared),
            )  # fmt: skip
    console = Console(width=120)
    console.print(table)

    image = images[:1]
    sides = {"torch": lambda: eager.predict(image)}
    sides |= {name: lambda session=session: session.predict(image) for name, session in sessions.items()}
    medians = alternate(sides, options.steps)
    for name, value in medians.items():
        ratio = "" if name == "torch" else f", {value / medians['torch']:.2f} of torch"
        console.print(f"{name}: {value:.1f} ms per image at batch 1{ratio} ({options.threads} threads)")


if __name__ == "__main__":
    main()
