"""Recompute norms, activations, sums and concatenations in the backward pass instead of storing their outputs.

A convolution keeps its input for the backward pass. Mostly this is the output of a norm and an activation, and the norm
keeps its own input, the output of another convolution: each map is stored twice. Within `recomputing`, only the outputs
of convolutions are stored, and what follows from them is computed again with the same operators on the same values, so
gradients are identical. (In-place activated batch norm has the same purpose, Rota Bulo et al. 2018, arXiv:1712.02616.)

A function mode of PyTorch records how each tensor is computed, and a hook replaces what autograd stores. An output is
only recomputed if all of its inputs are recomputed or stored anyway, so nothing is kept that autograd would not keep.
The output of a frozen norm is stored, because the norm does not keep its input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_SMALL = 1 / 16  # of the output: inputs that may be kept although autograd does not keep them
_BATCH_NORM = inspect.signature(F.batch_norm)
_IN_PLACE = {Tensor.add_: torch.add, Tensor.__iadd__: torch.add}  # and what computes the same in new memory
_ACTIVATIONS = {F.relu, F.silu, F.hardswish}  # they have the argument `inplace`
_CHEAP: dict[Any, Any] = {  # functions of PyTorch, and what recomputes them
    **_IN_PLACE,
    **{function: function for function in (*_ACTIVATIONS, F.batch_norm, F.layer_norm, F.gelu)},
    **{function: function for function in (F.interpolate, F.avg_pool2d, torch.cat, torch.add)},
    Tensor.add: torch.add,
    Tensor.__add__: torch.add,
}


@contextmanager
def recomputing(enabled: bool = True) -> Iterator[None]:
    """Store less for the backward pass of what is computed within."""
    if not enabled:
        yield
        return
    recorder = _Recorder()
    try:
        with saved_tensors_hooks(recorder.pack, _Saved.unpack), recorder:
            yield
    finally:
        recorder.forget()


class _Layout(NamedTuple):
    """The part of its storage that a tensor shows."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Layout:
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


class _Kept:
    """A stored tensor with its version: after a change in place, gradients would be wrong."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version

    def value(self) -> Tensor:
        if self.tensor._version != self.version:
            size = list(self.tensor.shape)
            raise RuntimeError(f"a tensor of size {size} that the backward pass needs was modified in place")
        return self.tensor


class _Recipe:
    """How to compute an output again. Its value is kept until every tensor that autograd saved of it has been read."""

    def __init__(self, compute: Callable[..., Tensor], leaves: Sequence[Any], structure: TreeSpec, out: Tensor) -> None:
        self.compute, self.leaves, self.structure = compute, leaves, structure
        self.layout, self.dtype, self.device = _Layout.of(out), out.dtype, out.device.type
        self.autocast = torch.is_autocast_enabled(self.device), torch.get_autocast_dtype(self.device)
        self.unread = 0
        self.result: Tensor | None = None

    def read(self) -> Tensor:
        value = self.value()
        self.unread -= 1
        if self.unread <= 0:
            self.result = None
        return value

    def value(self) -> Tensor:
        if self.result is not None:
            return self.result
        leaves = [leaf.value() if isinstance(leaf, (_Kept, _Recipe)) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        enabled, dtype = self.autocast
        with torch.no_grad(), torch.autocast(self.device, dtype, enabled, cache_enabled=False):
            value = self.compute(*args, **kwargs)
        if value.dtype != self.dtype or _Layout.of(value) != self.layout:
            raise RuntimeError(f"{self.compute} was recomputed as {value.dtype} with {_Layout.of(value)}")
        if self.unread > 0:
            self.result = value
        return value


class _Saved:
    """What autograd holds for a tensor that it saves: the tensor, or a recipe and the part of its output."""

    def __init__(self, tensor: Tensor) -> None:
        self.source: _Kept | _Recipe = _Kept(tensor)
        self.part: _Layout | None = None

    def replace_by(self, recipe: _Recipe) -> None:
        if isinstance(self.source, _Kept):
            layout = _Layout.of(self.source.tensor)
            self.source, self.part = recipe, (None if layout == recipe.layout else layout)
            recipe.unread += 1

    def unpack(self) -> Tensor:
        if isinstance(self.source, _Kept):
            return self.source.value()
        value = self.source.read()
        return value if self.part is None else value.as_strided(*self.part)


class _Known(NamedTuple):
    """A storage at a certain version. While the reference exists, no other storage gets its address."""

    storage: StorageWeakRef
    version: int
    recipe: _Recipe | None  # None: autograd stores the tensor


class _Recorder(TorchFunctionMode):
    """Records how tensors are computed, and decides what autograd saves of them."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self.known: dict[int, _Known] = {}  # by the address of the storage
        self.fresh: list[_Saved] = []  # saved by the current operator, which may prove to be its output

    def pack(self, tensor: Tensor) -> _Saved:
        saved, known = _Saved(tensor), self._find(tensor)
        if known is not None and known.recipe is not None and known.recipe.dtype == tensor.dtype:
            saved.replace_by(known.recipe)
        else:
            self.fresh.append(saved)
            if known is None:
                self._remember(tensor, None)
        return saved

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        compute = _CHEAP.get(func)
        if compute is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        leaves, structure = tree_flatten(_out_of_place(func, args, kwargs))
        tensors = {index: leaf for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        sources = {index: self._source(tensor) for index, tensor in tensors.items()}
        changed = next(iter(tensors.values())) if _changes_input(func, args, kwargs) else None
        if changed is not None:  # what autograd saves from now on is the output
            self.known.pop(changed.untyped_storage()._cdata, None)
        self.fresh = []
        output = func(*args, **kwargs)
        limit = output.numel() * _SMALL
        if output.requires_grad and all(
            isinstance(source, _Recipe) or (tensors[index] is not changed and self._is_free(tensors[index], limit))
            for index, source in sources.items()
        ):
            kept = [sources.get(index, leaf) for index, leaf in enumerate(leaves)]
            self._record(_Recipe(compute, kept, structure, output), output)
        return output

    def _source(self, tensor: Tensor) -> _Kept | _Recipe:
        known = self._find(tensor)
        recipe = None if known is None else known.recipe
        if recipe is None or recipe.layout != _Layout.of(tensor) or recipe.dtype != tensor.dtype:
            return _Kept(tensor)
        return recipe

    def _is_free(self, tensor: Tensor, limit: float) -> bool:
        """Whether keeping this input costs nothing, or little."""
        if isinstance(tensor, nn.Parameter) or tensor.numel() <= limit:
            return True
        known = self._find(tensor)
        return known is not None and known.recipe is None

    def _find(self, tensor: Tensor) -> _Known | None:
        if tensor.layout is not torch.strided:
            return None
        known = self.known.get(tensor.untyped_storage()._cdata)
        return known if known is not None and known.version == tensor._version else None

    def _remember(self, tensor: Tensor, recipe: _Recipe | None) -> None:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            self.known[storage._cdata] = _Known(StorageWeakRef(storage), tensor._version, recipe)

    def _record(self, recipe: _Recipe, output: Tensor) -> None:
        self._remember(output, recipe)
        address = output.untyped_storage()._cdata
        for saved in self.fresh:
            kept = saved.source
            if isinstance(kept, _Kept) and kept.tensor.untyped_storage()._cdata == address:
                saved.replace_by(recipe)


def _changes_input(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the operator writes to its first tensor."""
    return func in _IN_PLACE or (func in _ACTIVATIONS and bool(kwargs.get("inplace", args[1] if args[1:] else False)))


def _out_of_place(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments with which an operator is recomputed: it changes neither its input nor running statistics."""
    if func in _ACTIVATIONS:
        return args[:1], {name: value for name, value in kwargs.items() if name != "inplace"}
    if func is F.batch_norm:
        bound = _BATCH_NORM.bind(*args, **kwargs)
        if bound.arguments.get("training"):
            bound.arguments.update(running_mean=None, running_var=None)
        return bound.args, bound.kwargs
    return args, kwargs
