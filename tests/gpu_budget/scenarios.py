"""Detectors of every kind on the pretended device, and the cost of training, validation and detection steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.foundation import FoundationRTDETR, FrozenRadio
from rtdetr_tool.families.rtdetr.model.radio import RadioViT
from rtdetr_tool.formats.detection_loop import detect
from rtdetr_tool.losses.build import build_criterion
from rtdetr_tool.metrics.coco import CocoEvaluator
from rtdetr_tool.models.backbones.base import ImageBackbone
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.models.hybrid_encoder import HybridEncoder
from rtdetr_tool.ops.classes import ClassEntry, ClassMap
from rtdetr_tool.ops.structures import Batch, Predictions, Target
from rtdetr_tool.spec import ExperimentSpec, spec_from_dict
from rtdetr_tool.training.datamodule import DetectionDataModule
from rtdetr_tool.training.distill import DistillModule
from rtdetr_tool.training.epoch_scores import EpochScores
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.optim import build_optimizer
from rtdetr_tool.training.step_guard import StepGuard
from tests.gpu_budget.pretended_cuda import CUDA, PretendedCuda, to_cuda

SIZE, OBJECTS, CLASSES = 64, 5, 80
R18 = {"backbone": "resnet_18d", "expansion": 0.5, "dec_layers": 3, "num_queries": 30, "num_select": 30}
R50 = {"backbone": "resnet_50d", "num_queries": 30, "num_select": 30}


def rfdetr(variant: str) -> dict[str, Any]:
    return {"arch": "rfdetr", "rfdetr": {"variant": variant, "num_queries": 20}, "num_select": 20}


MODELS: dict[str, dict[str, Any]] = {
    "R18": R18,
    "R50 with frozen norms": {**R50, "freeze_norm": True},
    "R18 discrete": {**R18, "cross_attn_method": "discrete", "num_points": [4, 4, 4]},
    "R18 with RADIO": R18,
    "RF-DETR Nano": rfdetr("nano"),
    "RF-DETR Seg Nano": rfdetr("seg_nano"),
    "R18 distilled": R18,
    "D-FINE N": {"arch": "dfine", "dfine": {"variant": "n", "num_queries": 30}, "num_select": 30},
}
BINDINGS = [
    {"teacher_module_name": name, "student_module_name": name, "criterion": criterion, "weight": 1.0}
    for name, criterion in (("dsrcs", "IOU"), ("pred_logits", "KL"), ("pred_boxes", "L1"))
]


def build_spec(name: str, **train: Any) -> ExperimentSpec:
    has_rfdetr_names = "RF-DETR" in name
    size = [72, 72] if "Seg" in name else [SIZE, SIZE]
    augmentation = {"multi_scales": [], "train_spatial_size": size, "eval_spatial_size": size}
    document: dict[str, Any] = {
        "results_dir": "unused",
        "model": MODELS[name],
        "dataset": {"num_classes": None if has_rfdetr_names else CLASSES, "augmentation": augmentation},
        "train": {"activation_checkpoint": False, **train},
    }
    if name == "R18 distilled":
        document["distill"] = {"bindings": BINDINGS}
    return spec_from_dict(document)


CLASS_MAP = ClassMap([ClassEntry(index, index, f"class {index}") for index in range(CLASSES)], CLASSES)


def build_module(name: str, **train: Any) -> DetectorModule:
    torch.manual_seed(0)
    spec = build_spec(name, **train)
    if name == "R18 distilled":
        return DistillModule(spec, CLASS_MAP, build_detector(spec.model, CLASSES), CLASS_MAP)
    module = DetectorModule(spec, CLASS_MAP)
    if name == "R18 with RADIO":
        module.model["model"] = with_radio(module.detector.backbone)
        module.criterion = build_criterion(spec.model)
    return module


def with_radio(backbone: ImageBackbone) -> Detector:
    radio = FrozenRadio(RadioViT(64, 2, 4, grid=16))
    radio.loaded_from = "random weights"
    encoder = HybridEncoder((*backbone.channels, 64), expansion=0.5, num_outputs=3)
    return FoundationRTDETR(backbone, encoder, RTDETRDecoder([256] * 3, CLASSES, num_layers=3, num_queries=30), radio)


def build_batch(size: int = SIZE, batch: int = 2, with_masks: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for index in range(batch):
        sides = torch.rand(OBJECTS, 2, generator=generator) * 0.3 + 0.05
        boxes = torch.cat([sides / 2 + torch.rand(OBJECTS, 2, generator=generator) * (1 - sides), sides], 1)
        labels = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
        masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool) if with_masks else None
        if masks is not None:
            masks[:, : size // 3, : size // 2] = True
        targets.append(Target(boxes, labels, index + 1, (48, 64), (64.0, 48.0), f"{index}.png", masks))
    return Batch(torch.randint(0, 255, (batch, 3, size, size), generator=generator, dtype=torch.uint8), targets)


@dataclass(frozen=True)
class Cost:
    """The cost of a step on the device."""

    kernels: int
    optimizer: int  # kernels of the optimizer, not in `kernels`
    events: dict[tuple[str, str], int]  # by kind and location
    result: Any = None

    def number_of(self, *kinds: str) -> int:
        return sum(count for (kind, _), count in self.events.items() if kind in kinds)

    def places(self, *kinds: str) -> list[str]:
        return [f"{count} x {kind} at {place}" for (kind, place), count in self.events.items() if kind in kinds]


class OnDevice:
    """A module on the pretended device, within `PretendedCuda`; logs as Lightning does, without a trainer."""

    def __init__(self, device: PretendedCuda, module: DetectorModule) -> None:
        self.device, self.module = device, module
        self.has_masks = module.detector.predicts == "masks"
        outside = {"device": CUDA, "global_step": 0, "global_rank": 0, "current_epoch": 0, "log": self.log}
        outside |= {"log_dict": lambda values, **kw: [self.log(key, value, **kw) for key, value in values.items()]}
        outside |= {"_main_rate": lambda: 1e-4}
        base = type(module)
        module.__class__ = type(
            base.__name__, (base,), {name: property(lambda self, value=value: value) for name, value in outside.items()}
        )
        to_cuda(module)
        if hidden := getattr(module.detector, "frozen_radio", None):
            to_cuda(hidden.vit)
        if isinstance(module, DistillModule):
            to_cuda(module.teacher.detector)
            module.teacher._device = CUDA

    def log(self, name: str, value: Any, batch_size: Any = None, on_epoch: bool = False, **options: Any) -> None:
        """As `LightningModule.log`: numbers become tensors on the device, epoch means are sums of products."""
        value = value.clone().detach() if isinstance(value, Tensor) else torch.tensor(value, device=CUDA)
        if on_epoch:
            _ = value * batch_size + value

    @cached_property
    def batch(self) -> Batch:
        return self.batch_of(2)

    def batch_of(self, images: int) -> Batch:
        size = self.module.spec.dataset.augmentation.train_spatial_size[0]
        return build_batch(size, images, with_masks=self.has_masks)

    def transfer(self) -> Batch:
        """Move the batch to the device as in training."""
        moved: Batch = DetectionDataModule.transfer_batch_to_device(None, self.batch, CUDA, 0)
        return moved

    def train(self, dtype: torch.dtype | None = None) -> Cost:
        """A training step after a warm-up: transfer, step, backward, guard, clipping, optimizer."""
        module = self.module.train()
        optim = module.spec.train.optim
        fused = module.spec.train.precision != "fp16"
        optimizer = build_optimizer(optim.optimizer, module.parameter_groups(), momentum=0.9, fused=fused)
        module.guard = StepGuard(module.detector, module.criterion)
        module.compute_losses(self.transfer())  # fills the caches
        with self.device.count() as count:
            batch = self.transfer()
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                loss = module.training_step(batch, 0)
            loss.backward()
            module.guard.finish_step(optimizer)
            parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            nn.utils.clip_grads_with_norm_(parameters, 0.1, norm)
            module.guard.check_gradient(optimizer, norm)
        kernels, events = count.kernels, dict(count.events)
        optimizer.step()  # creates its state
        with self.device.count() as count:
            optimizer.step()
        return Cost(kernels, count.kernels, {**events, **count.events}, loss)

    def evaluator(self) -> CocoEvaluator:
        """For the images of the batch, with masks if the detector has them."""
        images = [{"id": target.image_id, "width": 64, "height": 48} for target in self.batch.targets]
        categories = [{"id": index, "name": f"class {index}"} for index in range(CLASSES)]
        shape = {"segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]} if self.has_masks else {}
        box = {"id": 1, "image_id": 1, "category_id": 0, "bbox": [1.0, 1.0, 8.0, 8.0], "area": 32.0, "iscrowd": 0}
        return CocoEvaluator({"images": images, "annotations": [box | shape], "categories": categories}, CLASS_MAP)

    @torch.no_grad()
    def validate(self) -> Cost:
        """The second validation step, scored."""
        module = self.module.eval()
        for _ in range(2):
            module._scores = Scores(module.spec, self.evaluator())
            with self.device.count() as count:
                module.validation_step(self.transfer(), 0)
        return Cost(count.kernels, 0, dict(count.events), module._scores._evaluator)

    @torch.no_grad()
    def predict(self) -> Cost:
        """The second of two runs of the detection loop over one batch, with the deployed network."""
        runtime = self.runtime
        for _ in range(2):
            with self.device.count() as count:
                results = list(detect(runtime, [self.batch], self.module.spec.model.num_select))
        return Cost(count.kernels, 0, dict(count.events), results)

    @torch.no_grad()
    def evaluate(self) -> Cost:
        """As `predict`, with the detections scored."""
        evaluator, runtime = self.evaluator(), self.runtime
        with self.device.count() as count:
            for batch, results in detect(runtime, [self.batch], self.module.spec.model.num_select):
                evaluator.update([target.image_id for target in batch.targets], results)
        return Cost(count.kernels, 0, dict(count.events), evaluator)

    @cached_property
    def runtime(self) -> DeviceRuntime:
        return DeviceRuntime(to_cuda(self.module.detector.deploy()))


class DeviceRuntime:
    """`TorchRuntime` without inference mode, which does not support the pretended tensors."""

    name, input_size, class_map, device = "pretended", None, None, CUDA

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector

    def predict(self, images: Tensor) -> Predictions:
        predictions: Predictions = self.detector(images.contiguous(memory_format=torch.channels_last))
        return predictions


class Scores:
    """`EpochScores` with a given evaluator."""

    def __init__(self, spec: ExperimentSpec, evaluator: CocoEvaluator) -> None:
        self._evaluator, self.spec = evaluator, spec

    add, _add = EpochScores.add, EpochScores._add

    def add_raw(self, *args: Any) -> None: ...


STEPS: dict[str, Callable[[OnDevice], Cost]] = {
    "train": OnDevice.train,
    "validate": OnDevice.validate,
    "predict": OnDevice.predict,
}
