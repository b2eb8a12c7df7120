from __future__ import annotations

import torch

from rtdetr_tool.ops.structures import Batch, DenoisingPredictions, Target, TrainingPredictions


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest():
    target = Target(torch.rand(2, 4), torch.tensor([0, 1]), 7, (10, 20), (20.0, 10.0), "a.png")
    batch = Batch(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [target])
    moved = batch.to("meta")
    result = moved.targets[0]
    assert {tensor.device.type for tensor in (moved.images, result.boxes, result.labels)} == {"meta"}
    assert (result.image_id, result.original_size, result.path) == (7, (10, 20), "a.png")
    assert batch.images.device.type == "cpu" and len(moved) == 1


def test_moving_predictions_reaches_the_denoising_part():
    index = [torch.tensor([0])]
    noisy = DenoisingPredictions(torch.rand(1, 1, 2, 3), torch.rand(1, 1, 2, 4), index, index, 1)
    logits, boxes = torch.rand(1, 2, 3), torch.rand(1, 2, 4)
    moved = TrainingPredictions(
        logits,
        boxes,
        layer_logits=logits[None],
        layer_boxes=boxes[None],
        encoder_logits=logits,
        encoder_boxes=boxes,
        denoising=noisy,
    ).to("meta")
    assert moved.denoising.positive_index[0].device.type == "meta"
    assert moved.denoising.groups == 1 and moved.layer_masks is None
