"""A small dataset, small detectors, and a local image server."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from rtdetr_tool.api import RTDETR, RFDETRNano
from tests.api.small import SMALL_RFDETR, SMALL_RTDETR, Sample, lively


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return Sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def rtdetr():
    torch.manual_seed(0)
    return lively(RTDETR("resnet_18", num_classes=2, device="cpu", **SMALL_RTDETR))


@pytest.fixture(scope="session")
def rfdetr():
    torch.manual_seed(0)
    return lively(RFDETRNano(pretrain_weights=None, num_classes=2, device="cpu", **SMALL_RFDETR))


@pytest.fixture(params=["rtdetr", "rfdetr"])
def detector(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def serve():
    """`serve(folder)` returns the address of a server for the files in it."""
    servers = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
