"""The pretended device detects mixed devices, waits, copies, masks and launches as a real one does."""

from __future__ import annotations

import pytest
import torch

from tests.gpu_budget.pretended_cuda import (
    ASYNC_COPY,
    ASYNC_READ,
    BLOCKING_COPY,
    CUDA,
    HOST_INDEX,
    MASK,
    WAIT,
    PretendedCuda,
    to_cuda,
)


def copy_into_pinned(x):
    torch.empty(x.shape, pin_memory=True).copy_(x, non_blocking=True)


@pytest.mark.parametrize(
    ("action", "kinds"),
    [
        (lambda x: x.item() if x.numel() == 1 else x.sum().item(), [WAIT]),
        (lambda x: bool((x > 0).all()), [WAIT]),
        (lambda x: x.cpu(), [WAIT]),
        (lambda x: x.tolist(), [WAIT]),
        (lambda x: x[x > 0], [MASK]),
        (lambda x: x.nonzero(), [MASK]),
        (lambda x: x[[0, 1]], [HOST_INDEX]),
        (lambda x: torch.tensor([1.0, 2.0], device=CUDA), [BLOCKING_COPY]),
        (lambda x: torch.ones(3).to(CUDA, non_blocking=True), [ASYNC_COPY]),
        (lambda x: torch.ones(3).to(CUDA), [BLOCKING_COPY]),
        (copy_into_pinned, [ASYNC_READ]),
        (lambda x: x.masked_fill(x > 0, 0.0), []),
        (lambda x: torch.full((3,), 2.0, device=CUDA) * 2, []),
        (lambda x: x[1:].view(-1).add(1), []),
    ],
)
def test_what_crosses_between_host_and_device_is_seen(action, kinds):
    with PretendedCuda() as device:
        x = to_cuda(torch.randn(4))
        with device.count() as count:
            action(x)
    assert [kind for (kind, _), number in count.events.items() for _ in range(number)] == kinds


def test_tensors_on_different_devices_are_refused_as_by_cuda():
    with PretendedCuda() as device:
        x = to_cuda(torch.randn(4))
        with pytest.raises(RuntimeError, match="different devices"):
            x + torch.ones(4)
        assert (x + torch.tensor(1.0)).device == CUDA  # a number on the host is fine
    assert len(device.mismatches) == 1


def test_views_and_allocations_launch_nothing_and_values_are_real():
    with PretendedCuda() as device:
        x = to_cuda(torch.arange(6.0)).requires_grad_()
        with device.count() as count:
            view = x.view(2, 3).transpose(0, 1)[1:]
            torch.empty(10, device=CUDA)
        assert count.kernels == 0
        with device.count() as count:
            loss = (view * 2).sum()
        assert count.kernels == 2 and loss.item() == 2 * (1 + 4 + 2 + 5)
        with device.count() as count:
            loss.backward()
        assert count.kernels > 0 and x.grad.cpu().tolist() == [0, 2, 2, 0, 2, 2]
