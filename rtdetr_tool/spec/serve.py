"""The `serve` section: answer HTTP requests with detections."""

from __future__ import annotations

from dataclasses import dataclass

from rtdetr_tool.spec.fields import INF, MISSING, field
from rtdetr_tool.spec.run_model import ClassThresholdsSpec, OneDeviceSpec, RuntimeSpec


@dataclass(frozen=True)
class ServeSpec(RuntimeSpec, OneDeviceSpec, ClassThresholdsSpec):
    """Answer HTTP requests with detections."""

    checkpoint: str = field(
        MISSING,
        "Model to serve: a checkpoint, an exported file of any format, or a TensorRT engine.",
        path="read",
        origin="ours",
    )
    results_dir: str | None = field(
        None,
        "Folder of this command's status and log; null = <results_dir>/serve.",
        path="results",
        origin="ours",
    )
    host: str = field(
        "127.0.0.1",
        "Address to listen on. The default is only reachable from this machine; 0.0.0.0 = all its addresses. There is "
        "no authentication and no TLS.",
        origin="ours",
    )
    port: int = field(8000, "Port to listen on; 0 = a free one, which is logged.", min=0, max=65535, origin="ours")
    classmap: str | None = field(
        None,
        "Text file with one class name per line, for a model without class names.",
        path="read",
        origin="ours",
    )
    conf_threshold: float = field(
        0.5, "Minimum score of detections, unless a request sets its own.", min=0.0, max=1.0, origin="ours"
    )
    max_batch_size: int = field(
        8, "Maximum number of images, also of different requests, that run together.", min=1, max=4096, origin="ours"
    )
    max_delay: float = field(
        5.0,
        "How long an image waits for others that are being received or decoded; 0 = only images that are ready join a "
        "batch.",
        min=0.0,
        max=60_000.0,
        unit="milliseconds",
        origin="ours",
    )
    max_queue: int = field(
        64,
        "Maximum number of images in all unanswered requests; further requests are answered with status 503.",
        min=1,
        max=100_000,
        origin="ours",
    )
    max_images: int = field(16, "Maximum number of images in a request.", min=1, max=100_000, origin="ours")
    max_body: float = field(32.0, "Maximum size of a request.", above=0.0, max=INF, unit="MB", origin="ours")
    max_pixels: int = field(
        40_000_000, "Maximum width x height of an image.", min=1, max=120_000_000, unit="pixels", origin="ours"
    )
    timeout: float = field(
        30.0,
        "Maximum time from the first byte of a request to its answer; a longer request is answered with status 408 or "
        "504.",
        above=0.0,
        max=86_400.0,
        unit="seconds",
        origin="ours",
    )
