"""The endpoints: predictions, health, metadata and metrics.

POST /predict        detections of one or more images
GET  /health/live    the process works
GET  /health/ready   it accepts requests
GET  /metadata       classes, input size, limits
GET  /metrics        counters for Prometheus
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.messages import first_line
from rtdetr_tool.workflows.serving.admission import Admission, QueueFull, Ticket
from rtdetr_tool.workflows.serving.batcher import Batcher
from rtdetr_tool.workflows.serving.metrics import CONTENT_TYPE, Metrics
from rtdetr_tool.workflows.serving.predictor import Options, Predictor
from rtdetr_tool.workflows.serving.upload import Upload, read_images, read_options

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DECODERS = min(4, os.cpu_count() or 1)  # threads


class Service:
    """The state behind the endpoints. `draining`: the server is about to end, and clients should close connections."""

    def __init__(self, predictor: Predictor) -> None:
        section = predictor.section
        self.predictor, self.draining = predictor, False
        self.paths: list[str] = []
        self.admission = Admission(section.max_queue)
        self.metrics = Metrics(section.max_batch_size, lambda: self.admission.queued)
        self.batcher = Batcher(
            predictor.runtime,
            predictor.spec.model.num_select,
            section.max_batch_size,
            section.max_delay / 1000,
            expected=lambda: self.admission.preparing,
            observe=self.metrics.ran,
        )
        self._threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoder")

    def app(self) -> ASGIApp:
        """The endpoints as an ASGI application."""
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health/live", self.live),
            Route("/health/ready", self.ready),
            Route("/metadata", self.metadata),
            Route("/metrics", self.show_metrics),
        ]
        self.paths = [route.path for route in routes]
        handlers: dict[Any, Any] = {HTTPException: self._on_http_error}
        return self._observed(Starlette(routes=routes, exception_handlers=handlers))

    def start(self) -> None:
        """Start the thread of the model and run it once."""
        self.batcher.start(self.predictor.size)

    def close(self) -> None:
        """Finish all submitted images."""
        self.batcher.close()
        self._threads.shutdown()

    # Endpoints

    async def predict(self, request: Request) -> Response:
        try:
            options = read_options(request.query_params, self.predictor)
            with self.admission.ticket() as ticket:
                return await self._predict_in_time(request, options, ticket)
        except QueueFull as error:
            wait = {"Retry-After": str(self._retry_after())}
            return _error(503, f"too many requests: {error} (serve.max_queue)", wait)
        except ClientDisconnect:
            return _error(400, "the client closed the connection")
        except HTTPException:
            raise
        except UserError as error:
            return _error(400, str(error))
        except Exception as error:
            logger.error("A request failed: %s", first_line(error))
            logger.debug("traceback", exc_info=error)
            return _error(500, str(error) if isinstance(error, RtdetrError) else "internal error; see the server's log")

    async def live(self, request: Request) -> Response:
        working = self.batcher.alive
        return JSONResponse({"status": "live" if working else "failed"}, 200 if working else 503)

    async def ready(self, request: Request) -> Response:
        ready = self.batcher.alive and not self.draining
        return JSONResponse({"status": "ready" if ready else "stopping"}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self.predictor.metadata())

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    # Parts of a prediction

    async def _predict_in_time(self, request: Request, options: Options, ticket: Ticket) -> Response:
        seconds = self.predictor.section.timeout
        end = time.monotonic() + seconds
        try:
            uploads = await asyncio.wait_for(read_images(request, self.predictor.section), seconds)
        except asyncio.TimeoutError:
            return _error(408, f"reading the request took longer than {seconds:g} s (serve.timeout)")
        ticket.hold(len(uploads))
        work = _while_connected(request, self._detect(uploads, options, ticket))
        try:
            return await asyncio.wait_for(work, end - time.monotonic())
        except asyncio.TimeoutError:
            return _error(504, f"the detection took longer than {seconds:g} s (serve.timeout)")

    async def _detect(self, uploads: Sequence[Upload], options: Options, ticket: Ticket) -> Response:
        predictor = self.predictor
        images = await _all(self._in_thread(predictor.prepare, upload.content, upload.name) for upload in uploads)
        jobs = [self.batcher.submit(image, upload.name) for image, upload in zip(images, uploads, strict=True)]
        ticket.submitted()
        results = await _all(map(asyncio.wrap_future, jobs))
        rows = await _all(self._in_thread(predictor.rows, detections, options) for detections in results)
        predictions = [{"image_id": index, **row} for index, part in enumerate(rows) for row in part]
        used = {row["category_id"] for row in predictions}
        categories = predictor.class_map.categories.items()
        content = {
            "images": [
                {"id": upload.index, "file_name": upload.file_name, "width": width, "height": height}
                for upload, (height, width) in zip(uploads, (image.original_size for image in images), strict=True)
            ],
            "categories": [{"id": number, "name": name} for number, name in categories if number in used],
            "predictions": predictions,
        }
        return JSONResponse(content)

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _retry_after(self) -> int:
        """Seconds until the images that are waiting now are probably done."""
        batches = math.ceil(self.admission.queued / self.predictor.section.max_batch_size)
        return max(1, math.ceil(batches * self.metrics.batch_seconds))

    # Around all endpoints

    async def _on_http_error(self, request: Request, error: HTTPException) -> Response:
        detail, path = error.detail, request.url.path
        if error.status_code == 404:
            detail = f"{path} does not exist; expected one of {', '.join(self.paths)}"
        elif error.status_code == 405:
            detail = f"{request.method} is not supported with {path}; use {(error.headers or {})['Allow']}"
        return _error(error.status_code, detail, dict(error.headers or {}))

    def _observed(self, app: ASGIApp) -> ASGIApp:
        """Count answers, and while draining ask clients to open no further requests on their connections."""

        async def observed(scope: Scope, receive: Receive, send: Send) -> None:
            start, path = time.perf_counter(), scope.get("path", "")

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    if self.draining:
                        message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
                    shown = path if path in self.paths else "other"
                    self.metrics.answered(shown, message["status"], time.perf_counter() - start)
                await send(message)

            await app(scope, receive, sending)

        return observed


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _all(tasks: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all tasks, once all are done; raises the error of the first that failed, in their order."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled with ClientDisconnect when the client closes the connection."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
