"""CPU time of `rtdetr evaluate` beyond the model: start-up, loading, postprocessing, metrics and report.

    python scripts/bench_evaluate.py IMAGES ANNOTATIONS.json [--size 640]

Evaluates an RT-DETR R18 with random weights, which returns 300 detections per image with scores from 0 to 1, in one
thread and without loader processes. Times are processor time, because machines are shared; start-up includes imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FIXED, MODEL, AROUND = "start-up", "model", "preprocess and postprocess"
STEPS = (FIXED, "decode and resize", MODEL, AROUND, "collect", "metrics", "predictions.json", "report")


class Stopwatch:
    """CPU seconds of each step since the start of the process; `lap` ends a step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self.last = 0.0

    def lap(self, step: str) -> None:
        now = time.process_time()
        self.seconds[step] += now - self.last
        self.last = now


class TimedRuntime:
    """A runtime that adds the time of `predict` to the stopwatch."""

    def __init__(self, runtime: Any, stopwatch: Stopwatch) -> None:
        self._runtime, self._stopwatch = runtime, stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def predict(self, images: Any) -> Any:
        self._stopwatch.lap(AROUND)
        predictions = self._runtime.predict(images)
        self._stopwatch.lap(MODEL)
        return predictions


def timed(loader: Iterable[Any], stopwatch: Stopwatch) -> Iterator[Any]:
    for batch in loader:
        stopwatch.lap("decode and resize")
        yield batch
        stopwatch.lap(AROUND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", help="folder of images")
    parser.add_argument("annotations", help="COCO file of the images")
    parser.add_argument("--size", type=int, default=640, help="side of the network's input (default 640)")
    parser.add_argument("--spec", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.spec:
        print(json.dumps(evaluate(options.spec)))
        return
    with tempfile.TemporaryDirectory() as folder:
        spec = write_files(Path(folder), options)
        command = [sys.executable, __file__, options.images, options.annotations, "--spec", str(spec)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    show(*json.loads(run.stdout.splitlines()[-1]))


def write_files(folder: Path, options: argparse.Namespace) -> Path:
    """A checkpoint with random weights and a spec that evaluates it; returns the spec's path."""
    import torch

    from rtdetr_tool.checkpoints.io import save_checkpoint
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.models.build import build_detector
    from rtdetr_tool.spec import spec_from_dict, spec_to_dict

    categories = json.loads(Path(options.annotations).read_text())["categories"]
    content = {
        "results_dir": str(folder / "results"),
        "model": {"backbone": "resnet_18"},
        "dataset": {
            "test_data_sources": {"image_dir": options.images, "json_file": options.annotations},
            "num_classes": max(category["id"] for category in categories) + 1,
            "batch_size": 1,
            "workers": 0,
            "augmentation": {"eval_spatial_size": [options.size, options.size]},
        },
        "evaluate": {"checkpoint": str(folder / "model.pth")},
    }
    spec = spec_from_dict(content)
    torch.manual_seed(0)
    detector = build_detector(spec.model, spec.dataset.num_classes)
    for head in detector.decoder.dec_score_head:
        torch.nn.init.normal_(head.weight, std=0.3)
    weights = {f"model.model.{name}": tensor for name, tensor in detector.state_dict().items()}
    classes = [{"index": entry["id"], "id": entry["id"], "name": entry["name"]} for entry in categories]
    meta = build_metadata("benchmark", spec_to_dict(spec), classes)
    save_checkpoint({"state_dict": weights, "tao_model": "rtdetr", "rtdetr_tool": meta}, folder / "model.pth")
    (folder / "spec.json").write_text(json.dumps(content))
    return folder / "spec.json"


def evaluate(path: str) -> tuple[dict[str, float], int, int]:
    """The steps of `commands.evaluate`: seconds by step, the number of images and that of detections."""
    from rtdetr_tool.files import write_atomically
    from rtdetr_tool.spec import read_spec

    loaded = read_spec(path, command="evaluate")
    import torch

    from rtdetr_tool.data.build import build_eval_dataset, build_loader
    from rtdetr_tool.formats.detection_loop import detect
    from rtdetr_tool.workflows.detection import evaluator_for, open_for

    torch.set_num_threads(1)
    stopwatch = Stopwatch()
    model = open_for(loaded, loaded.spec.evaluate).model
    spec, runtime = model.spec, TimedRuntime(model.runtime, stopwatch)
    dataset = build_eval_dataset(spec.dataset, "test", class_map=model.runtime.class_map, kind=spec.model.predicts)
    evaluator = evaluator_for("test", dataset, spec)
    loader = build_loader(dataset, spec.dataset, training=False)
    stopwatch.lap(FIXED)
    for batch, detections in detect(runtime, timed(loader, stopwatch), spec.model.num_select):
        stopwatch.lap(AROUND)
        evaluator.update([target.image_id for target in batch.targets], detections)
        stopwatch.lap("collect")
    result = evaluator.compute()
    stopwatch.lap("metrics")
    folder = Path(path).parent
    write_atomically(folder / "predictions.json", evaluator.results_text() + "\n")
    stopwatch.lap("predictions.json")
    from rtdetr_tool.reports.run import write_evaluation_report

    write_evaluation_report(folder, "model.pth", evaluator, result, dataset, {})
    stopwatch.lap("report")
    return stopwatch.seconds, result.images, result.detections


def show(seconds: dict[str, float], images: int, detections: int) -> None:
    """Print a Markdown table; shares are of the time without start-up."""
    total = sum(value for step, value in seconds.items() if step != FIXED)
    print(f"{images} images, {detections} detections; CPU time of one thread\n")
    print("| step | ms per image | share |\n|---|---|---|")
    for step, value in seconds.items():
        if step != FIXED:
            print(f"| {step} | {1000 * value / images:.2f} | {100 * value / total:.1f} % |")
    beyond = total - seconds[MODEL]
    print(f"| beyond the model | {1000 * beyond / images:.2f} | {100 * beyond / total:.1f} % |")
    print(f"\nstart-up: {seconds[FIXED]:.1f} s, once")


if __name__ == "__main__":
    main()
