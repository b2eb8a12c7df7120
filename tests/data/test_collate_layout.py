"""Batches are channels_last from the decoder to the network, and in shared memory if a worker creates them."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from rtdetr_tool.data.collate import collate, stack_images
from rtdetr_tool.data.window import Window, render
from rtdetr_tool.ops.structures import Batch, Target


def image(seed: int) -> torch.Tensor:
    return torch.randint(0, 255, (6, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Samples(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), index, (6, 8), (8.0, 6.0))
        return image(index).permute(2, 0, 1), target


def test_images_of_either_layout_are_stacked_channels_last():
    first, second = image(0).permute(2, 0, 1), image(1).permute(2, 0, 1).contiguous()
    batch = stack_images([first, second])
    assert torch.equal(batch, torch.stack([first, second]))
    assert batch.is_contiguous(memory_format=torch.channels_last) and not batch.is_shared()


def test_a_worker_makes_the_batch_in_shared_memory_and_its_layout_arrives():
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, collate_fn=collate)
    for number, batch in enumerate(loader):
        assert isinstance(batch, Batch) and batch.images.is_shared()
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.images, torch.stack([Samples()[2 * number + i][0] for i in range(2)]))


def test_rendering_keeps_the_layout_of_the_decoder():
    decoded = image(3).permute(2, 0, 1)
    for outer in ((12, 16), (16, 16)):
        rendered = render(decoded, Window(0, 0, 8, 6), (12, 16), outer, mirrored=False)
        assert rendered.shape == (3, *outer) and rendered.permute(1, 2, 0).is_contiguous()
