"""Methods of the Python classes that Roboflow's package has: contexts, uploads, and its cache of weights."""

from __future__ import annotations

import json
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from rtdetr_tool.api import RFDETRNano
from rtdetr_tool.catalog import PUBLISHED_WEIGHTS
from rtdetr_tool.checkpoints.download import md5_of
from rtdetr_tool.checkpoints.published import cache_folder, weights_path
from rtdetr_tool.errors import UserError
from tests.api.small import SMALL_RFDETR


@pytest.fixture(scope="module")
def nano():
    return RFDETRNano(None, 2, "cpu", **SMALL_RFDETR)


def test_the_context_has_the_network_and_its_settings(nano):
    context = nano.model
    assert context.model is nano.network and context.resolution == context.args.resolution == 64
    assert context.device.type == "cpu" and context.args.encoder == "dinov2_windowed_small"


def test_the_context_turns_predictions_into_boxes_in_pixels(nano):
    context, images = nano.model, torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        predictions = context.model.eval()(images)
    (result,) = context.postprocess(predictions, torch.tensor([[100, 200]]))
    score, pair = predictions.logits[0].sigmoid().flatten().max(0)
    cx, cy, w, h = predictions.boxes[0, pair // predictions.logits.shape[-1]].tolist()
    corners = torch.tensor([(cx - w / 2) * 200, (cy - h / 2) * 100, (cx + w / 2) * 200, (cy + h / 2) * 100])
    expected = corners.clamp(min=0).minimum(torch.tensor([200.0, 100.0, 200.0, 100.0]))
    torch.testing.assert_close(result["boxes"][0], expected, atol=1e-3, rtol=1e-4)
    assert result["scores"][0] == score and result["labels"][0] == pair % predictions.logits.shape[-1]


def test_a_model_of_another_config_leaves_the_detector_as_it_is(nano):
    before = nano.network
    context = nano.get_model(nano.get_model_config(dec_layers=2, num_classes=5))
    assert context.args.dec_layers == 2 and context.args.num_classes == 5 and nano.network is before
    assert nano.model_config.pretrain_weights is None


def test_weights_that_the_package_has_downloaded_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    file = tmp_path / ".roboflow" / "models" / "rf-detr-nano.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    row = PUBLISHED_WEIGHTS[file.name]
    monkeypatch.setitem(PUBLISHED_WEIGHTS, file.name, row._replace(md5=md5_of(file), url="http://127.0.0.1:9/x"))
    assert weights_path("rf-detr-nano") == file
    own = cache_folder() / file.name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"weights")
    assert weights_path("rf-detr-nano") == own


class Roboflow(BaseHTTPRequestHandler):
    """The part of Roboflow's API that an upload uses."""

    uploads: list[bytes]
    refuse = False

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self._answer({"workspace": "team"})

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        version = {
            "id": "team/cells/3",
            "name": "v3",
            "images": 6,
            "splits": {},
            "exports": [],
            "augmentation": {},
            "preprocessing": {},
            "created": 0,
        }
        project = {"id": "team/cells", "name": "cells", "type": "object-detection", "versions": 1, "images": 6}
        if path.endswith("uploadModel"):
            self.server.asked = self.path
            self._answer(
                {"url": f"http://127.0.0.1:{self.server.server_address[1]}/bucket"}, 500 if self.refuse else 200
            )
        elif path == "team":
            self._answer({"workspace": {"name": "team", "url": "team", "projects": [project], "members": 1}})
        else:
            shown = {"project": {**project, "unannotated": 0, "annotation": "", "classes": {}, "colors": {},
                                 "created": 0, "updated": 0, "public": False, "splits": {}},
                     "versions": [version, {**version, "id": "team/cells/2"}], "version": version}  # fmt: skip
            self._answer(shown)

    def do_PUT(self):
        self.uploads.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({})

    def log_message(self, *arguments):
        pass


@pytest.fixture
def service(monkeypatch):
    handler = type("Handler", (Roboflow,), {"uploads": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server, handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def named(nano, sample, tmp_path):
    """A detector whose classes have names."""
    file = tmp_path / "named.pth"
    from rtdetr_tool.checkpoints.io import save_detector
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.spec import spec_to_dict

    classes = [{"index": index, "id": index + 1, "name": name} for index, name in enumerate(["cat", "dog"])]
    save_detector(nano.network.state_dict(), build_metadata("0", spec_to_dict(nano.spec), classes), file)
    return RFDETRNano.from_checkpoint(file, device="cpu")


def test_a_detector_is_uploaded_to_the_newest_version(named, service, monkeypatch, tmp_path):
    pytest.importorskip("roboflow.core.workspace", reason="needs the package roboflow")
    server, handler = service
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, module in list(sys.modules.items()):
        if name.startswith("roboflow") and hasattr(module, "API_URL"):
            monkeypatch.setattr(module, "API_URL", address)
    named.deploy_to_roboflow("team", "cells", api_key="secret-key")
    assert "modelType=rfdetr-nano" in server.asked and "/3/" in server.asked
    (archive,) = handler.uploads
    (tmp_path / "upload.zip").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "upload.zip") as content:
        assert {"weights.pt", "class_names.txt"} <= {name.rpartition("/")[2] for name in content.namelist()}

    handler.refuse = True
    with pytest.raises(UserError, match="deploy_to_roboflow: ") as caught:
        named.deploy_to_roboflow("team", "cells", 3, api_key="secret-key")
    assert "secret-key" not in str(caught.value)


def test_an_upload_needs_a_key_and_the_package(nano, monkeypatch):
    monkeypatch.delenv("ROBOFLOW_API_KEY", raising=False)
    with pytest.raises(UserError, match="api_key is required, but not set"):
        nano.deploy_to_roboflow("team", "cells", 1)
    monkeypatch.setitem(sys.modules, "roboflow", None)
    with pytest.raises(UserError, match="pip install roboflow"):
        nano.deploy_to_roboflow("team", "cells", 1, api_key="key")


def test_flags_of_the_package_tell_how_a_detector_was_optimized():
    detector = RFDETRNano(None, 2, "cpu", **SMALL_RFDETR)
    flags = ("_is_optimized_for_inference", "_optimized_dtype", "_optimized_resolution", "_optimized_has_been_compiled")
    before = [getattr(detector, name) for name in flags]
    assert before == [False, None, None, False]
    detector.optimize_for_inference(dtype="bfloat16")
    assert [getattr(detector, name) for name in flags] == [True, torch.bfloat16, 64, False]  # never compiled on a CPU
    with pytest.raises(UserError, match="dtype"):
        detector.optimize_for_inference(dtype="int8")
    assert detector._optimized_dtype == torch.bfloat16
    detector.remove_optimized_model()
    assert [getattr(detector, name) for name in flags] == before
    for name in ("model", "model_config"):
        with pytest.raises(AttributeError, match="cannot be replaced; load other weights into"):
            setattr(detector, name, getattr(detector, name))
