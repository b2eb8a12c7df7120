"""Machine faults end a run; only corruption of a file is a bad image. The faults in these tests are real."""

from __future__ import annotations

import errno
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetr_tool.data import faults
from rtdetr_tool.data.build import build_eval_dataset, build_loader, build_train_dataset, largest_bad_count
from rtdetr_tool.data.decoding import decode_image, decode_pil_image, image_size
from rtdetr_tool.data.faults import exists, names_in, retried
from rtdetr_tool.data.file_check import read_files
from rtdetr_tool.data.folder import ImageFolder, find_images, read_classmap
from rtdetr_tool.data.source import read_bytes
from rtdetr_tool.errors import DataError, MachineError
from rtdetr_tool.formats.calibration import read_array
from rtdetr_tool.formats.images import ImageSource

from .conftest import coco, draw_image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults require Linux")

FAILING_DISK = "/proc/self/mem"  # a regular file that raises EIO where no memory is mapped


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(faults, "PAUSES", (0.001, 0.001))


@contextmanager
def no_open_files() -> Iterator[None]:
    """No more files can be opened, because the limit is the current number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)  # the lowest free number
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def in_a_child(act: Callable[[], None]) -> str:
    """Run `act` in a forked process; return class and text of its exception."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "nothing"
        try:
            act()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(there, text.encode()[:4000])
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def image(tmp_path) -> Path:
    draw_image(tmp_path / "a.png")
    decode_image(tmp_path / "a.png")  # load modules first
    return tmp_path / "a.png"


READERS: dict[str, Callable[[Path], object]] = {
    "decode": decode_image,
    "header": image_size,
    "labels": lambda path: read_bytes(str(path), "The label file"),
    "folder": lambda path: names_in(str(path.parent)),
    "search": lambda path: find_images(str(path.parent)),
    "classmap": lambda path: read_classmap(str(path)),
    "calibration array": lambda path: read_array(path, "export.tflite.calibration"),
    "pictures": lambda path: ImageSource((str(path),), "here", (32, 32)).load(1),
    "inference": lambda path: ImageFolder([str(path)], (32, 32))[0],
}


@pytest.mark.parametrize("reader", READERS)
def test_running_out_of_file_descriptors_is_a_machine_error_for_every_reader(reader, image) -> None:
    with no_open_files(), pytest.raises(MachineError, match=r"Too many open files.*problem of the machine.*ulimit -n"):
        READERS[reader](image)


def test_a_failing_disk_does_not_count_as_a_corrupted_image() -> None:
    for read in (decode_image, image_size, lambda path: read_bytes(path, "The label file")):
        with pytest.raises(MachineError, match="/proc/self/mem cannot be read: Input/output error"):
            read(FAILING_DISK)


def test_a_decoder_that_hides_why_it_got_no_bytes_is_seen_through(image, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:  # Pillow's error for an EIO in libtiff
        monkeypatch.undo()
        raise OSError("decoder error -2")

    monkeypatch.setattr(Image, "open", broken)
    monkeypatch.setattr(faults, "PAUSES", ())
    with pytest.raises(MachineError, match="Input/output error"):
        decode_image(FAILING_DISK)
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match="decoder error"):  # the file can be read, so the file is the problem
        decode_image(image)


def test_an_image_that_can_no_longer_be_opened_does_not_count_as_corrupted(image) -> None:
    image = Image.open(image)
    image.fp.close()
    image.fp = open(FAILING_DISK, "rb")  # noqa: SIM115
    with pytest.raises(MachineError, match="Input/output error"):
        decode_pil_image(image)


def test_running_out_of_memory_is_a_machine_error(tmp_path) -> None:
    Image.fromarray(np.zeros((4000, 5000, 3), np.uint8)).save(tmp_path / "large.bmp")

    def read() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20), resource.RLIM_INFINITY))
        hoard = []  # otherwise memory freed by earlier tests would be reused
        with suppress(MemoryError):
            while True:
                hoard.append(bytearray(1 << 20))
        del hoard[-8:]
        decode_image(tmp_path / "large.bmp")

    assert in_a_child(read).startswith("MachineError: ")


def test_an_absurd_memory_request_is_an_error_of_the_file() -> None:
    assert faults.kind_of(MemoryError()) is None


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A temporary folder that other users can access, unlike pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_folder_without_permission_is_a_machine_error_but_a_single_file_is_not(public_folder) -> None:
    for name in ("open", "locked"):
        draw_image(public_folder / name / "a.png")
    (public_folder / "locked").chmod(0)
    (public_folder / "open" / "a.png").chmod(0)

    def as_nobody(read: Callable[[], object]) -> str:
        def act() -> None:
            if os.getuid() == 0:
                os.setuid(65534)
            read()

        return in_a_child(act)

    locked = str(public_folder / "locked" / "a.png")
    for read in (lambda: decode_image(locked), lambda: exists(locked), lambda: find_images(str(public_folder))):
        assert as_nobody(read).startswith("MachineError: ") and "Permission denied" in as_nobody(read)
    assert as_nobody(lambda: decode_image(public_folder / "open" / "a.png")).startswith("DataError: ")
    (public_folder / "locked").chmod(0o755)


def test_temporary_faults_are_retried_and_other_errors_are_not() -> None:
    calls: list[int] = []

    def read(number: int) -> Callable[[], str]:
        def attempt() -> str:
            calls.append(number)
            if len(calls) < 3:
                raise OSError(number, os.strerror(number))
            return "content"

        return attempt

    for number in (errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE, errno.EIO):
        calls.clear()
        assert retried(read(number), "a") == "content" and len(calls) == 3
    calls.clear()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        retried(read(errno.EINVAL), "a")
    assert len(calls) == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_a_fault_ends_training_and_evaluation_and_no_image_is_replaced(
    make_source, make_spec, training, workers, caplog
) -> None:
    source = make_source()
    spec = make_spec(train_data_sources=[source], val_data_sources=source, workers=workers, dataset_type="default")
    dataset = build_train_dataset(spec) if training else build_eval_dataset(spec, "val")
    dataset.records[2].path = FAILING_DISK
    with pytest.raises(MachineError, match="Input/output error") as caught:
        list(build_loader(dataset, spec, training=training))
    assert "Traceback" not in str(caught.value) and "Using another image" not in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_fault_ends_inference_and_validate_data(make_source, make_spec, workers) -> None:
    source = make_source()
    spec = make_spec(val_data_sources=source, workers=workers, dataset_type="default")
    images = ImageFolder([*find_images(source["image_dir"]), FAILING_DISK], (32, 32))
    with pytest.raises(MachineError, match="Input/output error"):
        list(build_loader(images, spec, training=False))
    records = build_eval_dataset(spec, "val").records
    records[1].path = FAILING_DISK
    with pytest.raises(MachineError, match="Input/output error"):
        list(read_files(records, workers))


def test_a_deleted_folder_ends_the_run(make_source, make_spec, tmp_path) -> None:
    source = make_source()
    dataset = build_train_dataset(make_spec(train_data_sources=[source]))
    (tmp_path / "set").rename(tmp_path / "unmounted")
    with pytest.raises(MachineError, match="still mounted"):
        dataset[0]


def test_a_worker_that_cannot_send_its_batch_ends_the_run_instead_of_hanging(make_source, make_spec) -> None:
    spec = make_spec(val_data_sources=make_source(), workers=1)
    dataset = build_eval_dataset(spec, "val")
    decode_image(dataset.records[0].path)

    class Greedy(type(dataset)):
        """Leaves one file descriptor to its process: enough to read an image, but not to send it."""

        def sample(self, index):
            free = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
            for number in free:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[0] + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            return super().sample(index)

    dataset.__class__ = Greedy
    with pytest.raises(MachineError, match="output of the data workers cannot be read: too many open files"):
        list(build_loader(dataset, spec, training=False))


def test_the_number_of_images_that_are_replaced_is_bounded(make_source, make_spec, tmp_path) -> None:
    source = make_source(coco(30), images=30)
    for number in range(12):
        (tmp_path / "set" / f"{number}.png").write_bytes(b"no image")
    assert largest_bad_count(30, 0.1) == 10 and largest_bad_count(1000, 0.1) == 100
    dataset = build_train_dataset(make_spec(train_data_sources=[source]))
    for number in range(10):
        dataset[number]
    with pytest.raises(DataError, match=r"11 different training images.*max_bad_share allows at most 10"):
        dataset[10]
    dataset = build_train_dataset(make_spec(train_data_sources=[source], max_bad_share=0.5))
    assert len([dataset[number] for number in range(30)]) == 30


def test_missing_images_count_against_the_same_bound(make_source, make_spec, tmp_path) -> None:
    source = make_source(coco(30), images=30)
    for number in range(11):
        (tmp_path / "set" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"11 of 30 training images do not.*max_bad_share allows at most 10.*0\.png"):
        build_train_dataset(make_spec(train_data_sources=[source]))
    dataset = build_train_dataset(make_spec(train_data_sources=[source], max_bad_share=0.4))
    assert len(dataset) == 19 and dataset.max_bad == 1
