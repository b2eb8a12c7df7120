"""Run a model in one thread, on batches of the images that several requests submit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import torch

from rtdetr_tool.data.collate import stack_images
from rtdetr_tool.data.preprocess import PreparedImage
from rtdetr_tool.formats.base import Runtime
from rtdetr_tool.formats.detection_loop import detect
from rtdetr_tool.formats.images import synthetic_images
from rtdetr_tool.ops.structures import Batch, Detections, Target

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    image: PreparedImage
    name: str
    result: Future[Detections] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)


class Batcher:
    """Detects objects in submitted images; start it with `start`, and end it with `close`.

    A batch has at most `max_batch` images. An incomplete batch waits for further images until its first one is
    `max_delay` seconds old, but only while `expected` returns more than 0.

    Args:
        expected: number of images that will probably be submitted soon.
        observe: called with the number of images and the seconds of each batch.
    """

    def __init__(
        self,
        runtime: Runtime,
        num_select: int,
        max_batch: int = 8,
        max_delay: float = 0.0,
        expected: Callable[[], int] = lambda: 0,
        observe: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.runtime, self.num_select = runtime, num_select
        self.max_batch, self.max_delay = max_batch, max_delay
        self.expected, self.observe = expected, observe
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._size, self._warm = (0, 0), Future[None]()
        self._ending = False

    def start(self, size: tuple[int, int]) -> None:
        """Start the thread and run the smallest and the largest batch of images of this (height, width) in it.

        So the first request is fast, and a batch that does not fit in memory is an error now.
        """
        self._size = size
        self._thread.start()
        self._warm.result()

    def submit(self, image: PreparedImage, name: str = "") -> Future[Detections]:
        """The detections of an image, in the order of submission; a cancelled future is not computed."""
        job = _Job(image, name)
        self._queue.put(job)
        return job.result

    def close(self) -> None:
        """Finish everything that was submitted, then end the thread, if it was started."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            for count in sorted({1, self.max_batch}):
                self.runtime.predict(synthetic_images(count, self._size).to(self.runtime.device))
        except Exception as error:
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        while not self._ending:
            jobs = [job for job in self._next_jobs() if job.result.set_running_or_notify_cancel()]
            if jobs:
                self._answer(jobs)

    def _next_jobs(self) -> list[_Job]:
        """Wait for an image, then collect others; empty at the end."""
        job = self._queue.get()
        jobs: list[_Job] = []
        while job is not None:
            jobs.append(job)
            if len(jobs) == self.max_batch:
                return jobs
            wait = jobs[0].submitted + self.max_delay - time.monotonic()
            try:
                job = self._queue.get(timeout=wait) if wait > 0 and self.expected() > 0 else self._queue.get_nowait()
            except Empty:
                return jobs
        self._ending = True
        return jobs

    def _answer(self, jobs: Sequence[_Job]) -> None:
        start = time.perf_counter()
        try:
            results = self._detect(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
                return
            logger.debug("A batch of %d images failed; running each of them alone", len(jobs), exc_info=error)
            for job in jobs:  # so that one image does not fail the requests of others
                self._answer([job])
            return
        self.observe(len(jobs), time.perf_counter() - start)
        for job, detections in zip(jobs, results, strict=True):
            job.result.set_result(detections)

    def _detect(self, jobs: Sequence[_Job]) -> list[Detections]:
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        targets = [Target(*nothing, 0, job.image.original_size, job.image.box_scale, job.name) for job in jobs]
        batch = Batch(stack_images([job.image.image for job in jobs]), targets)
        (_, detections), *_ = detect(self.runtime, [batch], self.num_select, ahead=0)
        return detections
