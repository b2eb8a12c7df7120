"""`rtdetr export export.format=executorch`, and the commands that run what it wrote."""

from __future__ import annotations

import struct

import pytest
import torch

from rtdetr_tool.errors import CheckpointError
from rtdetr_tool.formats.executorch.file import read
from rtdetr_tool.formats.executorch.runtime import ExecutorchRuntime, run_once

pytest.importorskip("executorch", reason="the converter is an extra: executorch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory, make_exported):
    return make_exported(tmp_path_factory.mktemp("executorch"), "executorch", notes="Grüße")


def test_the_program_is_verified_and_has_its_metadata(shared):
    (difference,) = shared.first["differences"]
    assert difference["score"] < 1e-4 and difference["box"] < 1e-4 and difference["unmatched"] == 0
    assert (shared.first["batch"], shared.first["data_type"]) == (1, "FP32")
    assert shared.first["bytes"] == shared.file.stat().st_size
    file = read(shared.file)
    assert file.description["names"] == {"1": "cat"} and file.description["notes"] == "Grüße"
    assert (file.interface.size, file.interface.queries, file.interface.classes) == ((64, 64), 8, 2)


def test_commands_and_the_python_api_run_it(shared):
    shared.check_agreement()
    assert shared.run("inference", f"inference.checkpoint={shared.file}", "inference.conf_threshold=0.0") == 0
    assert len(list((shared.folder / "results/inference/labels").iterdir())) == 6


def test_int8_states_what_it_changes_and_is_smaller(shared):
    code, file = shared.export(
        "int8.pte", "export.executorch.data_type=INT8", "export.executorch.max_cost=1",
        "export.executorch.calibration_images=4", f"export.executorch.calibration={shared.folder / 'images'}",
    )  # fmt: skip
    assert code == 0
    report = shared.report()
    assert (report["data_type"], report["calibration_images"]) == ("INT8", 4) and 0 < report["cost"] < 1
    assert report["bytes"] == file.stat().st_size < 0.7 * shared.first["bytes"]
    assert read(file).description["precision"] == "INT8"
    assert shared.evaluated(file)["mAP"] is not None


def test_above_the_maximum_cost_no_file_is_written(shared, capsys):
    code, file = shared.export(
        "dear.pte", "export.executorch.data_type=INT8", "export.executorch.max_cost=0",
        f"export.executorch.calibration={shared.folder / 'images'}",
    )  # fmt: skip
    assert code == 1 and not file.exists()
    assert "export.executorch.max_cost is 0" in capsys.readouterr().err


def test_a_batch_is_padded_and_an_exported_backbone_returns_features(shared):
    code, file = shared.export("two.pte", "export.batch_size=2")
    assert code == 0
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    single = ExecutorchRuntime(read(shared.file)).predict(images)
    torch.testing.assert_close(ExecutorchRuntime(read(file)).predict(images).logits, single.logits, atol=1e-4, rtol=0)
    code, file = shared.export("backbone.pte", "export.backbone_only=true")
    assert code == 0
    shapes = {name: tuple(level.shape) for name, level in run_once(file, torch.rand(1, 3, 64, 64)).items()}
    assert shapes == {"features": (1, 16, 8, 8), "features_1": (1, 16, 4, 4), "features_2": (1, 16, 2, 2)}
    with pytest.raises(CheckpointError, match=r"exported with export\.backbone_only"):
        read(file)


@pytest.mark.parametrize("masks", [False, True])
def test_an_rfdetr_is_verified_too(masks, export_rfdetr):
    _, _, (row,) = export_rfdetr("executorch", masks=masks)
    assert row["score"] < 1e-4 and row["box"] < 1e-4 and row["mask"] < 1e-4 and row["unmatched"] == 0


class TestBadFiles:
    @pytest.fixture
    def changed(self, shared, tmp_path):
        def write(change):
            path = tmp_path / "changed.pte"
            path.write_bytes(change(shared.file.read_bytes()))
            return path

        return write

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
    def test_truncated(self, kept, changed):
        with pytest.raises(CheckpointError, match="is truncated: it has"):
            read(changed(lambda content: content[: int(kept * len(content))]))

    def test_a_damaged_program(self, changed):
        with pytest.raises(CheckpointError, match="may be corrupted"):
            read(changed(lambda content: content[:200] + bytes(2000) + content[2200:]))

    def test_a_backend_that_this_runtime_lacks(self, changed, shared):
        assert b"XnnpackBackend" in shared.file.read_bytes()
        with pytest.raises(CheckpointError, match="built for a backend that this runtime does not have"):
            read(changed(lambda content: content.replace(b"XnnpackBackend", b"UnknownBackend")))

    def test_a_program_without_names(self, changed):
        with pytest.raises(CheckpointError, match="does not name its 1 inputs; expected a program with a method"):
            read(changed(lambda content: content.replace(b"rtdetr_tool\0", b"other_thing\0")))

    def test_a_program_that_is_no_detector(self, changed):
        with pytest.raises(CheckpointError, match="other_name"):
            read(changed(lambda content: content.replace(b"pred_boxes", b"other_name")))


def test_the_header_states_the_size_that_is_checked(shared):
    content = shared.file.read_bytes()
    assert content[4:6] == b"ET" and content[8:12] == b"eh00"
    _, _, offset, segments = struct.unpack_from("<IQQQ", content, 12)
    assert 0 <= len(content) - (offset + segments) < 64
