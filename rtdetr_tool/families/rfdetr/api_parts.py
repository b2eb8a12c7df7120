"""What belongs to an RF-DETR in the Python API under the names of Roboflow's package: context, configuration, flags."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch

from rtdetr_tool.api.detector import Detector
from rtdetr_tool.api.opening import RANDOM
from rtdetr_tool.errors import UserError

if TYPE_CHECKING:
    from rtdetr_tool.families.rfdetr.context import ModelContext

_DTYPES = ("float32", "float16", "bfloat16")


class DetectorWithParts(Detector):
    """A detector with `model`, `model_config`, and flags that tell how it was optimized.

    An object that was created without its constructor has no weights. As in the examples of Roboflow's package, parts
    can be assigned to it: `model`, with `device`, `resolution` and a network `model`, and `model_config`. Then only
    `optimize_for_inference` and `remove_optimized_model` work, which make and delete `model.inference_model`.
    """

    _parts: dict[str, Any] | None = None  # of an object without weights
    _is_optimized_for_inference = False
    _has_warned_about_not_being_optimized_for_inference = False
    _optimized_has_been_compiled = False
    _optimized_batch_size: int | None = None
    _optimized_resolution: int | None = None
    _optimized_dtype: torch.dtype | None = None

    @property
    def model(self) -> ModelContext:
        """The network, as `model.model`, with its settings and postprocessing."""
        from rtdetr_tool.families.rfdetr.context import context_of

        return self._parts["model"] if self._parts else context_of(self)

    @model.setter
    def model(self, context: ModelContext) -> None:
        self._assign("model", context)

    @property
    def model_config(self) -> Any:
        """The model as Roboflow's `ModelConfig`: its fields are attributes."""
        return self._parts["model_config"] if self._parts else self.get_model_config()

    @model_config.setter
    def model_config(self, config: Any) -> None:
        self._assign("model_config", config)

    def get_model_config(self, **fields: Any) -> Any:
        """A `ModelConfig` of this detector, with other values for some fields."""
        from rtdetr_tool.families.rfdetr.configs import config_of

        weights = None if self.source == RANDOM else self.source
        return config_of(self.spec, {"pretrain_weights": weights, **fields})

    def _assign(self, name: str, part: Any) -> None:
        if "_opened" in self.__dict__:
            raise AttributeError(
                f"{name} cannot be replaced; load other weights into model.model, or open a file with from_checkpoint"
            )
        self._parts = {**(self._parts or {}), name: part}

    def optimize_for_inference(
        self, compile: bool = True, batch_size: int = 1, dtype: torch.dtype | str = torch.float32
    ) -> None:
        if self._parts is None:
            super().optimize_for_inference(compile, batch_size, dtype)
        else:
            self._optimize_part(dtype)
        optimized = self._optimized if self._parts is None else None
        self._is_optimized_for_inference = True
        self._optimized_has_been_compiled = optimized is not None and optimized.compiled
        self._optimized_batch_size = batch_size if self._optimized_has_been_compiled else None
        self._optimized_resolution = self.input_size[0] if self._parts is None else self.model.resolution
        self._optimized_dtype = getattr(torch, str(dtype).removeprefix("torch."))

    optimize_for_inference.__doc__ = Detector.optimize_for_inference.__doc__

    def _optimize_part(self, dtype: torch.dtype | str) -> None:
        """An optimized copy of the network of an object without weights."""
        name = str(dtype).removeprefix("torch.")
        context: Any = self.model  # of any class
        if name not in _DTYPES:
            raise UserError(f"dtype: {dtype!r} is invalid; expected one of {', '.join(_DTYPES)}")
        network: Any = deepcopy(context.model).eval()
        if prepare := getattr(network, "export", None):  # of the package's own networks
            prepare()
        context.inference_model = network.to(context.device, getattr(torch, name))

    def remove_optimized_model(self) -> None:
        """Undo `optimize_for_inference`, if it was called."""
        if self._parts is None:
            super().remove_optimized_model()
        else:
            context: Any = self.model
            context.inference_model = None
        self._is_optimized_for_inference = self._optimized_has_been_compiled = False
        self._optimized_batch_size = self._optimized_resolution = self._optimized_dtype = None
