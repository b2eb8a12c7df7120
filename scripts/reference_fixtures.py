"""Write what the official RT-DETR (PyTorch, version 1 and 2) computes, as numbers that tests compare ours with.

Weights, images and targets are formulas, so only the outputs are stored. Needs a checkout of lyuwenyu/RT-DETR, whose
model code is imported without its data and training packages:

    git clone https://github.com/lyuwenyu/RT-DETR /tmp/RT-DETR
    python scripts/reference_fixtures.py /tmp/RT-DETR
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parent.parent / "tests" / "parity" / "fixtures"
FOLDERS = {1: "rtdetr_pytorch", 2: "rtdetrv2_pytorch"}
SIDE, CLASSES, WIDTH, HEADS, INNER, LAYERS, QUERIES = 64, 5, 32, 4, 48, 2, 10
WEIGHTS = {"loss_vfl": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
COSTS = {"cost_class": 2.0, "cost_bbox": 5.0, "cost_giou": 2.0}


def wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers from -1 to 1 that depend on a name and their position only."""
    count = int(np.prod(shape, dtype=np.int64))
    values = np.sin(np.arange(count, dtype=np.float64) * 1.37 + zlib.crc32(name.encode()) % 1000)
    return torch.from_numpy(values.reshape(shape)).float()


def weight(name: str, like: Tensor) -> Tensor:
    """The tensor of a model: norms near the identity, and no output overflows."""
    shape = tuple(like.shape)
    if name.endswith(("num_batches_tracked", "num_points_scale")):
        return like.clone()
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        return 1 + 0.5 * wave(name, shape)
    fan_in = like[0].numel() if like.ndim > 1 else 100
    return wave(name, shape) * (2 / fan_in) ** 0.5


def images() -> Tensor:
    return 0.5 + 0.5 * wave("images", (2, 3, SIDE, SIDE))


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[0.3, 0.4, 0.25, 0.3], [0.7, 0.6, 0.3, 0.5], [0.5, 0.5, 0.6, 0.2]])
    labels = torch.tensor([1, 4, 2])
    return [{"boxes": boxes[:2], "labels": labels[:2]}, {"boxes": boxes[2:], "labels": labels[2:]}]


def fix_norms(model: nn.Module) -> nn.Module:
    """The model in training mode, but with the statistics of its batch norms fixed."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def import_models(folder: Path) -> types.SimpleNamespace:
    """The model classes of a version. Its registry and distributed code are replaced by what they do in one process."""
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]
    for name in ("src", "src.nn", "src.nn.backbone", "src.zoo", "src.zoo.rtdetr", "src.misc", "src.core"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / Path(*name.split(".")))]
        sys.modules[name] = module
    sys.modules["src.core"].register = lambda *given, **options: given[0] if given else lambda cls: cls
    for name in ("src.misc.dist", "src.misc.dist_utils"):
        single = types.ModuleType(name)
        single.get_world_size, single.is_dist_available_and_initialized = lambda: 1, lambda: False
        sys.modules[name] = single

    def load(name: str) -> Any:
        return importlib.import_module(f"src.{name}")

    found = types.SimpleNamespace(
        backbone=load("nn.backbone.presnet").PResNet,
        encoder=load("zoo.rtdetr.hybrid_encoder").HybridEncoder,
        detector=load("zoo.rtdetr.rtdetr").RTDETR,
        matcher=load("zoo.rtdetr.matcher").HungarianMatcher,
    )
    if folder.name == FOLDERS[2]:
        found.decoder = load("zoo.rtdetr.rtdetrv2_decoder").RTDETRTransformerv2
        found.criterion = load("zoo.rtdetr.rtdetrv2_criterion").RTDETRCriterionv2
    else:
        found.decoder = load("zoo.rtdetr.rtdetr_decoder").RTDETRTransformer
        found.criterion = load("zoo.rtdetr.rtdetr_criterion").SetCriterion
    return found


def build(models: types.SimpleNamespace, version: int) -> nn.Module:
    backbone = models.backbone(18, variant="d", return_idx=[1, 2, 3], freeze_norm=False, pretrained=False)
    encoder = models.encoder(
        [128, 256, 512], hidden_dim=WIDTH, nhead=HEADS, dim_feedforward=INNER, expansion=1.0, depth_mult=1
    )
    layers = {"num_decoder_layers" if version == 1 else "num_layers": LAYERS}
    decoder = models.decoder(
        num_classes=CLASSES, hidden_dim=WIDTH, num_queries=QUERIES, feat_channels=[WIDTH] * 3, nhead=HEADS,
        dim_feedforward=INNER, num_denoising=0, **layers,
    )  # fmt: skip
    model = models.detector(backbone, encoder, decoder)
    model.load_state_dict({name: weight(name, tensor) for name, tensor in model.state_dict().items()})
    return model


def measure(models: types.SimpleNamespace, version: int) -> dict[str, Any]:
    model = build(models, version).eval()
    with torch.no_grad():
        found = model(images())
    options = {"alpha": 0.75, "gamma": 2.0, "num_classes": CLASSES}
    matcher = models.matcher(COSTS, use_focal_loss=True, alpha=0.25, gamma=2.0)
    criterion = models.criterion(matcher, WEIGHTS, ["vfl", "boxes"], **options)
    losses = criterion(fix_norms(model)(images(), targets()), targets())
    total = sum(losses.values())
    total.backward()
    names = ("backbone.res_layers.3.blocks.1.branch2b.conv.weight", "encoder.pan_blocks.1.conv2.conv.weight",
             "decoder.decoder.layers.0.cross_attn.sampling_offsets.weight")  # fmt: skip
    gradients = dict(model.named_parameters())
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "logits": rounded(found["pred_logits"]),
        "boxes": rounded(found["pred_boxes"]),
        "losses": {name: round(value.item(), 6) for name, value in sorted(losses.items())},
        "total": round(total.item(), 6),
        "gradient_norms": {name: round(gradients[name].grad.norm().item(), 6) for name in names},
    }


def rounded(tensor: Tensor) -> list[Any]:
    return [[[round(value, 6) for value in row] for row in image] for image in tensor.tolist()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", help="checkout of lyuwenyu/RT-DETR")
    options = parser.parse_args(arguments)
    FIXTURES.mkdir(exist_ok=True)
    for version, name in FOLDERS.items():
        torch.manual_seed(0)
        values = measure(import_models(Path(options.checkout) / name), version)
        path = FIXTURES / f"official_v{version}.json"
        lines = [f'"{key}": {json.dumps(value)}' for key, value in values.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
