"""Detections are compared as sets."""

import math

import torch

from rtdetr_tool.formats.comparison import compare_on, compare_predictions
from rtdetr_tool.ops.structures import Predictions


def predictions(queries: int = 30, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(torch.randn(2, queries, 4, generator=generator), torch.rand(2, queries, 4, generator=generator))


def test_the_order_of_queries_does_not_matter():
    one = predictions()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    other = Predictions(one.logits[:, order], one.boxes[:, order])
    difference = compare_predictions(one, other)
    assert difference.score < 1e-7 and difference.box == 0.0 and difference.unmatched == 0
    assert difference.detections == 2 * 2 * 100
    assert difference.within(1e-7)


def test_a_changed_score_is_found_with_its_size():
    one = predictions()
    other = Predictions(one.logits.clone(), one.boxes)
    best = one.logits[0].flatten().argmax()
    other.logits[0].view(-1)[best] -= 0.5
    expected = float(one.logits[0].max().sigmoid() - (one.logits[0].max() - 0.5).sigmoid())
    assert math.isclose(compare_predictions(one, other).score, expected, rel_tol=1e-5)


def test_a_moved_box_is_found_with_its_size():
    one = predictions()
    other = Predictions(one.logits, one.boxes.clone())
    query = int(one.logits[1].amax(-1).argmax())
    other.boxes[1, query, 2] += 0.01
    difference = compare_predictions(one, other)
    assert math.isclose(difference.box, 0.01, rel_tol=1e-4)
    assert not difference.within(0.005)
    assert difference.within(0.02)


def test_a_changed_pixel_of_a_mask_is_found_with_its_size_whatever_the_order_of_queries():
    one = predictions()
    one.masks = torch.randn(2, 30, 3, 4, generator=torch.Generator().manual_seed(5))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    other = Predictions(one.logits[:, order], one.boxes[:, order], masks=one.masks[:, order].clone())
    assert compare_predictions(one, other).within(1e-7)
    best = int(other.logits[1].amax(-1).argmax())
    before = other.masks[1, best, 2, 1].sigmoid()
    other.masks[1, best, 2, 1] += 1
    changed = float(other.masks[1, best, 2, 1].sigmoid() - before)
    difference = compare_predictions(one, other)
    assert math.isclose(difference.mask, changed, rel_tol=1e-5) and not difference.within(changed / 2)
    result = compare_on(torch.zeros(2, 3, 8, 8), 2, lambda images: part_of(one, images), lambda _: other, 1.0)
    assert math.isclose(result.mask, changed, rel_tol=1e-5)


def part_of(found: Predictions, images) -> Predictions:
    return Predictions(*(tensor[: len(images)] for tensor in (found.logits, found.boxes)), masks=found.masks)


def test_other_classes_are_not_matched():
    one = Predictions(torch.tensor([[[5.0, -5.0]]]), torch.rand(1, 1, 4))
    other = Predictions(torch.tensor([[[5.0]]]), one.boxes)
    assert compare_predictions(one, other).unmatched > 0


def test_nan_is_never_within():
    one = predictions()
    other = Predictions(one.logits.clone(), one.boxes.clone())
    other.boxes[0] = math.nan
    assert not compare_predictions(one, other).within(1.0)
    other = Predictions(torch.full_like(one.logits, math.nan), one.boxes)
    assert not compare_predictions(one, other).within(1.0)


def test_swapped_queries_at_the_cut_do_not_count():
    """400 equal detections, of which the best are arbitrary."""
    logits = torch.zeros(1, 400, 1)
    boxes = torch.full((1, 400, 4), 0.5)
    order = torch.arange(399, -1, -1)
    assert compare_predictions(Predictions(logits, boxes), Predictions(logits[:, order], boxes)).within(1e-9)


def test_images_are_compared_in_batches_of_the_asked_size():
    seen = []

    def run(images):
        seen.append(len(images))
        return Predictions(images.flatten(1)[:, :8].view(-1, 2, 4), torch.ones(len(images), 2, 4))

    difference = compare_on(torch.rand(7, 3, 4, 4), 3, run, run, 1e-3)
    assert seen == [3] * 4  # two batches, each on both sides; the seventh image is skipped
    assert (difference.batch, difference.images, difference.ambiguous) == (3, 6, 0)


def selecting(images):
    """The brighter of the two upper pixels is selected and determines the box."""
    first = images[:, 0, 0, 0] > images[:, 0, 0, 1]
    centre = torch.where(first, 0.2, 0.8)[:, None, None]
    return Predictions(torch.ones(len(images), 1, 1), centre.expand(-1, 1, 4))


def other_way(images):
    """As `selecting`, but with the other choice in a tie."""
    return Predictions(torch.ones(len(images), 1, 1), 1 - selecting(images.flip(-1)).boxes)


def test_a_image_on_which_torch_itself_is_unstable_is_skipped():
    images = torch.zeros(3, 3, 2, 2)
    images[0, 0, 0, 0] = images[2, 0, 0, 1] = 0.5
    result = compare_on(images, 1, selecting, other_way, 1e-3)
    assert (result.images, result.ambiguous) == (2, 1)
    assert result.within(1e-3)


def test_a_real_difference_is_not_taken_for_instability():
    images = torch.zeros(2, 3, 2, 2)
    images[:, 0, 0, 0] = 0.5
    result = compare_on(images, 1, selecting, lambda part: selecting(part.flip(-1)), 1e-3)
    assert (result.images, result.ambiguous) == (2, 0)
    assert not result.within(1e-3)


def test_nothing_compared_is_not_within():
    result = compare_on(torch.zeros(2, 3, 2, 2), 1, selecting, other_way, 1e-3)
    assert (result.images, result.ambiguous) == (0, 2)
    assert not result.within(1e-3)
