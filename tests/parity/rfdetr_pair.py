"""An RF-DETR of Roboflow's package with random weights, and ours with the same weights."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdetr_tool.catalog import RFDETR_VARIANTS
from rtdetr_tool.families.rfdetr.names import from_rfdetr, to_rfdetr
from rtdetr_tool.families.rfdetr.spec import RfdetrSpec
from rtdetr_tool.models.build import build_detector
from rtdetr_tool.models.detector import Detector
from rtdetr_tool.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from rtdetr_tool.spec import ModelSpec

rfdetr_models = pytest.importorskip("rfdetr.models", reason="requires the package rfdetr")
from rfdetr.config import KeypointTrainConfig, ModelConfig, SegmentationTrainConfig, TrainConfig  # noqa: E402
from rfdetr.models.backbone import dinov2  # noqa: E402

CLASSES = 90  # of the package, which adds one logit
FIELDS = (
    "encoder", "out_feature_indexes", "projector_scale", "hidden_dim", "dec_layers", "sa_nheads", "ca_nheads",
    "dec_n_points", "num_queries", "resolution", "patch_size", "num_windows", "positional_encoding_size",
    "segmentation_head", "use_grouppose_keypoints", "num_keypoints_per_class", "dual_projector",
    "dual_projector_kp_only",
)  # fmt: skip

logging.getLogger("rf-detr").setLevel(logging.ERROR)


def their_config(variant: str, **changes: Any) -> ModelConfig:
    """A variant by its hyperparameters; naming weights prevents a download of DINOv2's."""
    row = RFDETR_VARIANTS[variant]._asdict()
    fields = {name: list(row[name]) if isinstance(row[name], tuple) else row[name] for name in FIELDS}
    return ModelConfig(**{**fields, **changes}, num_classes=CLASSES, pretrain_weights="none.pth", device="cpu")


def build_theirs(variant: str, **changes: Any) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        # With registers, its own table has two contradictory sets of outputs, which transformers 5 refuses.
        table = dinov2.get_config
        patch.setattr(dinov2, "get_config", lambda *size: {k: v for k, v in table(*size).items() if k != "out_indices"})
        return rfdetr_models.build_model_from_config(their_config(variant, **changes))


def build_ours(variant: str, **changes: Any) -> Detector:
    return build_detector(ModelSpec(arch="rfdetr", rfdetr=RfdetrSpec(variant=variant, **changes)), CLASSES + 1)


def build_pair(variant: str, **changes: Any) -> tuple[nn.Module, Detector]:
    torch.manual_seed(0)
    reference, ours = build_theirs(variant, **changes), build_ours(variant, **changes)
    disturb(reference)
    ours.load_state_dict(from_rfdetr(reference.state_dict()))
    return reference, ours


def their_criterion(variant: str, **changes: Any) -> nn.Module:
    row = RFDETR_VARIANTS[variant]
    kind = KeypointTrainConfig if row.use_grouppose_keypoints else TrainConfig
    kind = SegmentationTrainConfig if row.segmentation_head else kind
    settings = kind(dataset_dir=".", output_dir=".")
    return rfdetr_models.build_criterion_from_config(their_config(variant, **changes), settings)[0]


def normalized(images: Tensor) -> Tensor:
    """As the package does, which repeats the statistics of RGB for other channels."""
    mean, std = (
        torch.tensor((values * images.shape[1])[: images.shape[1]]) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images - mean[:, None, None]) / std[:, None, None]


def disturb(model: nn.Module) -> None:
    """Randomize norms, box heads and sampling, so that every tensor has an effect."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                tensor.normal_(std=max(tensor[0].numel(), 2) ** -0.5)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.1)
            if (
                "sampling_offsets" in name
                or "refpoint_embed" in name
                or ("layers.2" in name and ("bbox" in name or "keypoint_embed" in name))
            ):
                tensor.mul_(0.2)


def show_variant(variant: str, theirs: nn.Module, ours: Detector, output: float, loss: float) -> None:
    """A row of docs/rfdetr.md, shown by pytest -s."""
    row, names = RFDETR_VARIANTS[variant], theirs.state_dict().keys()
    unmatched = names ^ to_rfdetr(ours.state_dict()).keys()
    deployed = sum(parameter.numel() for parameter in ours.deploy().parameters())
    cells = (
        f"`{variant}`", row.resolution, f"{row.parameters:,}", f"{deployed:,}", f"{row.num_queries} x {CLASSES + 1}",
        f"{output:.0e}", f"{loss:.0e}", f"{len(names)} / {len(unmatched)}",
    )  # fmt: skip
    print(f"\n| {' | '.join(map(str, cells))} |")
