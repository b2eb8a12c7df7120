"""Reading spec files and overrides."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import (
    MISSING,
    DatasetSpec,
    ExperimentSpec,
    ModelSpec,
    TrainSpec,
    load_spec,
    read_spec,
    spec_from_dict,
    spec_to_dict,
)

SOURCES = """
dataset:
  train_data_sources:
    - {image_dir: /data/train, json_file: /data/train.json}
  val_data_sources: {image_dir: /data/val, json_file: /data/val.json}
"""


@pytest.fixture
def write(tmp_path):
    """Write a file and return its path."""

    def write(text: str | bytes, name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems_of(path, overrides=(), command=None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides, command)
    return caught.value.problems


def only_problem(*arguments, **keywords) -> str:
    problems = problems_of(*arguments, **keywords)
    assert len(problems) == 1, problems
    return problems[0]


class TestFiles:
    def test_yaml_and_json_hold_the_same_spec(self, write):
        data = {"train": {"num_epochs": 3, "optim": {"lr": 0.01}}, "model": {"backbone": "resnet_18"}}
        from_json = load_spec(write(json.dumps(data), "spec.json"))
        from_yaml = load_spec(write("train: {num_epochs: 3, optim: {lr: 1e-2}}\nmodel: {backbone: resnet_18}\n"))
        assert from_json == from_yaml
        assert from_yaml.train.optim.lr == 0.01

    def test_a_byte_order_mark_is_fine(self, write):
        assert load_spec(write(b"\xef\xbb\xbftrain:\n  num_epochs: 7\n")).train.num_epochs == 7

    @pytest.mark.parametrize("text", ["1e-4", "0.0001", "1.0E-04", "'1e-4'", "1e-04"])
    def test_every_spelling_of_a_small_number_is_a_number(self, write, text):
        assert load_spec(write(f"train: {{optim: {{lr: {text}}}}}\n")).train.optim.lr == 1e-4

    def test_a_missing_file_is_named(self, tmp_path):
        assert only_problem(tmp_path / "none.yaml") == "the file does not exist"

    def test_a_folder_is_not_a_spec(self, tmp_path):
        assert "folder" in only_problem(tmp_path)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "empty"),
            ("# only a comment\n", "empty"),
            ("just words\n", "mapping"),
            ("42\n", "mapping"),
            ("- train\n- model\n", "mapping"),
            ("train:\n  num_epochs: [1, 2\n", "line"),
            ("train:\n\tnum_epochs: 1\n", "line 2"),
            ("train: {num_epochs: 1}\nmodel: {}\ntrain: {seed: 2}\n", "duplicate key train"),
            ("train:\n  seed: 1\n  num_epochs: 2\n  seed: 3\n", "line 4"),
            ("train:\n  results_dir: ${\n", "cannot be read"),
            ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
            ("train: &a {seed: *a}\n", "contains itself"),
        ],
    )
    def test_what_is_not_a_mapping_in_yaml_is_one_clear_problem(self, write, text, words):
        assert words in only_problem(write(text))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"train": {"num_epochs": 1,}}', "line 1"),
            ('{"train": {}, "train": {}}', "duplicate key 'train'"),
            ("[1, 2]", "mapping"),
            ("", "line 1"),
            ("[" * 100_000, "JSON"),
        ],
    )
    def test_what_is_not_an_object_in_json_is_one_clear_problem(self, write, text, words):
        assert words in only_problem(write(text, "spec.json"))

    def test_bytes_that_are_not_text_are_one_clear_problem(self, write):
        assert "cannot be read" in only_problem(write(b"\xff\xfe\x00\x01train"))

    def test_the_source_is_named_in_the_message(self, write):
        path = write("trian: {}\n")
        with pytest.raises(SpecError, match=r"spec\.yaml"):
            load_spec(path)

    def test_merge_keys_and_anchors_of_yaml_work(self, write):
        spec = load_spec(
            write("train: {num_gpus: &n 2}\nevaluate: &e {num_gpus: *n, conf_threshold: 0.1}\ninference: {<<: *e}\n")
        )
        assert spec.inference.num_gpus == 2
        assert spec.inference.conf_threshold == 0.1


class TestOverrides:
    def test_an_override_wins_over_the_file(self, write):
        path = write("train: {num_epochs: 3, seed: 5}\n")
        spec = load_spec(path, ["train.num_epochs=8", "+train.verbose=true", "++model.backbone=resnet_18"])
        assert (spec.train.num_epochs, spec.train.seed) == (8, 5)
        assert spec.train.verbose
        assert spec.model.backbone == "resnet_18"

    def test_without_a_file_the_defaults_are_overridden(self):
        assert load_spec(None, ["train.seed=-1"]).train.seed == -1

    def test_a_tilde_takes_a_value_of_the_file_back_to_its_default(self, write):
        path = write("train: {num_epochs: 3, seed: 5}\n")
        assert load_spec(path, ["~train.seed"]).train.seed == 1234

    def test_lists_and_pairs_need_no_spaces_and_may_have_them(self):
        for text in ("[[320,480],352]", "[[320, 480], 352]"):
            spec = load_spec(None, [f"dataset.augmentation.multi_scales={text}"])
            assert spec.dataset.augmentation.multi_scales == [[320, 480], 352]

    def test_a_section_can_be_given_as_a_mapping(self):
        spec = load_spec(None, ["train.optim={lr: 0.5, lr_steps: [3, 4]}"])
        assert (spec.train.optim.lr, spec.train.optim.lr_steps) == (0.5, [3, 4])

    def test_one_item_of_a_list_can_be_overridden(self, write):
        spec = load_spec(write(SOURCES), ["dataset.train_data_sources.0.image_dir=/other/place"])
        assert spec.dataset.train_data_sources == [{"image_dir": "/other/place", "json_file": "/data/train.json"}]

    @pytest.mark.parametrize(
        "path",
        [
            "results/train/model_epoch_000-EMA.pth",
            "'with a space.pth'",
            '"a,b=c.pth"',
            "/a/$b/%c@d+e.pth",
            "'epoch=3.pth'",
        ],
    )
    def test_paths_keep_their_characters(self, path):
        assert load_spec(None, [f"evaluate.checkpoint={path}"]).evaluate.checkpoint == path.strip("'\"")

    def test_an_unknown_key_is_answered_with_the_nearest(self):
        assert (
            only_problem(None, ["train.num_epoch=3"])
            == "train.num_epoch: no such field; did you mean 'train.num_epochs'?"
        )

    def test_a_field_in_the_wrong_section_is_found(self):
        assert "did you mean 'train.optim.lr'?" in only_problem(None, ["train.lr=3"])

    @pytest.mark.parametrize("override", ["train.num_epochs", "=3", "train..x=3", "train.freeze=[a", "hello world", ""])
    def test_what_is_not_key_value_is_one_clear_problem(self, override):
        assert "command line" in only_problem(None, [override])

    @pytest.mark.parametrize("override", ["train.seed=1,2,3", "train.seed=choice(1,2)", "train.seed=range(1,4)"])
    def test_alternatives_are_refused(self, override):
        assert "alternatives" in only_problem(None, [override])

    @pytest.mark.parametrize("override", ["hydra.run.dir=/tmp", "hydra/launcher=x", "experiment@train=y", "~nothing"])
    def test_hydra_itself_cannot_be_configured(self, override):
        assert "no such field" in only_problem(None, [override])

    def test_deleting_what_the_file_does_not_have_is_said(self):
        assert "train.seed" in only_problem(None, ["~train.seed"])

    def test_a_defaults_list_in_the_file_is_an_unknown_field_not_a_command_to_hydra(self, write):
        path = write("defaults: [other, _self_]\ntrain: {seed: 1}\n")
        assert only_problem(path, ["train.num_epochs=2"]).startswith("defaults: no such field")

    def test_loading_twice_does_not_mix(self, write):
        assert load_spec(write("train: {seed: 7}\n"), ["train.num_epochs=2"]).train.seed == 7
        assert load_spec(None, ["train.num_epochs=3"]).train.seed == 1234


class TestInterpolation:
    def test_references_see_values_of_the_file_the_command_line_and_the_defaults(self, write):
        path = write(
            "results_dir: /r\n"
            "evaluate:\n  checkpoint: ${results_dir}/train/x.pth\n  batch_size: ${dataset.batch_size}\n"
        )
        spec = load_spec(path, ["results_dir=/other"])
        assert spec.evaluate.checkpoint == "/other/train/x.pth"
        assert spec.evaluate.batch_size == 4

    def test_relative_references_work(self, write):
        spec = load_spec(write("train:\n  checkpoint_interval: 2\n  validation_interval: ${.checkpoint_interval}\n"))
        assert spec.train.validation_interval == 2

    def test_the_environment_is_readable(self, write, monkeypatch):
        monkeypatch.setenv("SPEC_TEST_DIR", "/somewhere")
        assert load_spec(write("results_dir: ${oc.env:SPEC_TEST_DIR}/x\n")).results_dir == "/somewhere/x"

    @pytest.mark.parametrize(
        "text", ["${nowhere.at.all}", "${oc.env:SPEC_TEST_UNSET_DIR}", "${eval:1+1}", "${evaluate.checkpoint}"]
    )
    def test_a_reference_that_leads_nowhere_is_one_clear_problem(self, write, text):
        problem = only_problem(write(f"train:\n  pretrained_model_path: '{text}'\n"))
        assert problem.startswith("train.pretrained_model_path: ")
        assert "cannot be resolved" in problem

    def test_references_in_a_circle_are_a_problem_not_a_crash(self, write):
        problems = problems_of(write("results_dir: ${encryption_key}\nencryption_key: ${results_dir}\n"))
        assert any("cannot be resolved" in problem for problem in problems)

    def test_there_is_no_eval_resolver(self, write, tmp_path):
        marker = tmp_path / "ran"
        problems_of(write(f'results_dir: \'${{eval:open("{marker}","w")}}\'\n'))
        assert not marker.exists()

    def test_a_reference_in_a_spec_with_a_wrong_section_does_not_crash(self, write):
        assert problems_of(write("train: 5\nresults_dir: ${model.backbone}\n"))


class TestAllProblemsAtOnce:
    def test_every_problem_is_reported_with_key_value_and_what_is_allowed(self, write):
        path = write(
            """
train: {num_epoch: 3, precision: fp64, num_gpus: 0}
model: {backbone: resnet50, return_interm_indices: [0, 1], hidden_dim: 100, feat_channels: [100, 100, 100]}
dataset: {batch_size: many, augmentation: {distortion_prob: 1.5}}
trian: {}
"""
        )
        text = "\n".join(problems_of(path, ["evaluate.conf_threshold=2"], "train"))
        for words in (
            "train.num_epoch: no such field; did you mean 'train.num_epochs'?",
            "train.precision: 'fp64' is invalid; expected one of bf16, fp32, fp16",
            "train.num_gpus: 0 is invalid; expected an integer of at least 1",
            "model.backbone: 'resnet50' is invalid",
            "(did you mean 'resnet_50'?)",
            "model.return_interm_indices: [0, 1] has 2 items; expected as many as model.num_feature_levels, which is 3",
            "model.nheads: 8 is invalid",
            "dataset.batch_size: 'many' is invalid; expected an integer of at least 1",
            "dataset.augmentation.distortion_prob: 1.5 is invalid; expected a number from 0 to 1",
            "trian: no such field; did you mean 'train'?",
            "evaluate.conf_threshold: 2 is invalid",
            "dataset.train_data_sources or dataset.dataset_dir: required by `train`, but not set",
            "dataset.val_data_sources or dataset.dataset_dir: required by `train`, but not set",
        ):
            assert words in text
        assert len(text.splitlines()) == 12

    def test_a_wrong_field_is_reported_once_not_again_in_checks_that_build_on_it(self, write):
        path = write("model: {num_feature_levels: nine, return_interm_indices: [2, 3]}\n")
        assert only_problem(path).startswith("model.num_feature_levels: 'nine'")
        assert only_problem(write("dataset: 5\n"), command="train").startswith("dataset: 5")

    def test_a_field_given_under_two_spellings_is_a_problem(self, write):
        path = write("evaluate: {nput_width: 320, input_width: 320, input_height: 320}\n")
        assert "set twice" in only_problem(path)

    def test_an_override_of_the_field_wins_over_its_other_spelling_in_the_file(self, write):
        path = write("evaluate: {nput_width: 320, input_height: 320}\n")
        assert load_spec(path).evaluate.input_width == 320
        assert load_spec(path, ["evaluate.input_width=640"]).evaluate.input_width == 640
        assert load_spec(path, ["evaluate.nput_width=640"]).evaluate.input_width == 640


class TestNeeds:
    @pytest.mark.parametrize(
        ("command", "needed"),
        [
            ("train", {f"dataset.{split}_data_sources or dataset.dataset_dir" for split in ("train", "val")}),
            (
                "evaluate",
                {"evaluate.checkpoint or evaluate.trt_engine", "dataset.test_data_sources or dataset.dataset_dir"},
            ),
            ("inference", {"inference.checkpoint or inference.trt_engine", "dataset.infer_data_sources"}),
            ("export", {"export.checkpoint", "export.onnx_file"}),
            ("gen_trt_engine", {"gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"}),
            ("quantize", {"quantize.model_path"}),
            (
                "validate_data",
                {
                    "dataset.train_data_sources or dataset.val_data_sources or dataset.test_data_sources or "
                    "dataset.dataset_dir"
                },
            ),
            (
                "distill",
                {
                    "dataset.train_data_sources or dataset.dataset_dir",
                    "dataset.val_data_sources or dataset.dataset_dir",
                    "distill.pretrained_teacher_model_path",
                },
            ),
        ],
    )
    def test_a_command_asks_for_its_own_missing_values_and_no_others(self, command, needed):
        assert {problem.split(":")[0] for problem in problems_of(None, command=command)} == needed

    def test_without_a_command_nothing_is_missing(self):
        assert load_spec(None) == ExperimentSpec()

    def test_question_marks_and_null_are_missing_values(self, write):
        for value in (MISSING, "null", "''"):
            path = write(f"evaluate:\n  checkpoint: {value}\n" + SOURCES)
            assert any("evaluate.checkpoint" in problem for problem in problems_of(path, command="evaluate"))
            assert load_spec(path, command="train").evaluate.checkpoint in (MISSING, "")

    def test_an_engine_stands_for_a_checkpoint(self, write):
        text = "evaluate: {checkpoint: null, trt_engine: /x.engine}\n"
        text += "dataset: {test_data_sources: {image_dir: a, json_file: b}}\n"
        assert load_spec(write(text), command="evaluate").evaluate.trt_engine == "/x.engine"

    def test_a_binding_without_its_ends_is_a_problem_for_distill(self, write):
        path = write(SOURCES + "distill: {pretrained_teacher_model_path: t.pth, bindings: [{criterion: L2}]}\n")
        assert problems_of(path, command="distill") == [
            "distill.bindings[0].teacher_module_name: required, but not set",
            "distill.bindings[0].student_module_name: required, but not set",
        ]

    def test_half_a_data_source_is_a_problem(self, write):
        path = write(SOURCES + "  test_data_sources: {image_dir: /data/test}\n")
        assert only_problem(path, command="train") == "dataset.test_data_sources.json_file: required, but not set"

    @pytest.mark.parametrize("shares", ["[1]", "[1, 2, 3]"])
    def test_shares_of_sources_are_one_per_source(self, shares):
        source = "{image_dir: a, json_file: b}"
        sources = [f"dataset.train_data_sources=[{source}, {source}]", f"dataset.train_source_shares={shares}"]
        count = len(shares.split(","))
        assert only_problem(None, sources) == (
            f"dataset.train_source_shares: expected 2 items, one per item of train_data_sources, but got {count}"
        )

    def test_a_misspelt_key_of_a_data_source_is_a_problem(self, write):
        path = write("dataset: {val_data_sources: {image_dir: a, json_files: b, json_file: c}}\n")
        assert "dataset.val_data_sources.json_files: no such field" in only_problem(path)


class TestResultsDir:
    def test_it_is_the_root_joined_with_the_command(self, write):
        assert load_spec(write(SOURCES), ["results_dir=/r"], "train").train.results_dir == "/r/train"

    def test_the_folder_of_the_command_is_used_as_it_is(self, write):
        spec = load_spec(write(SOURCES), ["results_dir=/r", "train.results_dir=/mine"], "train")
        assert spec.train.results_dir == "/mine"
        assert spec.evaluate.results_dir is None

    def test_without_any_it_is_a_problem_reported_with_the_others(self):
        problems = problems_of(None, ["results_dir=null", "train.seed=x"], "train")
        assert any(problem.startswith("results_dir or train.results_dir") for problem in problems)
        assert any(problem.startswith("train.seed") for problem in problems)


class TestDevices:
    def test_a_count_alone_means_the_first_devices(self):
        assert load_spec(None, ["train.num_gpus=4"]).train.gpu_ids == [0, 1, 2, 3]

    def test_ids_alone_say_how_many(self):
        assert load_spec(None, ["evaluate.gpu_ids=[2,5]"]).evaluate.num_gpus == 2

    def test_both_must_agree(self):
        problem = only_problem(None, ["train.gpu_ids=[2,5]", "train.num_gpus=3"])
        assert problem == "train.gpu_ids: [2, 5] has 2 items; expected as many as train.num_gpus, which is 3"


class TestTypes:
    def test_an_integer_is_fine_for_a_number_and_a_whole_number_for_an_integer(self, write):
        spec = load_spec(write("train: {clip_grad_norm: 1, num_epochs: 2.0, seed: '7'}\n"))
        assert (spec.train.clip_grad_norm, type(spec.train.clip_grad_norm)) == (1.0, float)
        assert (spec.train.num_epochs, type(spec.train.num_epochs)) == (2, int)
        assert spec.train.seed == 7

    def test_large_integers_keep_every_digit(self, write):
        assert load_spec(write("train: {seed: 9007199254740993}\n")).train.seed == 9007199254740993

    @pytest.mark.parametrize("value", ["2.5", "true", "[1]", "{a: 1}", "null", ".inf", ".nan", "1e400", "'three'"])
    def test_what_is_no_integer_is_refused(self, write, value):
        assert "train.num_epochs" in only_problem(write(f"train: {{num_epochs: {value}}}\n"))

    @pytest.mark.parametrize("value", ["true", ".inf", "-.inf", ".nan", "fast", "[0.1]", "1e999"])
    def test_what_is_no_finite_number_is_refused(self, write, value):
        assert "train.optim.lr" in only_problem(write(f"train: {{optim: {{lr: {value}}}}}\n"))

    @pytest.mark.parametrize("value", ["1", "0", "maybe", "[true]", "null"])
    def test_what_is_not_true_or_false_is_refused(self, write, value):
        assert only_problem(write(f"train: {{enable_ema: {value}}}\n")).endswith("expected true or false")

    def test_options_may_be_written_in_another_case(self):
        spec = load_spec(None, ["train.optim.optimizer=adamw", "gen_trt_engine.tensorrt.data_type=fp16"])
        assert (spec.train.optim.optimizer, spec.gen_trt_engine.tensorrt.data_type) == ("AdamW", "FP16")

    def test_items_of_lists_are_checked_and_named(self):
        assert "model.loss_types[1]" in only_problem(None, ["model.loss_types=[vfl,focal]"])
        assert "train.gpu_ids[0]" in problems_of(None, ["train.gpu_ids=[-1]"])[0]

    def test_items_of_bindings_are_checked_and_named(self, write):
        path = write("distill: {bindings: [{teacher_module_name: a, student_module_name: b, criterio: L3}]}\n")
        assert only_problem(path) == (
            "distill.bindings[0].criterio: no such field; did you mean 'distill.bindings[].criterion'?"
        )

    def test_a_single_train_source_stands_for_a_list_of_one(self, write):
        spec = load_spec(write("dataset: {train_data_sources: {image_dir: a, json_file: b}}\n"))
        assert spec.dataset.train_data_sources == [{"image_dir": "a", "json_file": "b"}]

    @pytest.mark.parametrize("folders", ["/a", "[/a, /b]"])
    def test_inference_takes_one_folder_or_several(self, write, folders):
        spec = load_spec(write(f"dataset: {{infer_data_sources: {{image_dir: {folders}, classmap: c.txt}}}}\n"))
        assert spec.dataset.infer_data_sources["image_dir"] in ("/a", ["/a", "/b"])

    def test_any_network_of_timm_can_be_named(self):
        name = "timm/regnety_004.tv2_in1k"
        assert load_spec(None, [f"model.backbone={name}"]).model.backbone == name

    @pytest.mark.parametrize("name", ["timm/", "timm", "convnext_tinny"])
    def test_other_names_are_answered_with_the_backbones_there_are(self, name):
        problem = only_problem(None, [f"model.backbone={name}"])
        assert problem.startswith(f"model.backbone: '{name}' is invalid; expected one of resnet_18, ")
        assert "edgenext_small_bn_hs, " in problem and ", timm/NAME" in problem
        assert ("did you mean 'convnext_tiny'?" in problem) == (name == "convnext_tinny")

    @pytest.mark.parametrize("name", ["fan_small", "fan_small_12_p4_hybrid"])
    def test_both_names_of_a_fan_backbone_are_known(self, name):
        assert load_spec(None, [f"model.backbone={name}"]).model.backbone == "fan_small"

    def test_the_short_name_of_the_quantization_backend_is_known(self):
        assert load_spec(None, ["quantize.backend=modelopt"]).quantize.backend == "modelopt.pytorch"

    def test_fields_of_the_documentation_and_of_old_specs_are_accepted(self):
        spec = load_spec(
            None,
            [
                "train.verbose=true",
                "train.optim.lr_linear_proj_mult=0.1",
                "gen_trt_engine.input_channel=3",
                "gen_trt_engine.input_width=960",
                "gen_trt_engine.input_height=544",
                "distill.teacher.clip_max_norm=0.2",
                "distill.pretrained_teacher_model_path=t.pth",
            ],
        )
        assert spec.train.optim.lr_linear_proj_mult == 0.1
        assert spec.distill.teacher.clip_max_norm == 0.2


class TestWithoutEffect:
    def test_setting_such_a_field_leaves_a_note_with_the_reason(self, write):
        loaded = read_spec(write("model: {backbone_names: [a]}\ntrain: {optim: {monitor_name: train_loss}}\n"))
        assert loaded.notes == [
            "model.backbone_names has no effect: the backbone's parameters are known without a name pattern",
            "train.optim.monitor_name has no effect: MultiStep and StepLR follow no metric, "
            "and ReduceLROnPlateau follows lr_scheduler_monitor",
        ]

    def test_the_default_value_leaves_none(self, write):
        assert read_spec(write("model: {backbone_names: [backbone.0], clip_max_norm: 0.1}\n")).notes == []

    def test_an_unsupported_value_is_an_error_for_commands_that_would_use_it(self, write):
        path = write("export: {is_quantized: true, checkpoint: a.pth, onnx_file: a.onnx}\n" + SOURCES)
        problems = problems_of(path, [], "export")
        assert any("export.is_quantized: quantize writes an ONNX file itself" in problem for problem in problems)

    def test_training_with_a_foundation_model_needs_the_file_of_its_weights(self, write):
        path = write("model: {frozen_fm: {enabled: true}}\n" + SOURCES)
        assert only_problem(path, command="train") == (
            "model.frozen_fm.checkpoint: required, but not set; radio_v2-l requires a file with its weights"
        )


class TestPython:
    def test_specs_are_built_in_python_with_defaults(self):
        spec = ExperimentSpec(model=ModelSpec(backbone="resnet_18"), train=TrainSpec(num_epochs=3))
        assert spec.model.num_queries == 300
        assert dataclasses.replace(spec.train, seed=1).num_epochs == 3

    def test_specs_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            ExperimentSpec().train.num_epochs = 3

    def test_lists_of_two_specs_are_not_shared(self):
        first, second = DatasetSpec(), DatasetSpec()
        first.augmentation.multi_scales.append(32)
        assert 32 not in second.augmentation.multi_scales

    def test_a_spec_survives_the_way_through_plain_data(self, write):
        spec = load_spec(
            write(SOURCES), ["results_dir=/r", "model.backbone=resnet_18d", "distill.bindings=[]"], "train"
        )
        assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))), "train") == spec

    def test_what_the_user_gave_is_kept_apart(self, write):
        assert read_spec(write("train: {seed: 3}\n"), ["train.num_gpus=2"]).explicit == {
            "train": {"seed": 3, "num_gpus": 2}
        }


def test_a_value_of_a_command_counts_as_given_by_the_user():
    loaded = read_spec(None, ["dataset.batch_size=2"])
    changed = loaded.with_value("dataset.augmentation.eval_spatial_size", [64, 96])
    assert changed.spec.dataset.augmentation.eval_spatial_size == [64, 96]
    assert changed.explicit == {"dataset": {"batch_size": 2, "augmentation": {"eval_spatial_size": [64, 96]}}}
    assert loaded.explicit == {"dataset": {"batch_size": 2}}
    with pytest.raises(SpecError, match="multiple of 32"):
        loaded.with_value("dataset.augmentation.eval_spatial_size", [65, 96])


@pytest.mark.parametrize("path", ["/données/ü", "/数据/a b", "/data/a#1&b!", "C:/Ünï", "~/x;y<z>^"])
def test_a_path_that_is_not_ascii_needs_no_quotes(path):
    assert load_spec(None, [f"results_dir={path}"]).results_dir == path


@pytest.mark.parametrize("text", ["results_dir=[é,b]", "results_dir=é'x", "results_dir={é:1}"])
def test_quotes_are_not_guessed_where_the_value_has_a_structure(text):
    with pytest.raises(SpecError, match="results_dir"):
        load_spec(None, [text])
