"""Training on the GPU of an Apple computer (`train.accelerator: mps`), as far as it can be checked without one.

Steps of both families are traced, and every operator looked up in torch's own table of kernels. The CPU's fast ways
(`embedding_bag`, flash attention) are replaced by those that other devices use.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from rtdetr_tool.api.keywords import _device
from rtdetr_tool.errors import SpecError
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.ops import deformable
from rtdetr_tool.ops.postprocess import postprocess
from rtdetr_tool.ops.structures import Target
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.devices import choose_devices, resolve_precision
from rtdetr_tool.training.optim import build_optimizer
from rtdetr_tool.training.trainer import check_precision, choose_strategy

SMALL = {
    "hidden_dim": 32, "nheads": 4, "feat_channels": [32] * 3, "dim_feedforward": 32, "num_queries": 12,
    "num_select": 10, "dec_layers": 2, "dn_number": 6,
}  # fmt: skip
MODELS = {
    "RT-DETR": {**SMALL, "backbone": "resnet_18"},
    "RT-DETRv2, discrete": {**SMALL, "backbone": "timm/test_resnet", "cross_attn_method": "discrete"},
    "RF-DETR": {"arch": "rfdetr", "rfdetr": {"resolution": 64, "dec_layers": 1, "num_queries": 8, "group_detr": 2}},
}
# Operators without a kernel for MPS; docs/training.md names them.
MISSING = set() if torch.__version__ >= (2, 15) else {"aten::grid_sampler_2d_backward"}


@cache
def kernels() -> dict[str, dict[str, Any]]:
    """Operator -> its entry in torch's table."""
    torchgen = pytest.importorskip("torchgen")
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    rows = yaml.load(table.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {row["func"].partition("(")[0]: row for row in rows}


def runs_on_mps(operator: str) -> bool:
    """Whether it has a kernel for MPS, or is composed of other operators."""
    row = kernels().get(operator.removeprefix("aten::"))
    if row is None:
        return not operator.startswith("aten::")  # of the profiler
    if "structured_delegate" in row:
        return runs_on_mps(row["structured_delegate"])
    keys = [key.strip() for entry in row.get("dispatch", {"Composite": ""}) for key in entry.split(",")]
    return any(key == "MPS" or key.startswith("Composite") for key in keys)


class Trace(TorchDispatchMode):
    """The operators that run, and those that return float64, which MPS does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.double: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operators.add(function.name())
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                self.double.add(function.name())
        return result


def targets() -> list[Target]:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.2]])
    return [Target(boxes, torch.tensor([1, 2]), number, (64, 64), (64, 64)) for number in (0, 1)]


def train_and_detect(model: dict[str, Any]) -> None:
    spec = spec_from_dict({"model": model}).model
    detector, images = build_detector(spec, 4).train(), torch.rand(2, 3, 64, 64)
    build_criterion(spec)(detector(images, targets()), targets())["loss"].backward()
    torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
    trained = [parameter for parameter in detector.parameters() if parameter.grad is not None]
    build_optimizer("AdamW", [{"params": trained, "name": "all"}], momentum=0.9, fused=False).step()
    with torch.inference_mode():
        postprocess(detector.eval()(images), targets(), spec.num_select)


@pytest.mark.parametrize("name", MODELS)
def test_every_operator_has_a_kernel_and_none_needs_float64(name, monkeypatch):
    monkeypatch.setattr(deformable, "sample_by_bags", deformable.sample_by_grid)
    monkeypatch.setattr(deformable, "bags_of_pixels", deformable.gather_pixels)
    with Trace() as trace, sdpa_kernel(SDPBackend.MATH):
        train_and_detect(MODELS[name])
    assert len(trace.operators) > 90
    assert {operator for operator in trace.operators if not runs_on_mps(operator)} <= MISSING
    assert trace.double == set()


def test_the_table_would_show_a_missing_kernel():
    assert not runs_on_mps("aten::_scaled_dot_product_flash_attention_for_cpu")
    assert runs_on_mps("aten::grid_sampler_2d")
    assert all(not runs_on_mps(operator) for operator in MISSING)


def test_batches_have_no_float64(make_spec):
    datamodule = DetectionDataModule(make_spec())
    datamodule.setup("fit")
    batch = next(iter(datamodule.loader("train")))
    found = [value for target in batch.targets for value in vars(target).values() if isinstance(value, torch.Tensor)]
    assert found and all(tensor.dtype != torch.float64 for tensor in [batch.images, *found])


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_the_apple_gpu_is_used_on_request(apple, make_spec):
    assert choose_devices(1, [0], "mps") == ("mps", 1)
    assert choose_devices(1, [0], "auto") == ("cpu", 1)
    assert choose_devices(1, [0], "cpu") == ("cpu", 1)
    assert resolve_precision(make_spec(train__accelerator="mps", train__precision="auto").train) == "fp32"
    assert _device("mps") == _device("mps:0") == {"train.accelerator": "mps"}


def test_what_an_apple_gpu_cannot_do_is_refused(apple, monkeypatch):
    with pytest.raises(SpecError, match=r"train\.num_gpus: 2 is invalid; expected 1"):
        choose_devices(2, [0, 1], "mps")
    with pytest.raises(SpecError, match="fp16 is not supported on an Apple GPU"):
        check_precision("fp16", "mps")
    with pytest.raises(SpecError, match="fsdp is not supported on Apple GPUs"):
        choose_strategy("fsdp", True, "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SpecError, match="mps requires an Apple GPU"):
        choose_devices(1, [0], "mps")
