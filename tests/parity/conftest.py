"""A tiny random RT-DETR of transformers, and ours with its weights converted by the rename table."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from rtdetr_tool.families.rtdetr.model.decoder import RTDETRDecoder
from rtdetr_tool.families.rtdetr.model.detector import RTDETR
from rtdetr_tool.families.rtdetr.transformers_names import from_transformers
from rtdetr_tool.losses.criterion import SetCriterion
from rtdetr_tool.losses.matcher import HungarianMatcher
from rtdetr_tool.models.backbones.timm_resnet import ResNetBackbone
from rtdetr_tool.models.hybrid_encoder import HybridEncoder
from rtdetr_tool.ops.batch_norm import fix_batch_norms
from rtdetr_tool.ops.structures import Target

transformers = pytest.importorskip("transformers")
from transformers.models.rt_detr import modeling_rt_detr  # noqa: E402

CLASSES, QUERIES, WIDTH = 5, 20, 32
DEPTHS = (2, 1, 2, 1)
WIDTHS = {"basic": (16, 24, 32, 40), "bottleneck": (16, 32, 48, 64)}  # of a stage; a bottleneck gives four times that


@dataclass
class Pair:
    theirs: nn.Module
    ours: RTDETR

    def train(self) -> Pair:
        self.theirs.train()
        self.ours.train()
        return self

    def eval(self) -> Pair:
        self.theirs.eval()
        self.ours.eval()
        return self


@pytest.fixture(scope="session")
def build_pair():
    return _build_pair


@pytest.fixture(scope="session")
def disturb():
    return _disturb


@pytest.fixture(scope="session")
def query_difference():
    return _query_difference


@pytest.fixture(scope="session")
def as_labels():
    """Our targets as transformers' labels."""
    return lambda targets: [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]


@pytest.fixture(scope="session")
def losses_of_theirs():
    return _losses_of_theirs


@pytest.fixture
def targets() -> list[Target]:
    """Three images: four objects, none, one."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for index, count in enumerate((4, 0, 1)):
        center = torch.rand(count, 2, generator=generator) * 0.5 + 0.25
        size = torch.rand(count, 2, generator=generator) * 0.3 + 0.1
        labels = torch.randint(CLASSES, (count,), generator=generator)
        made.append(Target(torch.cat([center, size], 1), labels, index, (64, 64), (64.0, 64.0)))
    return made


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def _build_pair(
    layer_type: str = "basic",
    version: int = 1,
    frozen: bool = True,
    num_denoising: int = 0,
    decoder_layers: int = 3,
    decoder_width: int = WIDTH,
    points: tuple[int, ...] = (4, 4, 4),
    method: str = "default",
    offset_scale: float = 0.5,
) -> Pair:
    torch.manual_seed(1)
    widths = WIDTHS[layer_type]
    outputs = tuple(width * (4 if layer_type == "bottleneck" else 1) for width in widths)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=list(outputs),
        depths=list(DEPTHS),
        layer_type=layer_type,
        out_features=["stage2", "stage3", "stage4"],
    )
    kinds = {
        1: (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
        2: (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
    }
    config_class, model_class = kinds[version]
    sampling = {}
    if version == 2:
        mean = sum(points) // len(points)  # transformers supports only one number; different numbers are set below
        sampling = {"decoder_n_points": mean, "decoder_method": method, "decoder_offset_scale": offset_scale}
    config = config_class(
        backbone_config=backbone,
        freeze_backbone_batch_norms=frozen,
        d_model=decoder_width,
        encoder_hidden_dim=WIDTH,
        encoder_in_channels=list(outputs[1:]),
        encoder_ffn_dim=48,
        encoder_layers=2,
        encoder_attention_heads=4,
        encode_proj_layers=[1, 2],
        hidden_expansion=0.5,
        decoder_in_channels=[WIDTH] * 3,
        decoder_ffn_dim=40,
        decoder_layers=decoder_layers,
        decoder_attention_heads=4,
        num_queries=QUERIES,
        num_labels=CLASSES,
        num_denoising=num_denoising,
        **sampling,
    )
    reference = model_class(config)
    if len(set(points)) > 1:
        _set_points(reference, points)
    _disturb(reference)
    ours = RTDETR(
        ResNetBackbone(
            "resnet18d" if layer_type == "basic" else "resnet50d",
            (1, 2, 3),
            channels=widths,
            layers=DEPTHS,
            stem_width=8,
        ),
        HybridEncoder(
            outputs[1:],
            WIDTH,
            attention_levels=(1, 2),
            num_heads=4,
            dim_feedforward=48,
            num_layers=2,
            expansion=0.5,
            pe_order="rows",
        ),
        RTDETRDecoder(
            [WIDTH] * 3,
            CLASSES,
            decoder_width,
            QUERIES,
            num_layers=decoder_layers,
            num_heads=4,
            dim_feedforward=40,
            num_denoising=num_denoising,
            num_points=points,
            cross_attn_method=method,
            offset_scale=offset_scale,
        ),
    )
    if frozen:
        fix_batch_norms(ours.backbone)
    ours.load_state_dict(from_transformers(reference.state_dict()))
    return Pair(reference, ours)


def _set_points(model: nn.Module, points: tuple[int, ...]) -> None:
    """Set points per level as in the official code; transformers' modules support a list, but get a number."""
    for layer in model.model.decoder.layers:
        attention = layer.encoder_attn
        assert sum(points) == attention.n_levels * attention.n_points
        attention.n_points_list = list(points)
        attention.n_points_scale = torch.tensor([1 / count for count in points for _ in range(count)])


def _disturb(model: nn.Module) -> None:
    """Randomize tensors, because transformers initializes norms and projections near 0, box heads and sampling at 0."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(std=0.1)
            elif tensor.ndim == 1 and tensor.is_floating_point() and "n_points_scale" not in name:
                tensor.add_(torch.randn_like(tensor) * 0.1)
            elif tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
                if re.search(r"self_attn\.[qk]_proj", name):
                    tensor.mul_(3)  # attention that distinguishes tokens, and therefore positions
                elif re.search(r"bbox.*layers\.2|sampling_offsets", name):
                    tensor.mul_(0.2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) or "FrozenBatchNorm" in type(module).__name__:
                module.weight.uniform_(0.5, 1.5)


def _query_difference(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """Largest difference of (logits, boxes) after pairing the queries of each image, whose order does not matter."""
    worst = 0.0
    for a, b in zip(torch.cat(ours, -1).detach().double(), torch.cat(theirs, -1).detach().double(), strict=True):
        rows, columns = linear_sum_assignment(torch.cdist(a, b).numpy())
        worst = max(worst, (a[rows] - b[columns]).abs().max().item())
    return worst


def _losses_of_theirs(model, images, labels):
    """transformers' loss and terms with the gradient path of the official code.

    There, a layer's box passes a gradient to the box head of the previous layer only; transformers detaches it. The
    values are the same, which is checked, so transformers' loss function works with boxes as in the official code.
    """
    model_output = model.model(images, labels=labels)
    heads, hidden = model.model.decoder.bbox_embed, model_output.intermediate_hidden_states
    previous = model_output.init_reference_points.sigmoid()
    boxes = []
    for layer, head in enumerate(heads):
        delta = head(hidden[:, layer])
        boxes.append((delta + modeling_rt_detr.inverse_sigmoid(previous)).sigmoid())
        reference = previous.detach()
        previous = (delta + modeling_rt_detr.inverse_sigmoid(reference)).sigmoid()
    boxes = torch.stack(boxes, dim=1)
    torch.testing.assert_close(boxes, model_output.intermediate_reference_points)
    logits = model_output.intermediate_logits
    return model.loss_function(
        logits[:, -1],
        labels,
        images.device,
        boxes[:, -1],
        model.config,
        logits,
        boxes,
        enc_topk_logits=model_output.enc_topk_logits,
        enc_topk_bboxes=model_output.enc_topk_bboxes,
        denoising_meta_values=model_output.denoising_meta_values,
    )[:2]


@pytest.fixture(scope="session")
def criterion() -> SetCriterion:
    return SetCriterion(HungarianMatcher(), {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0})


@pytest.fixture
def package_part(monkeypatch):
    """Imports a module of RF-DETR's package, without its COCO evaluation."""
    for name in ("", ".core", ".core.mask", ".core.faster_eval_api"):
        monkeypatch.setitem(sys.modules, f"faster_coco_eval{name}", mock.MagicMock())
    return lambda name: pytest.importorskip(f"rfdetr.{name}", reason="requires the package rfdetr")
