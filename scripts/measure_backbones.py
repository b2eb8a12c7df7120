"""Measure the backbones of the catalog: parameters, channels, one training step, difference of the ONNX graph.

    python scripts/measure_backbones.py [NAME ...] [--size 320] [--batch 2] [--steps 2] [--lines FILE]

Each backbone is measured in a separate process. A step is forward, loss, backward and AdamW of the default detector
with this backbone and 80 classes on random images: seconds of one CPU core (CPU time, so that other load matters
little), the minimum of the steps after the first. The ONNX difference is the largest one of any map of the backbone, in
eval mode with random weights, relative to the largest value of that map: PyTorch against onnxruntime, with a batch of 3
after tracing with 2. `--lines` stores one line of JSON per backbone; backbones in the file are not measured again. The
table is that of docs/backbones.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rtdetr_tool.catalog import BACKBONES

OPSET = 17


def measure(name: str, size: int, batch: int, steps: int) -> dict:
    """One row of the table."""
    import torch

    from rtdetr_tool.models.build import build_backbone, build_detector
    from rtdetr_tool.spec import ModelSpec

    torch.manual_seed(0)
    spec = ModelSpec(backbone=name)
    backbone = build_backbone(spec)
    row = {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "channels": list(backbone.channels),
        "strides": list(backbone.strides),
    }
    disturb(backbone)
    row["onnx"] = onnx_difference(backbone, size)
    del backbone
    row["seconds"] = training_step(build_detector(spec, 80), spec, size, batch, steps)
    return row


def disturb(backbone) -> None:
    """Randomize norms and scales, so that every tensor has an effect."""
    import torch

    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)


def training_step(detector, spec, size: int, batch: int, steps: int) -> float:
    """CPU seconds of one step, the minimum without the first."""
    import torch

    from rtdetr_tool.losses.build import build_criterion
    from rtdetr_tool.ops.structures import Target

    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.2]])  # cxcywh 0..1
    targets = [Target(boxes, torch.tensor([0, 2]), 0, (size, size), (float(size), float(size)))] * batch
    images = torch.rand(batch, 3, size, size).to(memory_format=torch.channels_last)
    detector = detector.train().to(memory_format=torch.channels_last)
    criterion, optimizer = build_criterion(spec), torch.optim.AdamW(detector.parameters(), lr=1e-4)
    times = []
    for _ in range(steps + 1):
        start = time.process_time()
        loss = criterion(detector(images, targets), targets)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is {loss.item()}")
    return min(times[1:])


def onnx_difference(backbone, size: int) -> float:
    """Largest relative difference of a map, PyTorch with its norms against onnxruntime with folded ones."""
    import onnxruntime
    import torch

    images = torch.rand(3, 3, size, size)
    names = [f"map_{stride}" for stride in backbone.strides]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = [level.numpy() for level in backbone.eval()(images)]
        backbone.fold_batch_norms()
        path = os.path.join(folder, "backbone.onnx")  # a file, because a protobuf message is limited to 2 GiB
        torch.onnx.export(
            backbone, (images[:2],), path, input_names=["inputs"], output_names=names, opset_version=OPSET,
            dynamic_axes={name: {0: "batch"} for name in ("inputs", *names)}, dynamo=False,
        )  # fmt: skip
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        actual = session.run(names, {"inputs": images.numpy()})
    pairs = zip(actual, expected, strict=True)
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)


def markdown(names: list[str], rows: dict[str, dict]) -> str:
    """The table; values that were not measured come from the catalog, or are a dash."""
    lines = [
        "| backbone | parameters (M) | channels at stride 8, 16, 32 | step (core s) | ONNX difference | "
        "public weights | license |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row, known = rows.get(name, {}), BACKBONES.get(name)
        parameters = row.get("parameters") or (known.parameters if known else 0)
        channels = row.get("channels") or (known.channels[1:] if known else ())
        cells = (
            name,
            f"{parameters / 1e6:.2f}",
            ", ".join(map(str, channels)),
            f"{row['seconds']:.1f}" if "seconds" in row else "-",
            f"{row['onnx']:.0e}" if "onnx" in row else "-",
            (known and known.weights) or "-",
            (known and known.license) or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names in the catalog or timm/NAME (default: the whole catalog)")
    for name, default in (("size", 320), ("batch", 2), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lines", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(measure(arguments.names[0], arguments.size, arguments.batch, arguments.steps)))
        return
    rows = {}
    if arguments.lines and arguments.lines.exists():
        rows = {row["name"]: row for row in map(json.loads, arguments.lines.read_text().splitlines())}
    names = arguments.names or list(BACKBONES)
    for name in names:
        if name in rows:
            continue
        options = [f"--{key}={getattr(arguments, key)}" for key in ("size", "batch", "steps")]
        run = subprocess.run([sys.executable, __file__, name, "--one", *options], capture_output=True, text=True)
        if run.returncode:
            print(f"{name}: {run.stderr.strip().splitlines()[-1] if run.stderr.strip() else run.returncode}")
            continue
        line = run.stdout.strip().splitlines()[-1]
        rows[name] = json.loads(line)
        if arguments.lines:
            with arguments.lines.open("a") as file:
                file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
    print(markdown(names, rows))


if __name__ == "__main__":
    main()
