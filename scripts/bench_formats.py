"""Size, difference from PyTorch, mAP and latency of a checkpoint in every format, as a table in docs/deploy.md.

    python scripts/bench_formats.py measure rows.json --name demo -e specs/demo.yaml --checkpoint best.pth
    python scripts/bench_formats.py table rows.json [--write]

`measure` exports the checkpoint to every format whose packages are installed, scores each file on the validation data
of the spec, and adds the rows to the file. Extras that do not fit into one environment (TFLite requires another
PyTorch) are measured one after the other into the same file; `--only` selects formats.

Latency is the processor time of the model alone, at batch 1 with one thread: on a machine that others use as well, the
time that passes depends on them. On a machine of one's own, both are equal for one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rtdetr_tool.cli import main as rtdetr
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.files import write_atomically
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.opening import open_detector, open_model
from rtdetr_tool.formats.table import FORMATS, FULL, exported_formats, size_of
from rtdetr_tool.spec import read_spec
from rtdetr_tool.workflows.detection import score_split

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
START, END = "<!-- formats: written by scripts/bench_formats.py -->", "<!-- end of formats -->"
PACKAGES = ("torch", "onnxruntime", "openvino", "litert-torch", "ai-edge-litert", "executorch", "coremltools", "MNN",
            "tensorrt-rtx")  # fmt: skip
LIMITS = {
    "torch": "needs PyTorch",
    "onnx": "",
    "tflite": "no post-processing",
    "openvino": "no post-processing; only the CPU was tried",
    "coreml": "no post-processing; Apple's systems only, not run: the program was evaluated with PyTorch",
    "executorch": "no post-processing; XNNPACK only",
    "mnn": "no post-processing; only the CPU was tried",
    "tensorrt": "built by TensorRT-RTX for SM89, not run: no GPU",
}


@dataclass(frozen=True)
class Row:
    """One file of one dataset; None is not measured."""

    dataset: str
    format: str
    precision: str
    batch: str
    megabytes: float
    difference: str
    map: float | None = None
    map50: float | None = None
    milliseconds: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.dataset, self.format, self.precision


class Measuring:
    """Exports a checkpoint into a temporary folder and measures the files."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._name, self._checkpoint, self._folder = options.name, str(Path(options.checkpoint).resolve()), folder
        self._spec, self._overrides, self._steps = options.spec, options.set, options.steps

    def rows(self, names: list[str]) -> Iterator[Row]:
        if "torch" in names:
            for precision, title in (("fp32", FULL), ("bf16", "BF16")):
                yield replace(
                    self._row("torch", title, "any", self._checkpoint, "", precision), megabytes=self.weights()
                )
        for name in names:
            if name in ("torch", "tensorrt"):
                continue
            for precision in FORMATS[name].precisions:
                content = self.export(name, precision)
                yield self._row(name, precision, str(content["batch"]), content[f"{name}_file"], change_of(content))
        graph = str(self._folder / "model.onnx")
        if "onnx" in names:
            yield from self._low_precision_graphs(graph)
        if "tensorrt" in names:
            self.export("onnx", FULL)
            yield from self._engines(graph)

    def weights(self) -> float:
        """MB of the weights; a checkpoint also has the state of the optimizer."""
        detector = open_detector(self._checkpoint, read_spec(self._spec, self._overrides, None)).detector
        return sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values()) / 1e6

    def export(self, name: str, precision: str) -> dict[str, Any]:
        """Write `model.<suffix>`; the content of its `export.json`."""
        row, target = FORMATS[name], self._folder / f"model{FORMATS[name].suffix}"
        settings = [f"export.checkpoint={self._checkpoint}", f"export.onnx_file={target}", f"export.format={name}"]
        if precision != FULL:
            settings += [f"export.{name}.data_type={precision}", f"export.{name}.max_cost=1"]
        self._run("export", [*settings, "export.overwrite=true", "export.on_cpu=true"])
        content: dict[str, Any] = json.loads((self._folder / "export" / "export.json").read_text())
        return {"batch": "1" if not row.dynamic_batch else "dynamic", **content}

    def _low_precision_graphs(self, graph: str) -> Iterator[Row]:
        """FP16 as `gen_trt_engine` writes it, INT8 as `quantize` does."""
        self._engine(graph, "FP16", "none")
        (half,) = (self._folder / "gen_trt_engine").rglob("*_fp16.onnx")
        yield self._row("onnx", "FP16", "dynamic", str(half), "")
        self._run(
            "quantize", [f"quantize.model_path={graph}", "quantize.mode=static_ptq", "quantize.max_score_drop=1.0"]
        )
        quantized = self._folder / "quantize" / "quantized_model.onnx"
        yield self._row("onnx", "INT8", "dynamic", str(quantized), "")

    def _engines(self, graph: str) -> Iterator[Row]:
        for precision in (FULL, "FP16"):
            engine = self._engine(graph, precision, "tensorrt_rtx")
            yield Row(self._name, "tensorrt", precision, "1 to 8", engine.stat().st_size / 1e6, "")

    def _engine(self, graph: str, precision: str, backend: str) -> Path:
        target = self._folder / "model.engine"
        settings = [f"onnx_file={graph}", f"trt_engine={target}", f"backend={backend}", "max_score_drop=1.0"]
        settings += [f"tensorrt.data_type={precision}", "tensorrt.max_batch_size=8", "compute_capability=[SM89]"]
        self._run("gen_trt_engine", [f"gen_trt_engine.{setting}" for setting in settings])
        return target

    def _run(self, command: str, settings: list[str]) -> None:
        code = rtdetr([command, "-e", self._spec, "-r", str(self._folder), *self._overrides, *settings])
        if code != 0:
            raise RtdetrError(f"`rtdetr {command}` ended with {code}")

    def _row(self, name: str, title: str, batch: str, path: str, change: str, precision: str = "fp32") -> Row:
        """Score a file on the validation data and time it."""
        size = size_of(path) / 1e6
        if name == "coreml":
            return Row(self._name, name, title, batch, size, change)
        loaded = read_spec(self._spec, [*self._overrides, f"evaluate.checkpoint={path}"], "evaluate")
        model = open_model(path, loaded, torch.device("cpu"), precision=precision)
        result = score_split(model, "val", 0.0).evaluator.compute()
        model = open_model(path, loaded, torch.device("cpu"), precision=precision)  # for batch 1 from the start
        sides = tuple(model.spec.dataset.augmentation.eval_spatial_size)
        image = torch.rand(1, model.spec.model.num_channels, *sides, generator=torch.Generator().manual_seed(0))
        latency = processor_milliseconds(model.runtime, image, self._steps)
        return Row(self._name, name, title, batch, size, change, result.map, result.map50, latency)


def processor_milliseconds(runtime: Runtime, image: torch.Tensor, steps: int) -> float:
    """Median processor time of `predict`, in milliseconds."""
    times = []
    for _ in range(steps + 3):
        start = time.process_time()
        runtime.predict(image)
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times[3:])


def change_of(content: dict[str, Any]) -> str:
    """What an export states about its difference from PyTorch."""
    if "cost" in content:
        return f"detections {100 * content['cost']:.1f} %"
    worst = {name: max(row[name] for row in content["differences"]) for name in ("score", "box")}
    return f"score {worst['score']:.0e}, box {worst['box']:.0e}"


# The table


def table(content: dict[str, Any]) -> str:
    """The table of all rows, one line per format and precision, and a line about the machine."""
    rows = [Row(**row) for row in content["rows"]]
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    by_key = {row.key: row for row in rows}
    scores = " | ".join(f"mAP, {name}" for name in datasets)
    lines = [
        f"| format | suffix | precision | batch | MB | difference from PyTorch | {scores} | CPU ms | limits |",
        "|---|---|---|---|---|---|" + "---|" * len(datasets) + "---|---|",
    ]
    for name, row in FORMATS.items():
        for precision in dict.fromkeys(row.precision for row in rows if row.format == name):
            found = [by_key.get((dataset, name, precision)) for dataset in datasets]
            shown = next(each for each in found if each is not None)
            cells = [row.title, f"`{row.suffix}`", precision, shown.batch, f"{shown.megabytes:.1f}"]
            cells += [shown.difference or "–", *(_score(each) for each in found)]
            latency = "–" if shown.milliseconds is None else f"{shown.milliseconds:.1f}"
            lines.append("| " + " | ".join([*cells, latency, LIMITS[name] or "–"]) + " |")
    return "\n".join([*lines, "", content["machine"], "", *content["runs"].values()])


def _score(row: Row | None) -> str:
    return "–" if row is None or row.map is None else f"{row.map:.4f}"


def machine() -> str:
    """CPU, system and versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    return f"{model}, {torch.get_num_threads()} thread, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    path = Path(options.rows)
    content = json.loads(path.read_text()) if path.is_file() else {"rows": [], "versions": {}, "runs": {}}
    installed = ["torch", *(row.name for row in exported_formats() if _is_installed(row.name))]
    installed += ["tensorrt"] if find_spec("tensorrt_rtx") else []
    kept = {Row(**row).key: row for row in content["rows"]}
    with tempfile.TemporaryDirectory() as folder:
        for row in Measuring(options, Path(folder)).rows(options.only or installed):
            kept[row.key] = asdict(row)
            print(row, flush=True)
            used = content["versions"] | {name: text for name, text in versions().items() if name != "torch"}
            content |= {"rows": list(kept.values()), "versions": used | {"torch": torch.__version__}}
            content["machine"] = f"{machine()}; " + ", ".join(f"{name} {text}" for name, text in used.items()) + "."
            content["runs"][options.name] = f"{options.name}: {options.about}."
            write_atomically(path, json.dumps(content, indent=1) + "\n")


def _is_installed(name: str) -> bool:
    try:
        FORMATS[name].to_export.require(name)
        return True
    except RtdetrError:
        return False


def write(content: dict[str, Any], page: Path = PAGE) -> None:
    """Replace what is between the two marks of the page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    write_atomically(page, f"{before}{START}\n\n{table(content)}\n\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring, showing = commands.add_parser("measure"), commands.add_parser("table")
    for command in (measuring, showing):
        command.add_argument("rows", help="JSON file of the rows")
    measuring.add_argument("--name", required=True, help="name of the dataset")
    measuring.add_argument("--about", default="", help="what was trained and how, for the text below the table")
    measuring.add_argument("-e", "--spec", required=True)
    measuring.add_argument("--checkpoint", required=True)
    measuring.add_argument("--only", action="append", choices=list(FORMATS), help="a format (default: all installed)")
    measuring.add_argument("--steps", type=int, default=20)
    measuring.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of the spec")
    showing.add_argument("--write", action="store_true", help="write the table into docs/deploy.md")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options)
        return
    content = json.loads(Path(options.rows).read_text())
    write(content) if options.write else print(table(content))


if __name__ == "__main__":
    main()
