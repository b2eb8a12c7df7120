from __future__ import annotations

import logging

import pytest
import torch

from rtdetr_tool.models.denoising import build_denoising, denoising_attention_mask
from rtdetr_tool.ops.boxes import cxcywh_to_xyxy
from rtdetr_tool.ops.structures import Target


def target(count: int, seed: int = 0) -> Target:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 0.2 + 0.3
    return Target(boxes, torch.randint(5, (count,), generator=generator), 0, (64, 64), (64.0, 64.0))


@pytest.mark.parametrize("wanted,counts,groups", [(100, (3, 1), 33), (100, (60, 2), 1), (10, (10, 2), 1)])
def test_groups_fill_the_wanted_number_with_at_least_one(wanted, counts, groups):
    made = build_denoising([target(count) for count in counts], 5, 20, wanted)
    most = max(counts)
    assert made.groups == groups
    assert made.labels.shape == (len(counts), 2 * groups * most)
    assert made.boxes.shape == (*made.labels.shape, 4)
    assert made.attention_mask.shape == (2 * groups * most + 20,) * 2
    assert [len(index) for index in made.positive_index] == [groups * count for count in counts]


def test_more_objects_than_wanted_queries_do_not_add_queries():
    targets = [target(1500), target(3, 1), target(100, 2)]
    torch.manual_seed(0)
    made = build_denoising(targets, 5, 20, 100, label_noise=0, box_noise=0)
    assert made.groups == 1
    assert made.labels.shape == (3, 200)
    assert [len(index) for index in made.positive_index] == [100, 3, 100]
    for row, (truth, index, objects) in enumerate(zip(targets, made.positive_index, made.object_index, strict=True)):
        assert len(objects.unique()) == len(objects)
        assert torch.equal(made.labels[row, index], truth.labels[objects])
        torch.testing.assert_close(made.boxes[row, index].sigmoid(), truth.boxes[objects], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.boxes[row, index + 100].sigmoid(), truth.boxes[objects], atol=1e-4, rtol=1e-4)
    assert torch.equal(made.object_index[1], torch.arange(3))


def test_the_selection_of_objects_changes_from_step_to_step():
    torch.manual_seed(0)
    draws = [build_denoising([target(1500)], 5, 20, 100).object_index[0] for _ in range(100)]
    counts = torch.cat(draws).bincount(minlength=1500)
    assert (counts > 0).all()
    assert counts.max() < 25  # 100 * 100 / 1500 on average


def test_a_random_selection_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "rtdetr_tool"):
        build_denoising([target(9)], 5, 20, 8)
        build_denoising([target(10)], 5, 20, 8)
    assert [record.getMessage() for record in caplog.records] == [
        "Some images have more objects than model.dn_number (8); each step denoises a random selection of that many."
    ]


@pytest.mark.parametrize("wanted,counts", [(0, (3, 1)), (-1, (3,)), (100, (0, 0)), (100, ())])
def test_there_are_no_queries_when_disabled_or_without_objects(wanted, counts):
    assert build_denoising([target(count) for count in counts], 5, 20, wanted) is None


def test_without_noise_queries_repeat_the_ground_truth():
    targets = [target(3), target(1, 1)]
    made = build_denoising(targets, 5, 20, 6, label_noise=0, box_noise=0)
    for row, (truth, index) in enumerate(zip(targets, made.positive_index, strict=True)):
        repeated = truth.boxes.repeat(made.groups, 1)
        torch.testing.assert_close(made.boxes[row, index].sigmoid(), repeated, atol=1e-4, rtol=1e-4)
        assert torch.equal(made.labels[row, index], truth.labels.repeat(made.groups))
    assert (made.labels[1].view(-1, 3)[:, 1:] == 5).all()  # padding has the extra class


def test_positives_move_by_up_to_half_a_side_and_negatives_by_more():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.4, 0.5, 0.3, 0.2], [0.5, 0.6, 0.1, 0.3], [0.5, 0.5, 0.3, 0.3]])
    truth = Target(boxes, torch.arange(4), 0, (64, 64), (64.0, 64.0))
    made = build_denoising([truth], 5, 20, 400)
    boxes = made.boxes[0].sigmoid().view(made.groups, 2, 4, 4)
    half = truth.boxes[:, [2, 3, 2, 3]] / 2
    moved = (cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(truth.boxes)).abs() / half
    whole = (boxes[..., 2:] > 1e-3).all(-1)  # the corners of a negative may cross, so that there is no box
    positive, negative = moved[:, 0][whole[:, 0]], moved[:, 1][whole[:, 1]]
    assert positive.max() <= 1.01 and positive.min() < 0.1
    assert negative.min() >= 0.99 and negative.max() > 1.9
    assert positive.mean().item() == pytest.approx(0.5, abs=0.05)


def test_boxes_stay_inside_the_image():
    edge = Target(torch.tensor([[0.05, 0.95, 0.1, 0.1]]), torch.tensor([0]), 0, (64, 64), (64.0, 64.0))
    boxes = cxcywh_to_xyxy(build_denoising([edge], 5, 20, 200).boxes.sigmoid())
    assert boxes.min() >= -1e-4 and boxes.max() <= 1 + 1e-4


def test_a_quarter_of_the_labels_is_redrawn():
    torch.manual_seed(0)
    truth = Target(torch.full((50, 4), 0.4), torch.zeros(50, dtype=torch.long), 0, (64, 64), (64.0, 64.0))
    labels = build_denoising([truth], 5, 20, 2000).labels
    assert (labels != 0).float().mean().item() == pytest.approx(0.25 * 4 / 5, abs=0.02)
    assert labels.max() < 5


def test_queries_see_their_group_and_the_matching_queries_only():
    hidden = denoising_attention_mask(2, 2, 3, torch.device("cpu"))
    expected = torch.tensor(
        [
            [0, 0, 1, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
        ]
    )
    assert torch.equal(hidden, expected.bool())
