"""A server of `rtdetr serve` in a thread of the tests, and a model that waits until it may run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import requests

from rtdetr_tool.spec import read_spec
from rtdetr_tool.workflows.serving.app import Service
from rtdetr_tool.workflows.serving.predictor import Predictor, open_predictor
from rtdetr_tool.workflows.serving.server import Server, address_of, bind


class Gated:
    """A runtime that waits in `predict` until `gate` is set, after the warm-up; `sizes` are those of its batches."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.gate, self.entered = runtime, threading.Event(), threading.Event()
        self.warm = threading.Event()
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def predict(self, images):
        if self.warm.is_set():
            self.sizes.append(len(images))
            self.entered.set()
            assert self.gate.wait(60)
        return self._runtime.predict(images)


def predictor_of(project, *overrides: str) -> Predictor:
    return open_predictor(read_spec(project.spec_file, ["serve.port=0", *overrides], "serve"))


def gated(predictor: Predictor) -> Predictor:
    return replace(predictor, runtime=Gated(predictor.runtime))


class Client:
    """Requests to a server at `address`."""

    def __init__(self, address: str, service: Service) -> None:
        self.address, self.service = address, service
        host, port = address.removeprefix("http://").split(":")
        self.endpoint = host, int(port)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.address + path, timeout=60)

    def post(self, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(f"{self.address}/predict", data=body, timeout=60, **options)

    def wait_until(self, queued: int) -> None:
        """Wait until so many images are in unanswered requests."""
        for _ in range(3000):
            if self.service.admission.queued == queued:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{self.service.admission.queued} images are queued, not {queued}")


@contextmanager
def serving(predictor: Predictor) -> Iterator[Client]:
    """A running server, which ends as on SIGTERM."""
    service, listening = Service(predictor), threading.Event()
    listener = bind("127.0.0.1", 0)
    server = Server(service, predictor.section, listening.set)
    service.start()
    if isinstance(predictor.runtime, Gated):
        predictor.runtime.warm.set()
    thread = threading.Thread(target=server.run, args=([listener],))
    address = address_of(listener)
    thread.start()
    try:
        assert listening.wait(60)
        yield Client(address, service)
    finally:
        if isinstance(predictor.runtime, Gated):
            predictor.runtime.gate.set()
        server.should_exit = True
        thread.join(60)
        service.close()
        listener.close()
    assert not thread.is_alive()
    assert (service.admission.queued, service.admission.preparing) == (0, 0)
