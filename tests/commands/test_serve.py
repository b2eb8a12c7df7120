"""`rtdetr serve`: detections equal those of `inference`, limits hold, and nothing is lost at SIGTERM."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
import requests
from PIL import Image

from rtdetr_tool.cli import build_command_parser, main
from rtdetr_tool.errors import SpecError, UserError
from rtdetr_tool.spec import ServeSpec, read_spec
from rtdetr_tool.workflows.serving import server as server_module
from rtdetr_tool.workflows.serving.predictor import choose_device
from rtdetr_tool.workflows.serving.upload import PARAMETERS
from tests.serving import gated, predictor_of, serving


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_project):
    """A project with weights, an ONNX file and their predictions by `inference`, one image at a time."""
    project = make_project(tmp_path_factory.mktemp("serve"))
    project.weights = project.checkpoint(lively=True)
    project.onnx = project.folder / "m.onnx"
    assert project.run("export", f"export.checkpoint={project.weights}", f"export.onnx_file={project.onnx}") == 0
    project.contents = [project.image(number).read_bytes() for number in range(1, 7)]
    return project


@pytest.fixture(scope="module")
def predictor(project):
    return predictor_of(project, f"serve.checkpoint={project.weights}", "serve.conf_threshold=0")


@pytest.fixture(scope="module")
def client(predictor):
    with serving(predictor) as client:
        yield client


def files_of(project):
    return [("images", (f"{number}.png", content)) for number, content in enumerate(project.contents)]


def inferred(project, model) -> list[dict]:
    options = [f"inference.checkpoint={model}", "inference.batch_size=1", "inference.conf_threshold=0"]
    assert project.run("inference", *options) == 0
    return json.loads((project.folder / "results/inference/predictions.json").read_text())


# Predictions


@pytest.mark.parametrize("format_", ["weights", "onnx"])
def test_predictions_equal_those_of_inference(project, format_):
    model = getattr(project, format_)
    expected = inferred(project, model)
    assert len(expected) >= 6
    predictor = predictor_of(project, f"serve.checkpoint={model}", "serve.conf_threshold=0", "serve.max_batch_size=1")
    with serving(predictor) as client:
        together = client.post(files=files_of(project)).json()
        alone = [client.post(content).json() for content in project.contents]
    assert together["predictions"] == expected
    assert [image["file_name"] for image in together["images"]] == [f"{number}.png" for number in range(6)]
    assert together["images"][0] == {"id": 0, "file_name": "0.png", "width": 64, "height": 48}
    assert together["categories"] == [{"id": 1, "name": "cat"}]
    rows = [{**row, "image_id": number} for number, answer in enumerate(alone) for row in answer["predictions"]]
    assert rows == expected
    assert alone[0]["images"] == [{"id": 0, "file_name": None, "width": 64, "height": 48}]


def test_predictions_of_a_batch_of_several_requests_equal_those_of_inference(project, predictor):
    expected = inferred(project, project.weights)
    predictor = gated(predictor)
    with serving(predictor) as client, ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(client.post, project.contents[0])]
        assert predictor.runtime.entered.wait(60)
        answers += [threads.submit(client.post, content) for content in project.contents[1:]]
        client.wait_until(6)
        while client.service.admission.preparing:
            threading.Event().wait(0.01)
        predictor.runtime.gate.set()
        answers = [answer.result().json() for answer in answers]
    assert predictor.runtime.sizes == [1, 5]
    for number, answer in enumerate(answers):
        rows = [row for row in expected if row["image_id"] == number]
        for row, other in zip(answer["predictions"], rows, strict=True):
            assert row["score"] == pytest.approx(other["score"], abs=2e-6)
            assert row["bbox"] == pytest.approx(other["bbox"], abs=2e-3)


def test_masks_are_run_lengths_as_in_inference(tmp_path, make_project):
    from tests.commands.test_segmentation import RFDETR

    project = make_project(tmp_path)
    project.spec["model"] = {"arch": "rfdetr", "num_select": 8, "rfdetr": dict(RFDETR)}
    del project.spec["dataset"]["augmentation"]
    project.write()
    weights = project.checkpoint()
    expected = inferred(project, weights)
    predictor = predictor_of(project, f"serve.checkpoint={weights}", "serve.conf_threshold=0", "serve.max_batch_size=1")
    with serving(predictor) as client:
        answer = client.post(project.image(1).read_bytes()).json()
    assert answer["predictions"] == [row for row in expected if row["image_id"] == 0]
    assert answer["predictions"] and all(row["segmentation"]["size"] == [48, 64] for row in answer["predictions"])


def test_a_request_sets_thresholds_and_the_number_of_detections(project, client):
    content = project.contents[0]
    every = client.post(content).json()["predictions"]
    middle = sorted(row["score"] for row in every)[len(every) // 2]
    kept = [row for row in every if row["score"] >= middle]
    assert 0 < len(kept) < len(every)
    options = {"threshold": middle - 5e-7}
    assert client.post(content, params=options).json()["predictions"] == kept
    assert client.post(content, params={**options, "max_detections": 1}).json()["predictions"] == kept[:1]
    of_class = {"threshold": 0, "class_threshold": f"cat:{middle - 5e-7}"}
    assert client.post(content, params=of_class).json()["predictions"] == kept
    assert client.post(content, params={"threshold": 1}).json()["predictions"] == []


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("threshold=2", ["threshold: '2'", "from 0 to 1"]),
        ("threshold=nan", ["threshold", "from 0 to 1"]),
        ("threshold=0.1&threshold=0.2", ["threshold", "more than once"]),
        ("class_threshold=dog:0.5", ["'dog' is not a class", "cat"]),
        ("class_threshold=cat", ["class_threshold", "<class name>:<score>"]),
        ("max_detections=0", ["max_detections: '0'", "at least 1"]),
        ("confidence=0.5", ["confidence", "threshold, class_threshold, max_detections"]),
    ],
)
def test_an_invalid_option_is_refused(query, parts, project, client):
    answer = requests.post(f"{client.address}/predict?{query}", data=project.contents[0], timeout=60)
    assert answer.status_code == 400
    assert all(part in answer.json()["error"] for part in parts)


# Bodies


def test_a_damaged_image_is_named_and_others_are_answered_afterwards(project, client):
    files = files_of(project)
    files[3] = ("images", ("broken\x1b[2J.png", project.contents[3][:-200]))
    answer = client.post(files=files)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert answer.json()["error"].startswith("Cannot read image 3 (broken") and len(answer.json()["error"]) < 300
    assert client.post(files=files_of(project)).status_code == 200


@pytest.mark.parametrize(
    ("content", "headers", "status", "part"),
    [
        (b"", {}, 400, "no body"),
        (b"not an image", {}, 400, "Cannot read image 0: it is not an image"),
        (b'{"url": "http://127.0.0.1/"}', {"Content-Type": "application/json"}, 415, "paths and URLs are never read"),
        (b"http://127.0.0.1/a.png", {}, 400, "it is not an image"),
        (b"/etc/passwd", {}, 400, "it is not an image"),
        (b"--x\r\n", {"Content-Type": "multipart/form-data"}, 400, "multipart body is invalid"),
        (b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "no parts"),
    ],
)
def test_a_body_without_images_is_refused(content, headers, status, part, client):
    answer = client.post(content, headers=headers)
    assert (answer.status_code, part in answer.json()["error"]) == (status, True), answer.text


def test_a_form_field_that_is_not_a_file_is_refused(client):
    answer = client.post(files={"path": (None, "/etc/passwd")})
    assert answer.status_code == 400 and "'path' is not a file" in answer.json()["error"]


# Limits


def test_the_page_names_existing_fields_options_and_paths(client):
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(ServeSpec)}
    assert set(re.findall(r"`serve\.(\w+)`", page)) <= fields
    assert set(re.findall(r"`(\w+)=[^`]*`", page)) == set(PARAMETERS)
    assert set(re.findall(r"`(?:GET|POST) (/[\w/]+)`", page)) == set(client.service.paths)
    (command,) = re.findall(r"^rtdetr (serve .*)$", page, flags=re.MULTILINE)
    options = build_command_parser("serve").parse_intermixed_args(shlex.split(command)[1:])
    assert read_spec(None, options.overrides, None).spec.serve.port == 8000


def test_limits_of_a_request(project):
    limits = ["serve.max_images=2", "serve.max_body=0.05", "serve.max_pixels=4000"]
    with serving(predictor_of(project, f"serve.checkpoint={project.weights}", *limits)) as client:
        answer = client.post(files=files_of(project)[:3])
        assert (answer.status_code, "2 images (serve.max_images)" in answer.json()["error"]) == (413, True)
        assert client.post(files=files_of(project)[:2]).status_code == 200
        for body in (b"x" * 50_001, iter([b"x" * 30_000, b"x" * 30_000])):  # with and without Content-Length
            answer = client.post(body)
            assert (answer.status_code, "0.05 MB (serve.max_body)" in answer.json()["error"]) == (413, True)
        stream = BytesIO()
        Image.new("RGB", (100, 41)).save(stream, "PNG")
        answer = client.post(stream.getvalue())
        assert answer.status_code == 400
        assert "100x41 is above the limit of 4000 pixels (serve.max_pixels)" in answer.json()["error"]


def test_a_full_queue_is_refused_at_once_and_says_when_to_try_again(project):
    limits = ["serve.max_queue=3", "serve.max_images=3", "serve.max_batch_size=2", "serve.max_delay=0"]
    predictor = gated(predictor_of(project, f"serve.checkpoint={project.weights}", *limits))
    with serving(predictor) as client, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(client.post, content) for content in project.contents[:3]]
        client.wait_until(3)
        answer = client.post(project.contents[3])
        assert answer.status_code == 503 and "3 of 3 images are waiting (serve.max_queue)" in answer.json()["error"]
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/health/ready").status_code == 200
        predictor.runtime.gate.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert client.post(files=files_of(project)[:3]).status_code == 200


def test_a_request_that_takes_too_long_is_answered_and_its_images_are_not_computed(project):
    options = [f"serve.checkpoint={project.weights}", "serve.timeout=0.5", "serve.max_batch_size=1"]
    predictor = gated(predictor_of(project, *options))
    with serving(predictor) as client:
        answer = client.post(files=files_of(project))
        assert answer.status_code == 504 and "0.5 s (serve.timeout)" in answer.json()["error"]
        client.wait_until(0)
    assert len(predictor.runtime.sizes) <= 1  # only the image that was already running


def test_a_slow_body_and_slow_headers_end(project):
    with serving(predictor_of(project, f"serve.checkpoint={project.weights}", "serve.timeout=0.3")) as client:
        slow_body = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
        for head in (slow_body, b"GET / HTTP/1.1\r\nHos", b""):
            with socket.create_connection(client.endpoint, 60) as connection:
                connection.sendall(head)
                answer = connection.recv(4096)
                assert b"408" in answer.split(b"\r\n")[0] if head == slow_body else answer == b""


def test_a_client_that_disconnects_frees_its_place(project):
    predictor = gated(predictor_of(project, f"serve.checkpoint={project.weights}", "serve.max_batch_size=1"))
    with serving(predictor) as client:
        request = requests.Request("POST", f"{client.address}/predict", files=files_of(project)).prepare()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['Content-Type']}\r\n"
        with socket.create_connection(client.endpoint, 60) as connection:
            connection.sendall(f"{head}Content-Length: {len(request.body)}\r\n\r\n".encode() + request.body)
            client.wait_until(6)
        client.wait_until(0)
    assert len(predictor.runtime.sizes) <= 1


# Pages


def test_health_metadata_and_metrics(project, client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    client.post(project.contents[0])
    content = client.get("/metadata").json()
    assert content["classes"] == [{"index": 1, "id": 1, "name": "cat"}]
    assert content["model"]["input"] == {"height": 64, "width": 64}
    assert (content["model"]["file"], content["model"]["format"]) == (project.weights.name, "torch")
    assert content["model"]["predicts"] == "boxes" and "JPEG" in content["image_formats"]
    assert str(project.folder) not in json.dumps(content)
    page = client.get("/metrics")
    assert page.headers["Content-Type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert float(values['rtdetr_requests_total{path="/predict",status="200"}']) >= 1
    assert float(values["rtdetr_images_total"]) >= 1 and float(values["rtdetr_queued_images"]) == 0


def test_other_paths_and_methods_are_refused(client):
    answer = client.get("/predictions")
    assert answer.status_code == 404 and "/predict, /health/live" in answer.json()["error"]
    answer = client.get("/predict")
    assert answer.status_code == 405 and "use POST" in answer.json()["error"]


# The command


def test_sigterm_answers_everything_accepted_and_exits_with_0(project, monkeypatch, capsys):
    """Requests are held in the model until the signal has arrived; one more comes on an open connection."""
    predictors, listening, answers = [], {}, []

    def opened(loaded):
        predictors.append(gated(predictor_of(project, f"serve.checkpoint={project.weights}")))
        return predictors[0]

    def announced(address, predictor):
        predictor.runtime.warm.set()
        listening["address"] = address
        threading.Thread(target=clients, name="clients").start()

    def clients():
        address, runtime = listening["address"], predictors[0].runtime
        with requests.Session() as session, ThreadPoolExecutor(6) as threads:
            try:
                session.get(f"{address}/health/live", timeout=60)  # opens the connection
                held = [
                    threads.submit(requests.post, f"{address}/predict", data=content, timeout=60)
                    for content in project.contents
                ]
                while "rtdetr_queued_images 6.0" not in session.get(f"{address}/metrics", timeout=60).text:
                    pass
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
            while session.get(f"{address}/health/ready", timeout=60).status_code == 200:
                pass
            runtime.gate.set()
            answers.extend(answer.result() for answer in held)

    monkeypatch.setattr(server_module, "open_predictor", opened)
    monkeypatch.setattr(server_module, "_announce", announced)
    code = main(
        ["serve", "-e", str(project.spec_file), f"serve.checkpoint={project.weights}", "serve.port=0", "--json"]
    )
    document = json.loads(capsys.readouterr().out)
    assert (code, document["exit_code"]) == (0, 0)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert all(answer.headers["Connection"] == "close" for answer in answers)
    assert document["results"]["statuses"] == {"200": 6} and document["results"]["images"] == 6
    assert (
        json.loads((project.folder / "results/serve/status.json").read_text().splitlines()[-1])["status"] == "SUCCESS"
    )
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{listening['address']}/health/live", timeout=60)


def test_a_signal_that_the_program_was_started_to_ignore_stays_ignored(predictor):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = server_module.Server(server_module.Service(predictor), predictor.section)
        with server.capture_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
        assert server.should_exit and server.reason == "Stopped by SIGTERM"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def failure(project, capsys, *overrides: str) -> str:
    options = [f"serve.checkpoint={project.weights}", f"serve.results_dir={project.folder}/other", "serve.port=0"]
    assert project.run("serve", *options, *overrides) == 2
    return " ".join(capsys.readouterr().err.split())


def test_an_address_that_cannot_be_used_is_an_error(project, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be used" in failure(project, capsys, f"serve.port={port}")
    assert "serve.host" in failure(project, capsys, "serve.host=no such host")


def test_a_missing_package_is_named_with_its_extra(project, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("rtdetr_tool.formats.table.find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert 'requires uvicorn: pip install "rtdetr-tool[serve]"' in failure(project, capsys)


def test_fields_that_choose_how_the_model_runs(project, capsys, monkeypatch):
    of_onnx = f"serve.checkpoint={project.onnx}"
    assert "precision=bf16 is not supported" in failure(project, capsys, of_onnx, "serve.precision=bf16")
    assert "compile=true is not supported" in failure(project, capsys, of_onnx, "serve.compile=true")
    assert "onnx_provider" in failure(project, capsys, of_onnx, "serve.onnx_provider=cuda", "serve.on_cpu=true")
    assert "serve.input_height: 70" in failure(project, capsys, "serve.input_height=70")
    model = f"serve.checkpoint={project.weights}"
    wide = predictor_of(project, model, "serve.input_width=96", "serve.input_height=32")
    assert wide.size == (32, 96)
    monkeypatch.setattr(server_module.Predictor, "__module__", "x")
    section = read_spec(project.spec_file, [model, "serve.gpu_id=3"], "serve").spec.serve
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    with pytest.raises(UserError, match=r"serve.gpu_id: 3 is invalid; this machine has 2"):
        choose_device(section)


def test_classes_and_thresholds_of_the_spec(project, tmp_path):
    names, scores = tmp_path / "names.txt", tmp_path / "results.json"
    names.write_text("dog\n")
    model = f"serve.checkpoint={project.weights}"
    with pytest.raises(UserError, match="different class names"):
        predictor_of(project, model, f"serve.classmap={names}")
    scores.write_text(json.dumps({"per_class": [{"name": "cat", "best": {"threshold": 0.25}}]}))
    measured = predictor_of(project, model, f"serve.thresholds_from={scores}")
    assert measured.metadata()["thresholds"] == {"cat": 0.25}
    given = predictor_of(project, model, f"serve.thresholds_from={scores}", "serve.class_thresholds={cat: 0.75}")
    assert given.metadata()["thresholds"] == {"cat": 0.75}
    with pytest.raises(UserError, match=r"serve.class_thresholds: dog is not a class"):
        predictor_of(project, model, "serve.class_thresholds={dog: 0.75}")


def test_a_request_with_more_images_than_the_queue_holds_could_never_be_answered(project):
    with pytest.raises(SpecError, match=r"serve.max_images: 9 is invalid; expected at most 8"):
        read_spec(project.spec_file, ["serve.max_images=9", "serve.max_queue=8"])
