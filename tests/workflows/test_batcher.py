"""Images of several requests run in batches, and one of them never fails the others."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, wait

import pytest
import torch

from rtdetr_tool.data.preprocess import PreparedImage
from rtdetr_tool.errors import RtdetrError
from rtdetr_tool.ops.structures import Predictions
from rtdetr_tool.workflows.serving.admission import Admission, QueueFull
from rtdetr_tool.workflows.serving.batcher import Batcher

SIZE = (8, 8)


class Brightness:
    """A model with one box, whose score is the image's brightness; NaN for a white image. It waits for `gate`."""

    name, class_map, input_size, device = "test", None, None, torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def predict(self, images):
        self.sizes.append(len(images))
        self.entered.set()
        assert self.gate.wait(30)
        values = images.mean((1, 2, 3))
        logits = torch.where(values > 0.99, torch.nan, torch.logit(values.clamp(0.01, 0.98)))
        return Predictions(logits[:, None, None], torch.full((len(images), 1, 4), 0.5))


def image(brightness: int) -> PreparedImage:
    return PreparedImage(torch.full((3, *SIZE), brightness, dtype=torch.uint8), SIZE, (8.0, 8.0))


@pytest.fixture
def started():
    """`started(**options)`: a batcher whose model is stopped after the warm-up, and that model."""
    batchers = []

    def start(**options):
        model = Brightness()
        batcher = Batcher(model, 1, **options)
        batcher.start(SIZE)
        batchers.append((batcher, model))
        model.sizes.clear()
        model.entered.clear()
        model.gate.clear()
        return batcher, model

    yield start
    for batcher, model in batchers:
        model.gate.set()
        batcher.close()
        assert not batcher.alive


def test_images_that_wait_run_together_up_to_the_largest_batch(started):
    batcher, model = started(max_batch=3)
    first = batcher.submit(image(100))
    assert model.entered.wait(30)
    rest = [batcher.submit(image(10 * number)) for number in range(1, 6)]
    model.gate.set()
    wait([first, *rest], 30)
    assert model.sizes == [1, 3, 2]
    scores = [float(job.result().scores[0]) for job in rest]
    assert scores == pytest.approx([10 * number / 255 for number in range(1, 6)], abs=1e-5)


def test_a_batch_waits_for_images_that_are_expected(started):
    expected = threading.Event()
    batcher, model = started(max_batch=2, max_delay=30.0, expected=lambda: 1)
    model.gate.set()
    one = batcher.submit(image(10))
    assert not expected.wait(0.05) and not one.done()
    wait([one, batcher.submit(image(20))], 20)  # earlier than max_delay
    assert model.sizes == [2]


def test_a_batch_does_not_wait_if_nothing_is_expected(started):
    batcher, model = started(max_batch=2, max_delay=30.0)
    model.gate.set()
    assert batcher.submit(image(10)).result(20)
    assert model.sizes == [1]


def test_an_image_that_fails_does_not_fail_the_others_of_its_batch(started):
    batcher, model = started(max_batch=4)
    first = batcher.submit(image(1))
    assert model.entered.wait(30)
    jobs = [batcher.submit(image(value), name) for value, name in ((50, "a"), (255, "b"), (60, "c"))]
    model.gate.set()
    wait([first, *jobs], 30)
    with pytest.raises(RtdetrError, match="NaN or infinite values, for example on b"):
        jobs[1].result()
    assert [float(jobs[k].result().scores[0]) for k in (0, 2)] == pytest.approx([50 / 255, 60 / 255], abs=1e-5)
    assert model.sizes == [1, 3, 1, 1, 1]


def test_a_cancelled_image_is_not_computed(started):
    batcher, model = started(max_batch=1)
    first = batcher.submit(image(1))
    assert model.entered.wait(30)
    second, third = batcher.submit(image(2)), batcher.submit(image(3))
    assert second.cancel() and not first.cancel()
    model.gate.set()
    assert third.result(30) and first.result(30)
    with pytest.raises(CancelledError):
        second.result()
    assert model.sizes == [1, 1]


def test_close_finishes_everything_that_was_submitted(started):
    batcher, model = started(max_batch=2)
    jobs = [batcher.submit(image(value)) for value in range(1, 8)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.gate.set()
    closing.join(30)
    assert all(job.done() for job in jobs) and sum(model.sizes) == 7


def test_a_model_that_cannot_run_fails_at_the_start():
    class Broken(Brightness):
        def predict(self, images):
            raise RtdetrError("out of memory")

    batcher = Batcher(Broken(), 1)
    with pytest.raises(RtdetrError, match="out of memory"):
        batcher.start(SIZE)
    batcher.close()


def test_tickets_count_images_until_their_request_is_answered():
    admission = Admission(4)
    with admission.ticket() as one:
        one.hold(3)
        assert (admission.queued, admission.preparing) == (3, 3)
        one.submitted()
        assert (admission.queued, admission.preparing) == (3, 0)
        with admission.ticket() as two:
            with pytest.raises(QueueFull, match="4 of 4"):
                two.hold(2)
            with pytest.raises(QueueFull):
                admission.ticket()
        assert (admission.queued, admission.preparing) == (3, 0)
    assert (admission.queued, admission.preparing) == (0, 0)
