"""Run the server until a signal, and end it without losing a request."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rtdetr_tool.errors import Preempted, UserError
from rtdetr_tool.spec import LoadedSpec, ServeSpec
from rtdetr_tool.status import current_status
from rtdetr_tool.workflows.serving.app import Service
from rtdetr_tool.workflows.serving.predictor import Predictor, open_predictor

logger = logging.getLogger(__name__)

GRACE = 1.0  # seconds that an idle connection stays open after a signal, for a request that is on its way


def serve(loaded: LoadedSpec) -> dict[str, Any]:
    """Serve the model of the `serve` section until SIGTERM or Ctrl-C; returns what was done.

    Raises:
        UserError: the address cannot be used, or the model cannot be opened.
    """
    section = loaded.spec.serve
    listener = bind(section.host, section.port)
    with listener:
        predictor = open_predictor(loaded)
        service = Service(predictor)
        address = address_of(listener)
        server = Server(service, section, lambda: _announce(address, predictor))
        try:
            service.start()
            server.run([listener])
        finally:
            service.close()
    metrics = service.metrics
    answered = sum(metrics.statuses.values())
    logger.info("%s: %d requests answered, %d images", server.reason, answered, metrics.images)
    statuses = {str(status): count for status, count in sorted(metrics.statuses.items())}
    return {"address": address, "requests": answered, "images": metrics.images, "statuses": statuses}


def bind(host: str, port: int) -> socket.socket:
    """A socket for the address, which does not listen yet; UserError if the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(
            f"serve.host: {host} is invalid: {error.strerror}; expected an address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"serve.host, serve.port: {host}:{port} cannot be used: {error.strerror}; expected an address of this "
            "machine and a free port (0 = any)"
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    host, port, *_ = listener.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(address: str, predictor: Predictor) -> None:
    current_status().running(f"Serving at {address}")
    logger.info("Serving %s with %s at %s", predictor.section.checkpoint, predictor.runtime.name, address)
    if not address.startswith(("http://127.", "http://[::1]")):
        logger.warning("Other machines can use this server, which has no authentication and no TLS (serve.host)")


class Server(uvicorn.Server):
    """Ends on SIGTERM, Ctrl-C, SIGHUP and SIGUSR1, after everything is answered; a second Ctrl-C ends it at once.

    It stops listening first, but idle connections stay open for `GRACE` seconds, because a client may have sent a
    request before it could know. Answers then ask clients to close the connection.
    """

    def __init__(self, service: Service, section: ServeSpec, ready: Callable[[], None] = lambda: None) -> None:
        protocol = type("Protocol", (Protocol,), {"header_seconds": section.timeout})
        config = uvicorn.Config(
            service.app(),
            http=protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(section.timeout) + 5,
        )
        super().__init__(config)
        self.service, self.ready, self.reason = service, ready, "Stopped"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        for server in self.servers:
            server.close()
        state, quiet = self.server_state, time.monotonic()
        while state.connections and not self.force_exit:
            if state.tasks:
                quiet = time.monotonic()
            elif time.monotonic() - quiet >= GRACE:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, *Preempted.signals)
        usable = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # SIGHUP with nohup
        earlier = {number: signal.signal(number, self.handle_exit) for number in usable}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.reason = f"Stopped by {signal.Signals(sig).name}"
        super().handle_exit(sig, frame)


class Protocol(H11Protocol):
    """Closes connections on which no complete request has arrived after `header_seconds`."""

    header_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of TCP
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._is_busy():
            self._cancel()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._expire)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if not self._is_busy():
            self.timeout_keep_alive_handler()
