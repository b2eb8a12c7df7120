"""Sharing a detector: the directory, its model card, and a Hub that this test serves itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
import yaml

from rtdetr_tool import Detector
from rtdetr_tool.checkpoints.io import save_detector
from rtdetr_tool.checkpoints.metadata import build_metadata
from rtdetr_tool.cli import main
from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import read_spec, spec_from_dict, spec_to_dict
from rtdetr_tool.workflows.share import write_directory

MODEL = {
    "backbone": "resnet_18", "hidden_dim": 32, "nheads": 4, "feat_channels": [32] * 3, "dim_feedforward": 48,
    "dec_layers": 1, "num_queries": 8, "num_select": 8, "pretrained_backbone_path": "/home/alice/secret/resnet.pth",
}  # fmt: skip
DATA = {
    "num_classes": 3,
    "train_data_sources": [{"image_dir": "/home/alice/photos", "json_file": "/home/alice/a.json"}],
}
CLASSES = [{"index": i, "id": i + 1, "name": name} for i, name in enumerate(("cat", "a|b", "<b>dog</b>"))]
METRICS = {"val/mAP_50_95": 0.4567, "val/mAP_50": 0.6, "val/F1": 0.7, "val/loss": 3.0}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    spec = spec_from_dict({"model": MODEL, "dataset": DATA, "wandb": {"entity": "alice"}})
    detector = build_detector(spec.model, 3)
    path = tmp_path_factory.mktemp("trained") / "best.pth"
    meta = build_metadata("1.0", spec_to_dict(spec), CLASSES, "ema", METRICS)
    save_detector(detector.state_dict(), meta, path)
    return path


def card_of(folder):
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_directory_has_weights_card_and_spec_and_is_opened(checkpoint, tmp_path):
    folder = Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine", license="mit")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "model.safetensors", "spec.yaml"]
    opened, source = (Detector.from_checkpoint(path) for path in (folder, checkpoint))
    expected = source.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.network.state_dict().items())
    assert opened.class_names == ["cat", "a|b", "<b>dog</b>"]
    assert read_spec(folder / "spec.yaml").spec.model.hidden_dim == 32


@pytest.mark.slow
def test_the_card_has_scores_classes_license_and_spec(checkpoint, tmp_path):
    head, text = card_of(Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine", license="mit"))
    assert head["license"] == "mit" and head["pipeline_tag"] == "object-detection"
    (result,) = head["model-index"][0]["results"]
    assert {row["type"]: row["value"] for row in result["metrics"]} == {"mAP 50-95": 0.4567, "mAP 50": 0.6, "F1": 0.7}
    assert "| mAP 50-95 | 0.4567 |" in text and "| weights | averaged (EMA) |" in text
    assert "| 0 | cat |" in text and "| 1 | a&#124;b |" in text and "| 2 | &lt;b>dog&lt;/b> |" in text
    assert 'Detector.from_checkpoint("mine")' in text and "hidden_dim: 32" in text


@pytest.mark.slow
def test_huggingface_hub_accepts_the_metadata_of_the_card(checkpoint, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folder = Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine", license="mit")
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].metric_value == 0.4567 and card.data.library_name == "rtdetr-tool"


def test_no_path_and_no_name_of_the_user_is_published(checkpoint, tmp_path):
    folder = Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine")
    for file in folder.iterdir():
        assert b"alice" not in file.read_bytes(), file.name


@pytest.mark.slow
def test_a_license_is_only_stated_if_it_is_known(checkpoint, tmp_path, caplog):
    head, text = card_of(Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine"))
    assert "license" not in head and "| license | not stated |" in text and "states no license" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "title"),
    [
        ({"arch": "rfdetr", "rfdetr": {"variant": "xlarge"}}, "pml-1.0", "PML-1.0"),
        ({"backbone": "dinov3_vit_small"}, "dinov3-license", "DINOv3 License"),
        (
            {"arch": "rfdetr", "rfdetr": {"variant": "nano", "encoder": "dinov3_windowed_small"}},
            "dinov3-license",
            "DINOv3 License",
        ),
        (
            {"arch": "rfdetr", "rfdetr": {"variant": "nano", "encoder": "dinov3_convnext_tiny"}},
            "dinov3-license",
            "DINOv3 License",
        ),
    ],
)
def test_weights_under_a_license_for_all_that_is_trained_from_them_keep_it(checkpoint, tmp_path, model, name, title):
    opened = open_detector(str(checkpoint), read_spec(None))
    spec = spec_from_dict({"model": model, "dataset": {"num_classes": 3}})
    head, text = card_of(write_directory(replace(opened, spec=spec), tmp_path / "mine"))
    assert (head["license"], head["license_name"]) == ("other", name) and f"| license | {title} |" in text


@pytest.mark.slow
def test_the_layout_of_transformers_is_opened_by_transformers(checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    plain = tmp_path / "plain.pth"  # ResNet-18 of TAO is no network of transformers; the d variant is
    spec = spec_from_dict({"model": {**MODEL, "backbone": "resnet_18d"}, "dataset": {"num_classes": 3}})
    meta = build_metadata("1.0", spec_to_dict(spec), CLASSES, "raw", METRICS)
    save_detector(build_detector(spec.model, 3).state_dict(), meta, plain)
    folder = tmp_path / "hf"
    command = ["push", str(plain), "me/toy", "--folder", str(folder), "--layout", "transformers", "--license", "mit"]
    assert main(command) == 0
    assert transformers.AutoModelForObjectDetection.from_pretrained(folder).config.id2label[0] == "cat"
    assert card_of(folder)[0]["library_name"] == "transformers"
    assert Detector.from_checkpoint(folder).class_names[0] == "cat"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "tao"}, "layout: 'tao' is invalid; expected one of rtdetr, transformers"),
        ({}, "exists and is not empty"),
    ],
)
def test_invalid_requests_write_nothing(checkpoint, tmp_path, change, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match=message):
        Detector.from_checkpoint(checkpoint).save_pretrained(tmp_path / "mine", **change)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_invalid_id_ends_before_the_checkpoint_is_opened(capsys):
    assert main(["push", "missing.pth", "toy"]) == 2
    assert "toy is not an id on the Hugging Face Hub; expected owner/name" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """The requests of the Hub's API with which a model is uploaded and downloaded."""

    files: dict[str, bytes]
    tokens: set[str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers["Authorization"])
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.base}/me/toy/commit/{COMMIT}", "commitOid": COMMIT}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        else:
            answer = {"url": f"{self.base}/me/toy", "name": "me/toy", "id": "1"}
        self._send(json.dumps(answer).encode())

    def do_GET(self):
        if self.path.startswith("/api/models/me/toy"):
            names = sorted(self.files)
            tree = [{"type": "file", "path": n, "size": len(self.files[n]), "oid": COMMIT} for n in names]
            info = {"id": "me/toy", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            self._send(json.dumps(tree if "/tree/" in self.path else info).encode())
        else:
            self._send(self.files.get(self.path.rpartition("/")[2]))

    do_HEAD = do_GET

    @property
    def base(self):
        return "http://{}:{}".format(*self.server.server_address)

    def _send(self, content):
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{COMMIT}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if self.command != "HEAD" and content is not None:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    handler = type("ThisHub", (Hub,), {"files": {}, "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    handler.address = "http://{}:{}".format(*server.server_address)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys, torch
from rtdetr_tool import Detector
here = Detector.from_checkpoint(sys.argv[1])
print(here.push_to_hub("me/toy", license="mit", token="hf_test"))
there = Detector.from_checkpoint("me/toy")
weights = here.network.state_dict()
assert all(torch.equal(tensor, weights[name]) for name, tensor in there.network.state_dict().items())
print(there.class_names)
"""


@pytest.mark.slow
def test_a_detector_is_pushed_and_opened_by_its_id(checkpoint, hub, tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", SCRIPT, str(checkpoint)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert sorted(hub.files) == ["README.md", "model.safetensors", "spec.yaml"]
    assert hub.tokens == {"Bearer hf_test"}
    assert b'Detector.from_checkpoint("me/toy")' in hub.files["README.md"]
    assert run.stdout.splitlines() == [f"{hub.address}/me/toy", "['cat', 'a|b', '<b>dog</b>']"]
