"""Published weights: the cache, the hash, messages without a network, and licenses."""

from __future__ import annotations

import argparse
import json
import logging
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from rtdetr_tool.catalog import COCO_CATEGORIES, DFINE_VARIANTS, PUBLISHED_WEIGHTS, RFDETR_VARIANTS
from rtdetr_tool.checkpoints import download as downloads
from rtdetr_tool.checkpoints import published as published_weights
from rtdetr_tool.checkpoints.detector_file import read_detector
from rtdetr_tool.checkpoints.download import md5_of
from rtdetr_tool.checkpoints.hub import HUB_NAMES
from rtdetr_tool.checkpoints.published import cache_folder, published, weights_path
from rtdetr_tool.cli import main
from rtdetr_tool.errors import CheckpointError, UserError
from rtdetr_tool.families.rfdetr.names import to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.formats.opening import open_detector
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.spec import ModelSpec, read_spec

FEW = {"num_queries": 5, "group_detr": 2, "dim_feedforward": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    return tmp_path / "cache"


def write_weights(path, variant="nano", classes=91, **changes):
    """A file in the format of Roboflow's published ones, with random weights and a narrow decoder."""
    spec = ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant, **{**FEW, **changes}))
    weights = to_rfdetr(build_detector(spec, classes).state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "args": argparse.Namespace(num_classes=classes - 1, pretrain_weights="none")}, path)
    return path


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("served") / "nano.pth")


@pytest.fixture
def served(nano, monkeypatch):
    """Serve the file of `nano` as the published Nano from a local server."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(nano.parent))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/nano.pth"
    row = PUBLISHED_WEIGHTS["rf-detr-nano.pth"]._replace(url=url, md5=md5_of(nano))
    monkeypatch.setitem(PUBLISHED_WEIGHTS, row.file, row)
    yield row
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_variant_has_weights_with_a_url_and_a_hash():
    assert {row.weights for row in (*RFDETR_VARIANTS.values(), *DFINE_VARIANTS.values())} <= set(PUBLISHED_WEIGHTS)
    for row in PUBLISHED_WEIGHTS.values():
        assert row.md5 is not None or "Peterande" in row.url  # which provides no hashes
        assert row.url.startswith("https://")


def test_urls_and_hashes_are_those_of_rfdetr():
    original = pytest.importorskip("rfdetr.assets.model_weights").ModelWeights
    for row in (PUBLISHED_WEIGHTS[variant.weights] for variant in RFDETR_VARIANTS.values()):
        if row.license == "PML-1.0":  # of rfdetr_plus
            assert row.url.endswith(f"/platform-licensed/{row.file}")
            continue
        assert (original.get_url(row.file), original.get_md5(row.file)) == (row.url, row.md5)


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rtdetr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rtdetr"


def test_a_published_name_has_an_optional_suffix_and_no_folder():
    assert published("rf-detr-nano") is published("rf-detr-nano.pth") is not None
    assert published("weights/rf-detr-nano.pth") is None and published("rf-detr-pico") is None


def test_a_named_detector_is_downloaded_once_and_opened_with_coco_classes(served, cache):
    opened = open_detector("rf-detr-nano", read_spec(None))
    assert [file.name for file in cache.iterdir()] == ["rf-detr-nano.pth"]
    assert opened.spec.model.arch == "rfdetr" and opened.spec.dataset.num_classes == 91
    assert opened.class_map.categories == COCO_CATEGORIES and opened.class_map.name_of(18) == "dog"
    before = (cache / "rf-detr-nano.pth").stat().st_mtime_ns
    assert weights_path("rf-detr-nano.pth") == cache / "rf-detr-nano.pth"
    assert (cache / "rf-detr-nano.pth").stat().st_mtime_ns == before


def test_a_file_of_that_name_in_the_working_folder_is_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rf-detr-nano.pth").write_bytes(b"mine")
    assert str(weights_path("rf-detr-nano.pth")) == "rf-detr-nano.pth"


def test_without_a_network_the_message_has_the_url_and_path(cache, monkeypatch):
    row = PUBLISHED_WEIGHTS["rf-detr-nano.pth"]._replace(url="http://127.0.0.1:9/nano.pth")
    monkeypatch.setitem(PUBLISHED_WEIGHTS, row.file, row)
    with pytest.raises(CheckpointError) as caught:
        read_detector("rf-detr-nano")
    text = str(caught.value)
    assert "Connection refused" in text and row.url in text and str(row.md5) in text
    assert f"save it as {cache / 'rf-detr-nano.pth'}" in text


def test_a_file_in_the_cache_must_be_the_published_one(served, cache):
    cache.mkdir()
    (cache / "rf-detr-nano.pth").write_bytes(b"half of it")
    with pytest.raises(CheckpointError, match=rf"rf-detr-nano.pth is not the published .* expected {served.md5}"):
        read_detector("rf-detr-nano")


def test_a_wrong_file_on_the_server_is_refused(served, cache, monkeypatch):
    monkeypatch.setitem(PUBLISHED_WEIGHTS, served.file, served._replace(md5="0" * 32))
    with pytest.raises(CheckpointError, match="is not the published file"):
        read_detector("rf-detr-nano")
    assert not (cache / served.file).exists()


def test_a_file_without_a_published_hash_is_downloaded_and_this_is_logged(served, cache, monkeypatch, caplog):
    monkeypatch.setitem(PUBLISHED_WEIGHTS, "dfine_n_coco.pth", served._replace(file="dfine_n_coco.pth", md5=None))
    with caplog.at_level(logging.INFO):
        assert weights_path("dfine_n_coco") == cache / "dfine_n_coco.pth"
    assert "dfine_n_coco.pth provides no hash" in caplog.text and (cache / "dfine_n_coco.pth").stat().st_size > 0


def test_an_unknown_name_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match=r"rf-detr-nono: not a supported file.*published weights: rf-detr-nano, rf"):
        open_detector("rf-detr-nono", read_spec(None))


@pytest.fixture
def served_xlarge(served, nano, tmp_path, monkeypatch):
    """Serve a narrow XLarge as the published one."""
    file = write_weights(nano.parent / "xlarge.pth", "xlarge", encoder="dinov2_windowed_small", dec_layers=1)
    row = PUBLISHED_WEIGHTS["rf-detr-xlarge.pth"]
    row = row._replace(url=served.url.replace("nano", "xlarge"), md5=md5_of(file))
    monkeypatch.setitem(PUBLISHED_WEIGHTS, row.file, row)
    return row


def test_restricted_weights_are_downloaded_after_their_license_is_accepted(served_xlarge, cache):
    with pytest.raises(CheckpointError, match=r"PML-1.0.*set model.rfdetr.accept_platform_model_license=true"):
        open_detector("rf-detr-xlarge", read_spec(None))
    assert not (cache / "rf-detr-xlarge.pth").exists()
    opened = open_detector("rf-detr-xlarge", read_spec(None, ["model.rfdetr.accept_platform_model_license=true"]))
    assert opened.spec.model.rfdetr.variant == "xlarge" and md5_of(cache / "rf-detr-xlarge.pth") == served_xlarge.md5


def test_the_download_command_asks_for_the_acceptance_of_a_license(served_xlarge, cache, capsys):
    assert main(["download", "rf-detr-xlarge"]) == 2
    assert "If you accept this license, add --accept-license PML-1.0" in capsys.readouterr().err
    assert not (cache / "rf-detr-xlarge.pth").exists()
    assert main(["download", "rf-detr-xlarge", "--accept-license", "PML-1.0"]) == 0
    assert capsys.readouterr().out.strip() == str(cache / "rf-detr-xlarge.pth")


def test_weights_are_opened_by_url(served, cache, capsys):
    named, there = (
        open_detector(source, read_spec(None)) for source in (f"{served.url}?download=true", "rf-detr-nano")
    )
    expected = there.detector.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in named.detector.state_dict().items())
    assert main(["download", served.url]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == "nano.pth" and cache in path.parents


def test_a_url_without_a_file_is_reported(served):
    with pytest.raises(CheckpointError, match=r"missing\.pth cannot be read: the server returned 404"):
        open_detector(served.url.replace("nano", "missing"), read_spec(None))


def test_restricted_weights_require_consent_and_licenses_are_logged(tmp_path, nano, caplog):
    path = write_weights(tmp_path / "mine.pth", "xlarge", encoder="dinov2_windowed_small", dec_layers=1)
    with pytest.raises(CheckpointError, match=r"PML-1.0.*set model.rfdetr.accept_platform_model_license=true"):
        open_detector(str(path), read_spec(None))
    with caplog.at_level(logging.INFO, published_weights.__name__):
        open_detector(str(path), read_spec(None, ["model.rfdetr.accept_platform_model_license=true"]))
        open_detector(str(nano), read_spec(None))
    accepted, free = [record.getMessage() for record in caplog.records if record.name == published_weights.__name__]
    assert "under Roboflow's Platform Model License 1.0 (PML-1.0), accepted" in accepted
    assert free.endswith("published under Apache-2.0")


def test_the_download_command_fetches_and_verifies_and_models_lists_it(served, cache, capsys):
    assert main(["download", "rf-detr-nano"]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(cache / "rf-detr-nano.pth") and md5_of(path) == PUBLISHED_WEIGHTS["rf-detr-nano.pth"].md5
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == len(PUBLISHED_WEIGHTS) + len(HUB_NAMES)
    assert rows["rf-detr-nano"]["path"] == path and rows["rf-detr-small"]["path"] is None
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "rf-detr-seg-nano" in table and "must be accepted" in table


def test_the_download_command_names_what_it_does_not_know(capsys):
    assert main(["download", "rf-detr-nano", "rf-detr-nanoo"]) == 2
    text = capsys.readouterr().err
    assert "rf-detr-nanoo: not a published name; expected rf-detr-nano" in text


def test_the_download_command_refuses_a_cached_file_with_another_hash(served, cache, capsys):
    cache.mkdir()
    (cache / "rf-detr-nano.pth").write_bytes(b"something else")
    assert main(["download", "rf-detr-nano"]) == 2
    assert "its MD5 is" in capsys.readouterr().err
