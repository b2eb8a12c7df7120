"""`train.supernet`: combinations that the model can run, default image sizes, and one message for each mistake."""

from __future__ import annotations

import re

import pytest

from rtdetr_tool.errors import SpecError
from rtdetr_tool.spec import load_spec, read_spec
from rtdetr_tool.spec.sub_detectors import sub_detectors, sub_spec_values, training_sizes

SOURCE = "{image_dir: a, json_file: b}"
BASE = [f"dataset.train_data_sources=[{SOURCE}]", f"dataset.val_data_sources={SOURCE}", "train.supernet.enabled=true"]
RFDETR, DFINE = "model.arch=rfdetr", "model.arch=dfine"


def load(*overrides, command="train"):
    return load_spec(None, [*BASE, *overrides], command)


def test_the_whole_model_is_always_the_first_combination():
    spec = load("train.supernet.decoder_layers=[2,6]", "train.supernet.resolution=[320,[480,960]]")
    subs = sub_detectors(spec)
    assert [sub.values for sub in subs] == [
        {"resolution": size, "decoder_layers": layers} for size in (640, 320, [480, 960]) for layers in (6, 2)
    ]
    assert subs[0].differing == {} and subs[1].differing == {"decoder_layers": 2}
    values = sub_spec_values(subs[-1], spec.model)
    assert values["model.eval_idx"] == 1 and values["dataset.augmentation.eval_spatial_size"] == [480, 960]
    assert training_sizes(spec) == [(640, 640)] * 2 + [(320, 320)] * 2 + [(480, 960)] * 2


def test_layers_count_up_to_the_one_that_predicts():
    spec = load("model.eval_idx=3", "train.supernet.decoder_layers=[1]")
    assert [sub.values["decoder_layers"] for sub in sub_detectors(spec)] == [4, 1]
    with pytest.raises(SpecError, match=r"decoder_layers: 5 is invalid; expected at most 4"):
        load("model.eval_idx=3", "train.supernet.decoder_layers=[5]")


def test_combinations_whose_size_is_not_a_multiple_are_skipped():
    spec = load(
        RFDETR, "train.supernet.resolution=[480]", "train.supernet.patch_size=[20]", "train.supernet.num_windows=[4]"
    )
    combinations = {tuple(sub.values.values()) for sub in sub_detectors(spec)}
    expected = {
        (side, windows, patch) for side in (384, 480) for windows in (2, 4) for patch in (16, 20)
        if side % (windows * patch) == 0
    }  # fmt: skip
    assert combinations == expected and len(expected) == 5
    spec = load(RFDETR, "train.supernet.patch_size=[12]")
    values = sub_spec_values(sub_detectors(spec)[1], spec.model)
    assert values["model.rfdetr.patch_size"] == 12 and values["model.rfdetr.positional_encoding_size"] == 24


@pytest.mark.parametrize("arch", ["rtdetr", "rfdetr", "dfine"])
def test_multi_scale_training_is_off_unless_it_is_set(arch):
    augmentation = load(f"model.arch={arch}", "train.supernet.resolution=[480]").dataset.augmentation
    assert augmentation.multi_scales == []
    if arch == "rfdetr":  # images are loaded at the largest size of a step
        assert (augmentation.train_spatial_size, augmentation.eval_spatial_size) == ([480, 480], [384, 384])
    without = load(f"model.arch={arch}", "train.supernet.enabled=false").dataset.augmentation
    assert len(without.multi_scales) > 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"train.supernet: expected values of at least one of train.supernet.resolution, train"),
        (
            ["train.supernet.resolution=[320]", "dataset.augmentation.multi_scales=[320,352]"],
            r"train.supernet.enabled and dataset.augmentation.multi_scales \(2 sizes\) cannot both be set.*list the "
            r"sizes in train.supernet.resolution",
        ),
        (["train.supernet.resolution=[400]"], r"resolution: 400 is invalid; expected a multiple of 32, nearest: 384"),
        (["train.supernet.resolution=[a]"], r"resolution\[0\]: 'a' is invalid; expected a side or \[height, width\]"),
        (["train.supernet.resolution=[[32]]"], r"resolution\[0\]: \[32\] is invalid"),
        (["train.supernet.resolution=[320,320]"], r"resolution: \[320, 320\] is invalid; expected different values"),
        (
            ["train.supernet.resolution=[[320,640]]", "dataset.augmentation.preserve_aspect_ratio=true"],
            r"resolution\[0\]: \[320, 640\] is invalid; expected a side, because",
        ),
        (["train.supernet.decoder_layers=[7]"], r"decoder_layers: 7 is invalid; expected at most 6"),
        (["train.supernet.num_queries=[301]"], r"num_queries: 301 is invalid; expected at most 300"),
        (["train.supernet.num_queries=[0]"], r"num_queries\[0\]: 0 is invalid; expected an integer of at least 1"),
        (["train.supernet.patch_size=[16]"], r"patch_size is not supported with RT-DETR: its backbone has fixed"),
        ([DFINE, "train.supernet.num_windows=[1]"], r"num_windows is not supported with D-FINE: its backbone"),
        (
            [DFINE, "model.dfine.layer_scale=2", "train.supernet.decoder_layers=[1]"],
            r"decoder_layers is not supported with D-FINE: with model.dfine.layer_scale",
        ),
        ([RFDETR, "train.supernet.patch_size=[13]"], r"patch_size: 13 is invalid .*384 x 384 is not a multiple of 26"),
        (
            [RFDETR, "train.supernet.patch_size=[12]", "train.compile=true"],
            r"num_windows and patch_size are not supported with train.compile=true; set it to false",
        ),
        (
            ["train.supernet.decoder_layers=[1]", "train.distributed_strategy=fsdp"],
            r"train.supernet.enabled is not supported with train.distributed_strategy=fsdp; use ddp",
        ),
        (["train.supernet.decoder_layers=[1]", "dataset.batch_size=0"], r"dataset.batch_size: auto is not supported"),
        (["train.supernet.layers=[1]", "train.supernet.num_queries=[5]"], r"supernet.layers: no such field; did you"),
        (
            [f"train.supernet.num_queries=[{','.join(map(str, range(1, 150)))}]",
             f"train.supernet.resolution=[{','.join(str(32 * n) for n in range(1, 80))}]"],
            r"train.supernet: 12000 combinations are too many; expected at most 10000",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(overrides, message):
    with pytest.raises(SpecError) as error:
        load(*overrides)
    assert re.search(message, str(error.value)) and len(error.value.problems) == 1


def test_distillation_refuses_it():
    with pytest.raises(SpecError, match=r"train.supernet.enabled is not supported with distill"):
        load("train.supernet.decoder_layers=[1]", "distill.pretrained_teacher_model_path=a.pth", command="distill")


def test_choices_without_the_switch_have_no_effect():
    notes = read_spec(None, ["train.supernet.decoder_layers=[1]"]).notes
    assert "train.supernet.decoder_layers has no effect: train.supernet.enabled is false" in notes
