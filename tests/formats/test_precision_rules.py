"""`layers_precision`: the user's precision of individual layers."""

from __future__ import annotations

import pytest

from rtdetr_tool.errors import UserError
from rtdetr_tool.formats.precision import parse_layers_precision

NODES = [("/decoder/layers.0/Softmax", "Softmax"), ("/decoder/head/MatMul", "MatMul"), ("/backbone/conv1", "Conv")]


def precision(entries, name, op_type=""):
    rule = parse_layers_precision(entries).match(name, op_type)
    return None if rule is None else rule.precision


def test_the_last_colon_separates_and_case_and_spaces_do_not_matter():
    rules = parse_layers_precision(["onnx::MatMul_12:fp32", " /decoder/* : FP16 "]).rules
    assert [(rule.pattern, rule.precision) for rule in rules] == [("onnx::MatMul_12", "fp32"), ("/decoder/*", "fp16")]


@pytest.mark.parametrize("entries", [None, [], ()])
def test_no_entries_are_no_rules(entries):
    assert parse_layers_precision(entries).match("any") is None


def test_the_later_of_two_matching_rules_holds():
    entries = ["/decoder/*:fp32", "/decoder/head/*:fp16"]
    assert precision(entries, "/decoder/head/MatMul") == "fp16"
    assert precision(entries[::-1], "/decoder/head/MatMul") == "fp32"


@pytest.mark.parametrize("entries", [["*:fp16", "/decoder/*:fp32"], ["/decoder/*:fp32", "*:fp16"]])
def test_the_star_holds_for_all_others_wherever_it_stands(entries):
    assert precision(entries, "/decoder/head/MatMul") == "fp32"
    assert precision(entries, "/backbone/conv1") == "fp16"


def test_a_pattern_can_be_the_name_of_an_operator():
    assert precision(["Softmax:fp16"], "/decoder/layers.0/Softmax", "Softmax") == "fp16"
    assert precision(["Softmax:fp16"], "/decoder/head/MatMul", "MatMul") is None


def test_every_wrong_entry_is_named_at_once():
    with pytest.raises(UserError) as caught:
        parse_layers_precision(["conv1", "conv2:fp61", ":fp16", "conv3:int8"])
    message = str(caught.value)
    assert "'conv1' is not of the form layer:precision" in message and "':fp16' is not of the form" in message
    assert (
        "'conv2:fp61': precision 'fp61' is invalid; expected one of fp32, fp16, int8, int32; did you mean fp16?"
        in message
    )
    assert "conv3" not in message


def test_a_pattern_that_matches_no_layer_is_an_error_with_near_names():
    rules = parse_layers_precision(["/decoder/layer.0/Softmax:fp32", "Softmax:fp16", "*:fp16"])
    with pytest.raises(
        UserError, match=r"'/decoder/layer\.0/Softmax' matches no .*did you mean /decoder/layers\.0/Softmax"
    ):
        rules.check(NODES)
    parse_layers_precision(["/decoder/*:fp32", "*:fp16"]).check(NODES)
