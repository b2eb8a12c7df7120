"""Spec files and overrides that expand to large content are refused immediately with one message."""

from __future__ import annotations

import json
import time

import pytest

from rtdetr_tool.cli import main
from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import load_spec
from rtdetr_tool.spec.documents import DEEPEST, LARGEST_FILE, MOST_REFERENCES, MOST_VALUES

LEVELS = range(1, 15)
LAUGHS = "x0: &a0 [l,l,l,l,l,l,l,l,l]\n" + "".join(
    f"x{level}: &a{level} [{','.join([f'*a{level - 1}'] * 9)}]\n" for level in LEVELS
)
MERGED_LAUGHS = "x0: &a0 {a: 1}\n" + "".join(
    f"x{level}: &a{level} {{<<: [{','.join([f'*a{level - 1}'] * 9)}]}}\n" for level in LEVELS
)
# 2^30 values by references instead of aliases
REFERRING_LAUGHS = "quantize:\n  backend_kwargs:\n    k30: 1\n" + "".join(
    f"    k{n}: {{a: '${{quantize.backend_kwargs.k{n + 1}}}', b: '${{quantize.backend_kwargs.k{n + 1}}}'}}\n"
    for n in range(30)
)
GROWING_TEXT = "model_name: xxxxxxxxxx\n" + "".join(
    f"k{n}: '{'${model_name}' if n == 0 else 10 * f'${{k{n - 1}}}'}'\n" for n in range(12)
)


def refusal(tmp_path, text: str | bytes, suffix: str = ".yaml", overrides=()) -> str:
    path = tmp_path / f"spec{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    assert time.process_time() - start < 20  # seconds; without limits: hours, or all memory first
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, ["line", f"more than {MOST_VALUES} values"]),
        (MERGED_LAUGHS, ["line", f"more than {MOST_VALUES} values"]),
        (REFERRING_LAUGHS, [f"more than {MOST_VALUES} values"]),
        (GROWING_TEXT, ["more than 10000 characters"]),
        ("train: &a {seed: *a}\n", ["line 1", "contains itself"]),
        (f"a: [{'1,' * (MOST_VALUES + 1)}]\n", ["line 1", f"more than {MOST_VALUES} values"]),
        (f"results_dir: {'x' * LARGEST_FILE}\n", [f"limit of {LARGEST_FILE} bytes"]),
        (f"results_dir: '{'${model_name}' * (MOST_REFERENCES + 1)}'\n", [f"more than {MOST_REFERENCES} references"]),
    ],
    ids=["aliases", "merge keys", "references", "text", "itself", "values", "bytes", "many references"],
)
def test_a_small_file_that_stands_for_a_large_one_is_refused(text, words, tmp_path):
    message = refusal(tmp_path, text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("opening", ["[", "- ", "? ", "{a: "])
def test_yaml_of_great_depth_is_refused_with_the_line(opening, tmp_path):
    assert f"nested more than {DEEPEST} levels deep" in refusal(tmp_path, f"a:\n  {opening * 20_000}")


@pytest.mark.parametrize("text", ['{"a":' * 100_000, '{"a":' * 40 + "1" + "}" * 40])
def test_json_of_great_depth_is_refused(text, tmp_path):
    assert "deep" in refusal(tmp_path, text, ".json")


def test_the_depth_and_aliases_that_people_use_are_fine(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "train: &t {num_gpus: 2}\nevaluate: {<<: *t, conf_threshold: 0.1}\nquantize:\n  backend_kwargs:\n    a: "
        + "{b: " * (DEEPEST - 4) + "1" + "}" * (DEEPEST - 4) + "\n"
    )  # fmt: skip
    assert load_spec(path).evaluate.num_gpus == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("!!python/object/apply:os.system [x]", ["line 2", "python/object/apply:os.system"]),
        ("!!python/name:os.system", ["line 2", "python/name:os.system"]),
        ("!!python/module:os", ["line 2"]),
        ("!mine x", ["line 2", "!mine"]),
        ("!!bool perhaps", ["line 2", "'perhaps' is not a valid bool"]),
        ("!!int ''", ["line 2", "'' is not a valid int"]),
        ("!!timestamp x", ["line 2", "'x' is not a valid timestamp"]),
        ('"a\\0b"', ["results_dir", "zero byte"]),
        ('"\\ud800"', ["results_dir", "UTF-8"]),
        (f"0x{'f' * 10_000}", ["results_dir", "64 bits"]),
        ("9" * 10_000, ["line 2", "is not a valid int"]),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_place(value, words, tmp_path):
    message = refusal(tmp_path, f"model_name: x\nresults_dir: {value}\n")
    assert all(word in message for word in words), message


def test_a_zero_byte_in_the_file_is_refused(tmp_path):
    assert "not valid YAML" in refusal(tmp_path, b"results_dir: a\0b\n")


@pytest.mark.parametrize(
    ("text", "suffix", "words"),
    [
        ("train:\n  seed: 1\n  seed: 2\n", ".yaml", ["line 3", "duplicate key seed"]),
        (json.dumps({f"k{n}": 1 for n in range(20_000)})[:-1] + ', "k5": 1}', ".json", ["duplicate key 'k5'"]),
    ],
)
def test_a_key_given_twice_is_named(text, suffix, words, tmp_path):
    message = refusal(tmp_path, text, suffix)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"train.freeze=[{','.join('a' * 2_000)}]", "1000"),
        (f"train.freeze={'[' * 5_000}", "1000"),
        (f"results_dir={'a' * 30_000}", "20000"),
        (f"train.seed={'9' * 10_000}", "is not key=value"),
        ("results_dir='a\0b'", "zero byte"),
        (f"train.freeze={'[' * 100}{']' * 100}", "deep"),
    ],
)
def test_an_override_beyond_the_limits_is_refused(override, words):
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_spec(None, [override])
    assert words in str(caught.value) and time.process_time() - start < 20
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config-dir", "/tmp"],
        ["--config-path=/tmp"],
        ["--multirun", "train.seed=1,2"],
        ["hydra.run.dir=/tmp/x"],
        ["+hydra.searchpath=[/tmp]"],
        ["hydra/launcher=basic"],
        ["experiment@train=y"],
        ["+_target_=os.system"],
        ["train._target_=os.system"],
    ],
)
def test_hydra_cannot_be_steered_from_the_command_line(arguments, tmp_path, capsys):
    try:
        code = main(["train", "-r", str(tmp_path / "results"), *arguments])
    except SystemExit as stop:  # argparse: an unknown option
        code = stop.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("field", ["_target_: os.system", "hydra: {run: {dir: /tmp/x}}", "defaults: [other]"])
def test_keys_that_mean_something_to_hydra_are_unknown_fields(field, tmp_path):
    assert "no such field" in refusal(tmp_path, f"{field}\n", overrides=["train.seed=1"])
