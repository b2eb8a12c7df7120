"""Counters for Prometheus, `GET /metrics`."""

from __future__ import annotations

from collections import Counter as Numbers
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """What a server has done so far; `queued` returns the number of images in unanswered requests."""

    def __init__(self, max_batch: int, queued: Callable[[], int]) -> None:
        self.statuses: Numbers[int] = Numbers()  # of POST /predict
        self.images = 0  # detected
        self.batch_seconds = 0.0  # moving average
        self._registry = CollectorRegistry()
        self._requests = Counter("rtdetr_requests", "Answered requests.", ["path", "status"], registry=self._registry)
        self._latency = Histogram(
            "rtdetr_request_seconds", "Time from the headers of a request to its answer.", ["path"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._images = Counter("rtdetr_images", "Images on which the model ran.", registry=self._registry)
        self._sizes = Histogram(
            "rtdetr_batch_images", "Images in a batch.", registry=self._registry,
            buckets=sorted({size for size in (1, 2, 4, 8, 16, 32, 64, max_batch) if size <= max_batch}),
        )  # fmt: skip
        self._model = Histogram(
            "rtdetr_batch_seconds", "Time of a batch in the model.", buckets=_SECONDS, registry=self._registry
        )
        Gauge("rtdetr_queued_images", "Images in unanswered requests.", registry=self._registry).set_function(queued)

    def answered(self, path: str, status: int, seconds: float) -> None:
        if path == "/predict":
            self.statuses[status] += 1
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def ran(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self.images += images
        self.batch_seconds = 0.8 * self.batch_seconds + 0.2 * seconds if self.batch_seconds else seconds
        self._images.inc(images)
        self._sizes.observe(images)
        self._model.observe(seconds)

    def page(self) -> bytes:
        """All values in Prometheus's text format."""
        return generate_latest(self._registry)
