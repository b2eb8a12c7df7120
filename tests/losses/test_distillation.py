"""Distillation losses against values computed by hand."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from rtdetr_tool.errors import SpecError
from rtdetr_tool.losses.build import build_distillation
from rtdetr_tool.losses.distillation import (
    Alignment,
    DistillationLoss,
    FeatureBinding,
    Outputs,
    PredictionBinding,
    Queries,
    match_queries,
)
from rtdetr_tool.losses.imitation import (
    box_distance,
    class_distance,
    masked_square,
    mean_absolute,
    mean_square,
    query_quality,
    relative_entropy,
    target_mask,
)
from rtdetr_tool.losses.matcher import HungarianMatcher, PaddedTargets
from rtdetr_tool.ops.structures import Predictions, Target, TrainingPredictions
from rtdetr_tool.spec import BindingSpec, DistillSpec, ModelSpec

KL_OF_THREE_TO_ONE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # (3/4, 1/4) against (1/2, 1/2)


def target(*boxes) -> Target:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(boxes, torch.zeros(len(boxes), dtype=torch.long), 1, (10, 10), (10, 10))


def predictions(logits, boxes=None) -> Predictions:
    logits = torch.tensor(logits, dtype=torch.float32)
    if boxes is None:
        boxes = torch.full((*logits.shape[:-1], 4), 0.5)
    return Predictions(logits, torch.as_tensor(boxes, dtype=torch.float32))


def unprojected(levels: int = 1) -> Alignment:
    return Alignment([(1, 1, 4)] * levels)


# Criteria


def test_l1_and_l2_are_means_over_all_elements():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [5.0, 4.0]])
    assert mean_absolute(student, teacher).item() == pytest.approx(0.75)
    assert mean_square(student, teacher).item() == pytest.approx(1.25)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 1, 2), (1, 2)])
def test_kl_is_over_the_places_of_a_map_and_over_the_last_axis_elsewhere(shape):
    teacher = torch.tensor([math.log(3.0), 0.0]).view(shape)
    student = torch.full(shape, 7.0)
    assert relative_entropy(student, teacher).item() == pytest.approx(KL_OF_THREE_TO_ONE, rel=1e-5)
    hot = relative_entropy(student, 2 * teacher, temperature=2.0)
    assert hot.item() == pytest.approx(4 * KL_OF_THREE_TO_ONE, rel=1e-5)
    assert relative_entropy(teacher + 5, teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_kl_of_a_map_is_averaged_over_channels_and_images():
    teacher = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    both = relative_entropy(torch.zeros(1, 2, 1, 2), teacher)
    assert both.item() == pytest.approx(KL_OF_THREE_TO_ONE / 2, rel=1e-5)


class TestQuality:
    scores = torch.tensor([[0.8, 0.5], [0.3, 0.9]])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.25, 0.5, 0.5, 1.0]]]).repeat(2, 1, 1)

    def test_it_is_the_score_times_the_best_iou(self):
        padded = PaddedTargets.of([target([0.5, 0.5, 0.4, 0.4], [0.95, 0.95, 0.1, 0.1]), target([0.25, 0.5, 0.5, 1.0])])
        quality = query_quality(self.scores, self.boxes, padded)
        # the second query covers x 0..0.5, y 0..1; the object x 0.3..0.7, y 0.3..0.7
        overlap = 0.2 * 0.4 / (0.5 + 0.16 - 0.08)
        expected = torch.tensor([[0.8, 0.5 * overlap], [0.3 * overlap, 0.9]])
        torch.testing.assert_close(quality, expected)

    def test_without_objects_it_is_the_score(self):
        padded = PaddedTargets.of([target([0.5, 0.5, 0.4, 0.4]), target()])
        quality = query_quality(self.scores, self.boxes, padded)
        torch.testing.assert_close(quality[1], self.scores[1])
        torch.testing.assert_close(quality[0, 0], torch.tensor(0.8))
        nothing = query_quality(self.scores, self.boxes, PaddedTargets.of([target(), target()]))
        torch.testing.assert_close(nothing, self.scores)

    def test_padding_is_no_object(self):
        """Padding rows are boxes in the middle of the image, where a query may be."""
        boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]).repeat(2, 1, 1)
        padded = PaddedTargets.of([target([0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]), target([0.9, 0.9, 0.1, 0.1])])
        assert query_quality(torch.ones(2, 1), boxes, padded).tolist() == [[0.0], [0.0]]


QUERIES = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])  # [1, 2, 2]
QUALITY = torch.tensor([[0.6, 0.2]])
MAP = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)


def test_the_mask_follows_the_queries_by_quality_and_is_one_at_its_strongest():
    """Cosines 0.6, 0.2 and -0.6 after weighting; the last one is clamped to 0.01."""
    mask = target_mask(MAP, QUERIES, QUALITY)
    torch.testing.assert_close(mask, torch.tensor([1.0, 1 / 3, 1 / 60]).view(1, 1, 1, 3))


def test_the_masked_difference_is_squared_with_its_mask():
    mask = torch.tensor([1.0, 1 / 3, 1 / 60]).view(1, 1, 1, 3)
    loss = masked_square(torch.zeros_like(MAP), MAP, mask)
    assert loss.item() == pytest.approx((25 + 1 / 9 + 1 / 3600) / 6)


def test_class_distances_sum_over_classes():
    student, teacher = torch.zeros(2, 2), torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), math.log(3.0)]])
    assert class_distance(student, teacher, "L1").tolist() == pytest.approx([0.25, 0.5])
    assert class_distance(student, teacher, "L2").tolist() == pytest.approx([0.0625, 0.125])
    kl = class_distance(student, teacher, "KL")
    assert kl.tolist() == pytest.approx([KL_OF_THREE_TO_ONE, 2 * KL_OF_THREE_TO_ONE], rel=1e-5)
    hot = class_distance(student, 2 * teacher, "KL", temperature=2.0)
    assert hot.tolist() == pytest.approx([4 * KL_OF_THREE_TO_ONE, 8 * KL_OF_THREE_TO_ONE], rel=1e-5)


def test_box_distances_are_of_cxcywh_and_iou_is_generalized():
    student, teacher = torch.tensor([[0.25, 0.5, 0.5, 1.0]]), torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    assert box_distance(student, teacher, "L1").item() == pytest.approx(0.75)
    assert box_distance(student, teacher, "L2").item() == pytest.approx(0.3125)
    assert box_distance(student, teacher, "IOU").item() == pytest.approx(0.5)
    apart = box_distance(torch.tensor([[0.25, 0.5, 0.5, 1.0]]), torch.tensor([[0.875, 0.5, 0.25, 1.0]]), "IOU")
    assert apart.item() == pytest.approx(1 + 0.25)  # IoU 0, a quarter of the hull is between them


# Bindings


def test_a_teacher_of_other_width_and_size_is_met_by_projection_and_interpolation():
    alignment = Alignment([(1, 2, 4)])
    projection = alignment.projections[0]
    projection.weight.data = torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    projection.bias.data = torch.tensor([0.0, 1.0])
    student = [torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)]
    aligned = alignment(student, [torch.zeros(1, 2, 1, 1)])
    assert aligned[0].flatten().tolist() == pytest.approx([3.0, 31.0])  # the mean of the four positions, times 1 and 10
    wider = alignment(student, [torch.zeros(1, 2, 2, 4)])[0][0, 0]
    assert wider[0].tolist() == pytest.approx([1.0, 1.25, 1.75, 2.0])


def test_tokens_are_projected_by_a_linear_layer():
    alignment = Alignment([(3, 5, 3)])
    assert isinstance(alignment.projections[0], torch.nn.Linear)
    assert alignment([torch.zeros(2, 7, 3)], [torch.zeros(2, 7, 5)])[0].shape == (2, 7, 5)


def test_target_aware_imitation_sums_levels_and_takes_images_without_boxes():
    teacher = Outputs(
        {"srcs": [MAP.repeat(2, 1, 1, 1), 2 * MAP.repeat(2, 1, 1, 1)]},
        predictions(torch.zeros(2, 2, 1).tolist()),
        Queries(
            QUERIES.repeat(2, 1, 1),
            torch.tensor([[0.6, 0.8], [0.6, 0.2]]),
            torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]]).repeat(2, 1, 1),
        ),
    )
    student = Outputs({"srcs": [torch.zeros(2, 2, 1, 3)] * 2}, predictions([[[0.0]], [[0.0]]]))
    binding = FeatureBinding("srcs", "srcs", "IOU", 20.0, Alignment([(2, 2, 4)] * 2))
    # image 1: qualities 0.6 * 1 and 0.8 * 0.25 = 0.2; image 2 has no boxes: its scores, 0.6 and 0.2, are the qualities
    padded = PaddedTargets.of([target([0.5, 0.5, 0.5, 0.5]), target()])
    once = (25 + 1 / 9 + 1 / 3600) / 6
    assert binding(student, teacher, padded).item() == pytest.approx(once + 4 * once, rel=1e-5)


def test_the_mask_is_made_where_the_teachers_queries_live():
    """If the teacher's decoder is narrower than its encoder, the mask uses maps in the width of the queries."""
    wide = torch.ones(1, 3, 1, 3)
    teacher = Outputs(
        {"srcs": [wide]}, predictions([[[0.0]]]), Queries(QUERIES, QUALITY, torch.full((1, 2, 4), 0.5)), {"srcs": [MAP]}
    )
    student = Outputs({"srcs": [torch.zeros(1, 3, 1, 3)]}, predictions([[[0.0]]]))
    binding = FeatureBinding("srcs", "srcs", "IOU", 1.0, Alignment([(3, 3, 4)]))
    loss = binding(student, teacher, PaddedTargets.of([target()]))
    assert loss.item() == pytest.approx((1 + 1 / 9 + 1 / 3600) / 3)


LEFT, RIGHT, AWAY = [0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.4, 0.9, 0.1, 0.1]


def objects(*boxes, labels=None) -> PaddedTargets:
    result = target(*boxes)
    result.labels = torch.tensor(labels) if labels else result.labels
    return PaddedTargets.of([result])


def test_matched_queries_speak_of_the_same_object():
    teacher = predictions([[[3.0, -9.0], [-9.0, 2.0], [-9.0, -9.0]]], [[LEFT, RIGHT, AWAY]])
    order = [2, 0, 1]
    student = Predictions(teacher.logits[:, order], teacher.boxes[:, order])
    pairs = match_queries(HungarianMatcher(), student, teacher, objects(LEFT, RIGHT, labels=[0, 1]))
    torch.testing.assert_close(pairs.student_logits, pairs.teacher_logits)
    torch.testing.assert_close(pairs.student_boxes, pairs.teacher_boxes)
    assert sorted(pairs.teacher_logits.amax(-1).tolist()) == [2.0, 3.0], "the query away from objects has no pair"


def test_the_student_follows_with_the_query_that_the_detection_loss_trains():
    """The teacher's box is slightly off, and another query of the student is nearer to it than the matched one."""
    teacher = predictions([[[3.0]]], [[[0.3, 0.2, 0.2, 0.2]]])
    student = predictions([[[0.0], [0.1]]], [[[0.3, 0.2, 0.2, 0.2], LEFT]])
    pairs = match_queries(HungarianMatcher(), student, teacher, objects(LEFT))
    assert pairs.student_logits.tolist() == [[pytest.approx(0.1)]]


def test_either_may_have_fewer_queries_than_there_are_objects():
    one, two = predictions([[[1.0]]], [[LEFT]]), predictions([[[1.0], [1.0]]], [[LEFT, RIGHT]])
    for student, teacher in ((one, two), (two, one)):
        pairs = match_queries(HungarianMatcher(), student, teacher, objects(RIGHT, LEFT))
        counted = pairs.weight > 0  # an object without a query of the teacher has weight 0
        torch.testing.assert_close(pairs.student_boxes[counted], torch.tensor([LEFT]))
        torch.testing.assert_close(pairs.teacher_boxes[counted], torch.tensor([LEFT]))


def test_every_decoder_layer_of_the_student_is_matched():
    teacher = predictions([[[1.0], [-1.0]]], [[LEFT, RIGHT]])
    layers = torch.stack([teacher.logits.flip(1), teacher.logits])
    boxes = torch.stack([teacher.boxes.flip(1), teacher.boxes])
    student = TrainingPredictions(
        layers[-1], boxes[-1], layer_logits=layers, layer_boxes=boxes, encoder_logits=layers[0], encoder_boxes=boxes[0]
    )
    pairs = match_queries(HungarianMatcher(), student, teacher, objects(LEFT, RIGHT))
    assert len(pairs.weight) == 4
    torch.testing.assert_close(pairs.student_boxes, pairs.teacher_boxes)


def test_a_pair_counts_as_much_as_the_teacher_is_right():
    """A score of 3/4 with half of the object, and of 1/4 with all of it."""
    half = [0.2, 0.15, 0.2, 0.1]
    teacher = predictions([[[math.log(3.0)], [-math.log(3.0)]]], [[half, RIGHT]])
    student = predictions([[[0.0], [0.0]]], [[LEFT, [0.7, 0.7, 0.2, 0.5]]])
    pairs = match_queries(HungarianMatcher(), student, teacher, objects(LEFT, RIGHT))
    first, second = 0.75 * 0.5, 0.25 * 1.0
    loss = PredictionBinding("pred_boxes", "L1", 1.0)(pairs)
    assert loss.item() == pytest.approx((first * 0.15 + second * 0.3) / (first + second), rel=1e-5)
    loss = PredictionBinding("pred_logits", "KL", 1.0)(pairs)
    assert loss.item() == pytest.approx(KL_OF_THREE_TO_ONE, rel=1e-5)  # the same for both


def test_without_objects_nothing_is_matched():
    both = predictions([[[1.0]]])
    pairs = match_queries(HungarianMatcher(), both, both, objects())
    assert PredictionBinding("pred_logits", "KL", 1.0)(pairs).item() == 0.0


def test_weights_are_applied_once_and_names_are_told_apart():
    bindings = [
        FeatureBinding("srcs", "srcs", "L1", 2.0, unprojected()),
        FeatureBinding("dsrcs", "srcs", "L1", 3.0, unprojected()),
        FeatureBinding("srcs", "srcs", "L2", 0.5, unprojected()),
    ]
    maps = {"srcs": [torch.full((1, 1, 2, 2), 3.0)], "dsrcs": [torch.ones(1, 1, 2, 2)]}
    teacher = Outputs(maps, predictions([[[0.0]]]))
    student = Outputs({"srcs": [torch.zeros(1, 1, 2, 2)]}, predictions([[[0.0]]]))
    losses = DistillationLoss(bindings, HungarianMatcher())(student, teacher, [target()])
    assert {name: value.item() for name, value in losses.items()} == {
        "loss_distillation_srcs_L1": 6.0,
        "loss_distillation_srcs_L1_2": 3.0,
        "loss_distillation_srcs_L2": 4.5,
        "loss_distillation": 13.5,
    }


def test_gradients_reach_the_student_and_its_projection_but_never_the_teacher():
    student_map = torch.randn(1, 1, 2, 2, requires_grad=True)
    teacher_map = torch.randn(1, 2, 2, 2)
    loss = DistillationLoss([FeatureBinding("srcs", "srcs", "L2", 1.0, Alignment([(1, 2, 4)]))], HungarianMatcher())
    outputs = (Outputs({"srcs": [m]}, predictions([[[0.0]]])) for m in (student_map, teacher_map))
    loss(*outputs, [target()])["loss_distillation"].backward()
    assert student_map.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


# From the spec

MAPS = [(1, 16, 8, 8), (1, 16, 4, 4)]
WIDER = [(1, 32, 8, 8), (1, 32, 4, 4)]
COARSER = [(1, 16, 4, 4), (1, 16, 2, 2)]


def build(student, teacher, criterion="L2", **settings):
    spec = DistillSpec(bindings=[BindingSpec("a", "b", criterion)], **settings)
    return build_distillation(spec, ModelSpec(), {"b": student}, {"a": teacher})


def test_equal_shapes_need_no_projection():
    assert not list(build(MAPS, MAPS).parameters())
    assert not list(build(MAPS, MAPS, align="error").parameters())


def test_projections_and_interpolation_are_logged(caplog):
    caplog.set_level(logging.INFO)
    assert len(list(build(MAPS, WIDER).parameters())) == 4
    assert "b of the student follows a of the teacher (L2, weight 1), through learned projections of 16 to 32, " in (
        caplog.text
    )
    assert not list(build(MAPS, COARSER).parameters())
    assert "interpolated to the teacher's sizes" in caplog.text


@pytest.mark.parametrize(
    ("student", "teacher", "settings", "words"),
    [
        (MAPS, WIDER, {"align": "error"}, "the shapes differ and distill.align is error"),
        (MAPS, COARSER, {"align": "error"}, "the shapes differ and distill.align is error"),
        (MAPS, MAPS[:1], {}, "they have 2 and 1 levels"),
        (MAPS[:1], [(1, 20, 16)], {}, "their kinds differ"),
        ([(1, 10, 16)], [(1, 20, 16)], {}, "the numbers of tokens differ"),
    ],
)
def test_what_cannot_be_brought_together_is_logged_with_both_shapes(student, teacher, settings, words):
    with pytest.raises(SpecError, match=r"bindings\[0\]: b \[.* of the student and a \[.* of the teacher") as caught:
        build(student, teacher, **settings)
    assert words in str(caught.value)


def test_the_temperature_of_the_spec_reaches_the_criteria():
    spec = DistillSpec(
        bindings=[BindingSpec("a", "b", "KL"), BindingSpec("pred_logits", "pred_logits", "KL")], temperature=3.0
    )
    built = build_distillation(spec, ModelSpec(giou_cost=7.0), {"b": MAPS}, {"a": MAPS})
    assert [binding.temperature for binding in built.bindings] == [3.0, 3.0]
    assert built.matcher.giou_cost == 7.0
