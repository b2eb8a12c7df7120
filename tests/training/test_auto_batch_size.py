"""What counts as "does not fit" when the batch size is determined on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
