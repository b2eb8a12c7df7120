"""`train.supernet`: every step trains a sub-detector that only seed and step decide, with shared weights."""

from __future__ import annotations

import collections
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rtdetr_tool.cli import main
from rtdetr_tool.spec import ModelSpec, spec_to_dict
from rtdetr_tool.spec.sub_detectors import sub_detectors
from rtdetr_tool.spec.supernet import SupernetSpec
from rtdetr_tool.training.fit import fit
from rtdetr_tool.training.module import DetectorModule
from rtdetr_tool.training.supernet import Supernet

CHOICES = SupernetSpec(enabled=True, resolution=[96], decoder_layers=[1], num_queries=[4])
DFINE = {"variant": "n", "dn_number": 4, "dec_layers": 2}
RFDETR = {
    "hidden_dim": 32, "sa_nheads": 2, "ca_nheads": 4, "dim_feedforward": 16, "num_queries": 6, "group_detr": 2,
    "resolution": 64,
}  # fmt: skip


def numbers_of(module) -> dict[str, int]:
    """What the detector of a module runs as."""
    decoder = module.detector.decoder
    return {"decoder_layers": decoder.decoder.count, "num_queries": decoder.num_queries}


@pytest.fixture
def watched(monkeypatch):
    """(step, size of the images, layers, queries) of each training step; validations have step None."""
    seen = []
    original = DetectorModule.prepare_images

    def prepare(self, batch, multi_scale):
        images = original(self, batch, multi_scale)
        seen.append((self.global_step if multi_scale else None, images.shape[-1], *numbers_of(self).values()))
        return images

    monkeypatch.setattr(DetectorModule, "prepare_images", prepare)
    return seen


def test_the_draw_depends_on_seed_and_step_only_and_covers_all_combinations(make_spec):
    spec = make_spec(train__supernet=CHOICES)
    supernet = Supernet(spec)
    drawn = [supernet.draw(7, step) for step in range(400)]
    assert drawn == [Supernet(spec).draw(7, step) for step in range(400)]
    assert drawn != [supernet.draw(8, step) for step in range(400)]
    counts = collections.Counter((sub.size, *sub.numbers.values()) for sub in drawn)
    assert set(counts) == {((side, side), n, q) for side in (64, 96) for n in (1, 2) for q in (4, 10)}
    assert min(counts.values()) > 25  # 50 are expected of each


def test_each_step_trains_its_sub_detector_and_validations_the_whole_model(make_spec, watched):
    spec = make_spec(train__supernet=CHOICES, train__num_epochs=3)
    fit(spec)
    supernet = Supernet(spec)
    for step, side, *numbers in watched:
        if step is None:
            assert (side, *numbers) == (64, 2, 10)
        else:
            sub = supernet.draw(spec.train.seed, step)
            assert ((side, side), numbers) == (sub.size, list(sub.numbers.values()))
    assert [step for step, *_ in watched if step is not None] == list(range(6))
    assert len({tuple(row[1:]) for row in watched}) > 2


def test_accumulated_batches_of_a_step_train_the_same_sub_detector(make_spec, watched):
    fit(make_spec(train__supernet=CHOICES, train__grad_accum_steps=2, dataset__batch_size=2, train__num_epochs=3))
    by_step = collections.defaultdict(set)
    for step, *rest in watched:
        if step is not None:
            by_step[step].add(tuple(rest))
    assert len(by_step) == 6 and all(len(kinds) == 1 for kinds in by_step.values())


def test_a_resumed_run_ends_with_the_same_weights(make_spec, tmp_path):
    def weights(folder, epochs):
        spec = make_spec(
            train__supernet=CHOICES, train__num_epochs=epochs, train__results_dir=str(tmp_path / folder),
            train__optim__lr=1e-3,
        )  # fmt: skip
        path = fit(spec).latest_path
        return torch.load(path, weights_only=False)["state_dict"]

    whole = weights("whole", 3)
    weights("parts", 1)
    resumed = weights("parts", 3)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_run_that_resumes_with_other_choices_says_so(make_spec, caplog):
    fit(make_spec(train__supernet=CHOICES))
    for choices, warned in ((CHOICES, False), (replace(CHOICES, num_queries=[5]), True), (SupernetSpec(), True)):
        caplog.clear()
        fit(make_spec(train__supernet=choices, train__num_epochs=2))
        assert ("other values of train.supernet" in caplog.text) is warned
        next((Path(make_spec().train.results_dir)).glob("model_epoch_001.pth")).unlink()


def test_every_parameter_has_a_gradient_as_ddp_requires(make_spec):
    from rtdetr_tool.training.datamodule import DetectionDataModule

    spec = make_spec(train__supernet=CHOICES)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    module = DetectorModule(spec, datamodule.class_map)
    module.supernet.choices = [sub for sub in sub_detectors(spec) if sub.numbers["decoder_layers"] == 1]
    module.compute_losses(next(iter(datamodule.loader("train"))))["loss"].backward()
    trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None] == []
    assert numbers_of(module)["decoder_layers"] == 1
    assert not trained["model.model.decoder.decoder.layers.1.linear1.weight"].grad.any()
    assert trained["model.model.decoder.decoder.layers.0.linear1.weight"].grad.any()


@pytest.mark.parametrize(
    ("model", "choices"),
    [
        ({}, {"resolution": [96], "decoder_layers": [1], "num_queries": [4]}),
        ({"arch": "dfine", "dfine": DFINE}, {"resolution": [96], "decoder_layers": [1], "num_queries": [50]}),
        (
            {"arch": "rfdetr", "rfdetr": RFDETR},
            {"resolution": [96], "decoder_layers": [1], "num_queries": [4], "num_windows": [1], "patch_size": [8]},
        ),
    ],
    ids=["rtdetr", "dfine", "rfdetr"],
)
def test_the_train_command_trains_each_family(model, choices, make_spec, tmp_path):
    data = spec_to_dict(make_spec(train__num_epochs=1, train__report=False))
    arch = model.get("arch", "rtdetr")
    data["model"] = {**model, "num_select": 10} if model else data["model"]
    data["dataset"]["augmentation"] = {"train_spatial_size": [64, 64], "eval_spatial_size": [64, 64]}
    data["dataset"]["num_classes"] = None
    data["train"]["supernet"] = {"enabled": True, **choices}
    (tmp_path / "spec.json").write_text(json.dumps(data))
    assert main(["train", "-e", str(tmp_path / "spec.json")]) == 0
    saved = torch.load(next((tmp_path / "train").glob("model_epoch_000.pth")), weights_only=False)["rtdetr_tool"]
    assert saved["spec"]["train"]["supernet"] == {**vars(SupernetSpec()), "enabled": True, **choices}
    assert saved["spec"]["model"]["arch"] == arch and saved["spec"]["dataset"]["augmentation"]["multi_scales"] == []
    log = (tmp_path / "train" / "log.txt").read_text()
    expected = len(sub_detectors(replace(make_spec(), model=model_spec(model, make_spec), train=supernet_of(choices))))
    assert f"one of {expected} sub-detectors" in log


def model_spec(model, make_spec):
    from rtdetr_tool.spec.convert import from_plain

    return from_plain(ModelSpec, model, []) if model else make_spec().model


def supernet_of(choices):
    from rtdetr_tool.spec.train import TrainSpec

    return TrainSpec(supernet=SupernetSpec(enabled=True, **choices))


def rank_of_two(rank: int, store: str, spec, class_map, batches) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    from rtdetr_tool.training.trainer import choose_strategy

    torch.manual_seed(0)
    module = DetectorModule(spec, class_map)
    options = dict(choose_strategy("ddp", True, "cpu", static=False)._ddp_kwargs)
    module.forward = module.compute_losses  # DDP calls it
    parallel = torch.nn.parallel.DistributedDataParallel(module, **options)
    drawn = []
    for step in range(4):
        type(module).global_step = property(lambda self, step=step: step)
        parallel(batches[(2 * step + rank) % len(batches)])["loss"].backward()
        drawn.append((numbers_of(module), len(module.detector.skipped())))
        module.zero_grad()
    both = [None, None]
    torch.distributed.all_gather_object(both, drawn)
    assert both[0] == both[1] and len({str(row) for row in drawn}) > 1, both
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_same_sub_detector_in_each_step(make_spec, tmp_path):
    from rtdetr_tool.training.datamodule import DetectionDataModule

    spec = make_spec(train__supernet=CHOICES, dataset__batch_size=2)
    datamodule = DetectionDataModule(spec)
    datamodule.setup("fit")
    arguments = (str(tmp_path / "store"), spec, datamodule.class_map, list(datamodule.loader("train")))
    torch.multiprocessing.spawn(rank_of_two, args=arguments, nprocs=2)
