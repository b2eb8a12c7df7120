"""Save the first batches after augmentation, with boxes."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from rtdetr_tool.files import write_atomically
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.pixels import as_rgb
from rtdetr_tool.ops.structures import Batch

_IMAGES_PER_ROW = 3  # and per column
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324")


class BatchPreview(Callback):
    """Write `<phase>_batch<n>_grid.jpg` for the first `count` batches of training and of validation."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder, self.count = folder, count

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self._write(trainer, "train", batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._write(trainer, "val", batch, batch_idx)

    def _write(self, trainer: Trainer, phase: str, batch: Batch, batch_idx: int) -> None:
        file = self.folder / f"{phase}_batch{batch_idx}_grid.jpg"
        if batch_idx >= self.count or not trainer.is_global_zero or (phase == "val" and file.exists()):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(draw_batch(batch).permute(1, 2, 0).numpy()).save(content, "JPEG", quality=90)
        write_atomically(file, content.getvalue())


def draw_batch(batch: Batch) -> Tensor:
    """The first images of a batch as a grid, uint8 [3, H, W], with boxes colored by class."""
    from torchvision.utils import draw_bounding_boxes, make_grid  # takes a second

    images = []
    for image, target in list(zip(batch.images.cpu(), batch.targets, strict=True))[: _IMAGES_PER_ROW**2]:
        image, (height, width) = as_rgb(image), image.shape[-2:]
        boxes = cxcywh_to_xyxy(target.boxes.cpu()) * torch.tensor([width, height, width, height])
        labels = target.labels.tolist()
        colors = [_COLORS[label % len(_COLORS)] for label in labels]
        if labels:
            image = draw_bounding_boxes(image, boxes, [str(label) for label in labels], colors=colors, width=2)
        images.append(image)
    grid: Tensor = make_grid(torch.stack(images), nrow=_IMAGES_PER_ROW, padding=4)
    return grid
