"""A pretended CUDA device: real values on the CPU, while kernels, waits and copies are counted as on CUDA.

A `CudaTensor` reports the device cuda:0 and contains a CPU tensor. Within `PretendedCuda()`, every dispatched operator
(forward, backward, optimizer) runs on the CPU and is recorded:

- `kernels`: operators that launch work on the device, without views and allocations.
- `events`: waits of the host for the device, and transfers between the two (`WAITS`, `COPIES` and others below).
- `mismatches`: operators with tensors of both devices, which are errors on CUDA.

`FakeTensorMode` is not enough for this: without a driver it has no backward pass, and it has no values, which matching
needs. Limits: it does not see what happens inside an ATen operator, and operators composed in C++ use their CPU path.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.utils.clip_grad
import torch.utils._foreach_utils
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
PACKAGE = str(Path(__file__).parents[2] / "rtdetr_tool")

# Kinds of events
WAIT = "device to host"  # item(), bool(), tolist(), cpu()
MASK = "shape depends on values"  # nonzero, boolean mask: the host waits for the shape
BLOCKING_COPY = "host to device, blocking"
HOST_INDEX = "indices on the host"  # ATen copies them to the device, blocking
SYNC = "synchronize"
ASYNC_COPY = "host to device, asynchronous"
ASYNC_READ = "device to host, asynchronous"  # into pinned memory
EVENT_WAIT = "wait for an event"

_NO_KERNEL = frozenset(
    (
        *("detach", "alias", "_unsafe_view", "lift_fresh", "lift", "empty", "empty_like", "empty_strided"),
        *("new_empty", "new_empty_strided", "set_", "_reshape_alias", "resize_", "is_same_size", "sym_size"),
        *("sym_stride", "sym_numel", "sym_storage_offset", "device", "_version", "_has_compatible_shallow_copy_type"),
    )
)
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))
_MIXED_DEVICES = frozenset((*_INDEXING, "copy_", "_to_copy", "set_", "is_same_size"))
_VALUE_DEPENDENT = frozenset(
    ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal", "is_nonzero")
)


class CudaTensor(torch.Tensor):
    """A tensor that reports cuda:0 and computes on the CPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> CudaTensor:
        assert not isinstance(elem, CudaTensor)
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device="cpu",
            requires_grad=requires_grad,
        )
        wrapper.elem = elem
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    def _read(self) -> Tensor:
        _note(WAIT)
        return self.elem.detach()

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._read()

    def tolist(self) -> Any:
        return self._read().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def to(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], torch.Tensor):
            device, dtype, options = args[0].device, args[0].dtype, {}
        else:
            device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
            options = {} if memory_format is None else {"memory_format": memory_format}
        if device is not None and device.type == "cpu":
            return self._read().to(dtype or self.dtype, **options)
        if dtype is None and not options and not copy:
            return self
        return torch.Tensor.to(self, dtype=dtype or self.dtype, copy=copy, **options)

    def cuda(self, *args: Any, **kwargs: Any) -> CudaTensor:
        return self

    def get_device(self) -> int:
        return 0

    def pin_memory(self, *args: Any) -> Any:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or CUDA, requires_grad=requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaTensor:
        if id(self) not in memo:
            with torch.no_grad():
                copied = CudaTensor(self.elem.clone())
            copied.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # what torch.nn.Parameter is recognized by
            memo[id(self)] = copied
        return memo[id(self)]


def _allocate_like_self(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`new_zeros` and similar; C++ would allocate on the CPU."""

    def new(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return function(*args, **{"dtype": self.dtype, "device": CUDA, **kwargs})

    return new


for _name in ("zeros", "ones", "empty", "full"):
    setattr(CudaTensor, f"new_{_name}", _allocate_like_self(getattr(torch, _name)))


class PretendedCuda(TorchDispatchMode):
    """See the module docstring. `strict`: raise at the first operator that mixes devices."""

    active: PretendedCuda | None = None

    def __init__(self, strict: bool = True) -> None:
        super().__init__()
        self.strict, self.counting = strict, False
        self.operators: collections.Counter[str] = collections.Counter()
        self.events: collections.Counter[tuple[str, str]] = collections.Counter()  # by kind and location
        self.mismatches: list[str] = []
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> PretendedCuda:
        PretendedCuda.active = self
        _patch(self._patches)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        result = super().__exit__(*error)
        self._patches.close()
        PretendedCuda.active = None
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    @contextlib.contextmanager
    def count(self) -> Iterator[PretendedCuda]:
        """Count inside the block; counters start at zero, unless already counting."""
        if not self.counting:
            self.operators.clear()
            self.events.clear()
        self.counting = True
        try:
            yield self
        finally:
            self.counting = False

    @property
    def kernels(self) -> int:
        return sum(self.operators.values())

    def number_of(self, *kinds: str) -> int:
        return sum(count for (kind, _), count in self.events.items() if kind in kinds)

    def describe(self, *kinds: str) -> list[str]:
        return [f"{count} x {kind} at {place}" for (kind, place), count in self.events.items() if kind in kinds]


def to_cuda(thing: Any) -> Any:
    """Move modules (in place), tensors and dictionaries to the pretended device, without counting."""
    if isinstance(thing, torch.nn.Module):
        with torch.no_grad():
            for module in thing.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not isinstance(parameter, CudaTensor):
                        moved = CudaTensor(parameter.detach().clone()).requires_grad_(parameter.requires_grad)
                        moved._is_param = True
                        module._parameters[name] = moved
                for name, buffer in module._buffers.items():
                    if buffer is not None and not isinstance(buffer, CudaTensor):
                        module._buffers[name] = CudaTensor(buffer.detach().clone())
        return thing
    if isinstance(thing, dict):
        return {key: to_cuda(value) for key, value in thing.items()}
    return CudaTensor(thing.detach())


def _place() -> str:
    """File and line of the innermost frame in the package."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"


def _note(kind: str) -> None:
    active = PretendedCuda.active
    if active is not None and active.counting:
        active.events[kind, _place()] += 1


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    on_host = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    _record_event(name, args, kwargs, bool(on_device), target)
    in_backward = torch._C._current_graph_task_id() != -1
    if on_device and any(tensor.ndim for tensor in on_host) and name not in _MIXED_DEVICES and not in_backward:
        _refuse(f"{name} of tensors on different devices at {_place()}")
    result_on_device = bool(on_device) if target is None else target == "cuda"
    if (
        in_backward and target != "cuda"
    ):  # formulas allocate with the options of a tensor, which are those of the CPU in C++
        result_on_device = bool(on_device) or not on_host
    if name in _INDEXING or name in ("copy_", "set_"):
        result_on_device = isinstance(args[0], CudaTensor)
    plain_args, plain_kwargs = tree_map_only(CudaTensor, lambda tensor: tensor.elem, (args, kwargs))
    if target == "cuda":
        plain_kwargs["device"] = torch.device("cpu")
    if plain_kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False
    result = func(*plain_args, **plain_kwargs)
    if not result_on_device:
        return result
    active = PretendedCuda.active
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    if active is not None and active.counting and not is_view and name not in _NO_KERNEL:
        active.operators[name] += 1
    wrapped = tree_map_only(torch.Tensor, lambda t: t if isinstance(t, CudaTensor) else CudaTensor(t), result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _record_event(name: str, args: Any, kwargs: dict[str, Any], on_device: bool, target: str | None) -> None:
    if name == "_to_copy" and target == "cuda" and not on_device:
        _note(ASYNC_COPY if kwargs.get("non_blocking") else BLOCKING_COPY)
    elif name == "copy_" and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
        asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if isinstance(args[0], CudaTensor):
            _note(ASYNC_COPY if asynchronous else BLOCKING_COPY)
        else:
            _note(ASYNC_READ if asynchronous else WAIT)
    elif not on_device:
        return
    elif name == "_local_scalar_dense":
        _note(WAIT)
    elif name in _VALUE_DEPENDENT or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _note(MASK)
    elif name in _INDEXING:
        fills_by_mask = name != "index" and len(args[1]) == 1 and args[2].numel() == 1  # is masked_fill
        for index in args[1]:
            if isinstance(index, torch.Tensor):
                if index.dtype in (torch.bool, torch.uint8) and not fills_by_mask:
                    _note(MASK)
                if not isinstance(index, CudaTensor) and isinstance(args[0], CudaTensor):
                    _note(HOST_INDEX)


def _refuse(text: str) -> None:
    active = PretendedCuda.active
    if active is not None:
        active.mismatches.append(text)
        if active.strict:
            raise RuntimeError(text)


class _Stream:
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_stream(self, *args: Any) -> None: ...
    def wait_event(self, *args: Any) -> None: ...
    def synchronize(self) -> None:
        _note(SYNC)


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return 0.0

    def synchronize(self) -> None:
        _note(EVENT_WAIT)


_AUTOCAST = torch.autocast


class _CpuAutocast(_AUTOCAST):
    """Autocast for the CPU, because C++ treats pretended tensors as such; its lists are close to CUDA's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _pad_sequence(
    sequences: Any, batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    first, longest = sequences[0], max(len(sequence) for sequence in sequences)
    padded = torch.full(
        (len(sequences), longest, *first.shape[1:]), padding_value, dtype=first.dtype, device=first.device
    )
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)].copy_(sequence)
    return padded if batch_first else padded.transpose(0, 1)


_group_tensors = torch._C._group_tensors_by_device_and_dtype


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    groups = _group_tensors(lists, with_indices)
    if any(isinstance(tensor, CudaTensor) for tensor in lists[0]):
        return {(CUDA, dtype): value for (_, dtype), value in groups.items()}
    return groups


def _patch(stack: contextlib.ExitStack) -> None:
    def replace(target: Any, **attributes: Any) -> None:
        for name, value in attributes.items():
            stack.enter_context(mock.patch.object(target, name, value))

    replace(
        torch.cuda,
        _lazy_init=lambda: None,
        is_available=lambda: True,
        device_count=lambda: 1,
        is_bf16_supported=lambda *args, **kwargs: True,
        Event=_Event,
        Stream=_Stream,
        current_stream=lambda *args: _Stream(),
        synchronize=lambda *args: _note(SYNC),
        manual_seed=lambda *args: None,
        manual_seed_all=lambda *args: None,
    )
    replace(torch.Tensor, pin_memory=lambda self, *args: self)
    replace(torch, autocast=_CpuAutocast)
    replace(torch.amp, autocast=_CpuAutocast)
    replace(torch._C._nn, pad_sequence=_pad_sequence)
    replace(torch._C, _group_tensors_by_device_and_dtype=_grouped)
    replace(torch.optim.Optimizer, _accelerator_graph_capture_health_check=lambda self: None)
    # `torch.optim` hides its module `optimizer`
    for module in (importlib.import_module("torch.optim.optimizer"), torch.utils._foreach_utils):
        if hasattr(module, "_foreach_supported_types"):
            replace(module, _foreach_supported_types=[torch.Tensor, torch.nn.Parameter, CudaTensor])
    for module in (torch.utils._foreach_utils, torch.nn.utils.clip_grad):
        if hasattr(module, "_has_foreach_support"):
            replace(module, _has_foreach_support=lambda tensors, device: True)
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    stack.callback(torch._C._set_only_lift_cpu_tensors, before)
