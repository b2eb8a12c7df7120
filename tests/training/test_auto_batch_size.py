"""What counts as "does not fit" when the batch size is determined on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rtdetr_tool.families.base import KeypointLayout
from rtdetr_tool.training import auto_batch_size


@pytest.fixture
def failing(monkeypatch):
    """`failing(error)`: a training step on the GPU raises this."""

    def fail_with(error: Exception) -> None:
        def step(*args):
            raise error

        monkeypatch.setattr(auto_batch_size, "_step", step)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return fail_with


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_failed_allocation_of_any_library_means_that_the_batch_does_not_fit(failing, error):
    failing(error)
    assert not auto_batch_size._fits_gpu(nn.Linear(1, 1), 4, torch.device("cuda"))


def test_another_error_is_not_hidden(failing):
    failing(RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        auto_batch_size._fits_gpu(nn.Linear(1, 1), 4, torch.device("cuda"))


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_the_objects_of_a_trial_have_what_the_model_predicts(kind):
    spec = SimpleNamespace(
        dataset=SimpleNamespace(augmentation=SimpleNamespace(train_spatial_size=(8, 12))),
        model=SimpleNamespace(keypoints=KeypointLayout((0, 5))),
    )
    module = SimpleNamespace(detector=SimpleNamespace(predicts=kind, num_channels=3), spec=spec)
    for target in auto_batch_size.trial_batch(module, 2, torch.device("cpu")).targets:
        shapes = {"masks": (len(target.boxes), 8, 12), "keypoints": (len(target.boxes), 5, 3)}
        for name, shape in shapes.items():
            found = getattr(target, name)
            assert (found is None) if name != kind else tuple(found.shape) == shape
