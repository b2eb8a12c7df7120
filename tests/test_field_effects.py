"""Every field of the spec has an observable effect, or is in a table with the reason why not.

Each row changes one field and observes the part of the program that uses it. An error counts as an effect (a wrong
length, a missing file). `test_every_field_is_accounted_for` fails for a field that no row, no table and
no later command covers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import logging.handlers
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rtdetr_tool.errors import RtdetrError, UserError
from rtdetr_tool.spec import spec_from_dict
from rtdetr_tool.spec.queries import reasons
from rtdetr_tool.spec.schema import section_type, walk_fields
from tests.keypoint_field_effects import POSING, keypoint_losses, keypoint_metrics, keypoint_scores, sides

SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """A spec as plain data, with six generated images of two categories."""
    root = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(1, 7):
        pixels = rng.integers(0, 255, (48, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": 48})
        for category in (1, 2):
            box = [5 * category, 6, 20, 16]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": box, "area": 320}
            )
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    labels = root / "labels.json"
    labels.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (root / "classes.txt").write_text("cat\ndog\n")
    source = {"image_dir": str(root), "json_file": str(labels)}
    channels = [16, 16, 16]
    return {
        "results_dir": str(root / "results"),
        "wandb": {"enable": False},
        "model": {
            "backbone": "resnet_18",
            "hidden_dim": 16,
            "nheads": 2,
            "feat_channels": channels,
            "dim_feedforward": 16,
            "num_queries": 12,
            "num_select": 10,
            "dec_layers": 2,
            "dn_number": 6,
        },
        "dataset": {
            "train_data_sources": [source],
            "val_data_sources": source,
            "test_data_sources": source,
            "infer_data_sources": {"image_dir": str(root), "classmap": str(root / "classes.txt")},
            "num_classes": 3,
            "batch_size": 2,
            "workers": 0,
            "class_ids": "raw",
            "augmentation": {
                "multi_scales": [],
                "train_spatial_size": [SIDE, SIDE],
                "eval_spatial_size": [SIDE, SIDE],
                "distortion_prob": 0.0,
                "iou_crop_prob": 0.0,
            },
        },
        "train": {"num_epochs": 2, "accelerator": "cpu", "activation_checkpoint": False},
    }


def changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted names changed (`train__optim__lr=1`)."""
    data = json.loads(json.dumps(data))
    for name, value in changes.items():
        *path, leaf = name.split("__")
        place = data
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return data


def build(data: dict[str, Any], command: str = "train", **changes: Any):
    return spec_from_dict(changed(data, changes), command)


# Observations. Each takes a spec and returns a comparable value.


def detector_of(spec):
    from rtdetr_tool.models.build import build_detector

    torch.manual_seed(0)
    detector = build_detector(spec.model, spec.dataset.num_classes)
    with torch.no_grad():  # class heads are equal and box heads zero at the start: make every layer differ
        for parameter in detector.decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return detector


def parts(spec):
    return {name: tuple(tensor.shape) for name, tensor in detector_of(spec).state_dict().items()}


def images():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def targets():
    from rtdetr_tool.ops.structures import Target

    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.3, 0.2]])
    return [Target(boxes, torch.tensor([1, 2]), number, (SIDE, SIDE), (SIDE, SIDE)) for number in (1, 2)]


def output(spec):
    return detector_of(spec).eval()(images()).logits.tolist()


def wide_output(spec):
    image = torch.rand(1, 3, SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(1))
    return detector_of(spec).eval()(image).logits.tolist()


def denoised(spec):
    detector = detector_of(spec).train()
    torch.manual_seed(5)
    return detector(images(), targets()).denoising.logits.tolist()


def training_output(spec):
    detector = detector_of(spec).train()
    torch.manual_seed(5)
    return detector(images(), targets()).logits.tolist()


def skipping(spec):
    """Drop rates of blocks in training."""
    return [module.drop_prob for module in detector_of(spec).modules() if hasattr(module, "drop_prob")]


def detections(spec):
    from rtdetr_tool.ops.postprocess import postprocess

    return len(postprocess(detector_of(spec).eval()(images()), targets(), spec.model.num_select)[0])


def losses(spec):
    from rtdetr_tool.losses.build import build_criterion

    detector = detector_of(spec).train()
    torch.manual_seed(5)
    values = build_criterion(spec.model)(detector(images(), targets()), targets())
    return {name: value.item() for name, value in values.items()}


def matching(spec):
    from rtdetr_tool.losses.build import build_criterion
    from rtdetr_tool.losses.matcher import PaddedTargets

    logits, boxes = torch.zeros(1, 2, 4, 3), torch.full((1, 2, 4, 4), 0.3)
    return build_criterion(spec.model).matcher.cost(logits, boxes, PaddedTargets.of(targets())).tolist()


def trainable(spec):
    from rtdetr_tool.training.module import DetectorModule

    module = DetectorModule(spec, classes(spec))
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def class_weights(spec):
    from rtdetr_tool.training.module import DetectorModule

    weights = DetectorModule(spec, classes(spec)).criterion.class_weights
    return None if weights is None else weights.tolist()


def classes(spec):
    from rtdetr_tool.data.build import build_train_dataset

    return build_train_dataset(spec.dataset).class_map


def class_list(spec):
    return classes(spec).to_list()


def sub_detectors_of(spec):
    """The draws of a module's first steps."""
    from rtdetr_tool.training.module import DetectorModule

    module = DetectorModule(spec, classes(spec))
    return module.supernet and [module.supernet.draw(0, step).values for step in range(64)]


def default_scales(spec):
    return spec.model.family.default_sizes(spec.model.rfdetr)["multi_scales"]


def cached_bytes(spec):
    from rtdetr_tool.data.build import build_train_dataset

    dataset = build_train_dataset(spec.dataset)
    for index in range(len(dataset)):
        dataset.sample(index)
    return None if dataset.cache is None else int(dataset.cache._used)


def epoch_images(spec):
    """Images per epoch of the dataset, whose only object of the largest category id is in the first image."""
    from rtdetr_tool.data.build import build_loader, build_train_dataset

    source = spec.dataset.train_data_sources[0]
    coco = json.loads(Path(source["json_file"]).read_text())
    rare, first = max(row["category_id"] for row in coco["annotations"]), coco["images"][0]["id"]
    coco["annotations"] = [row for row in coco["annotations"] if row["category_id"] != rare or row["image_id"] == first]
    path = Path(source["json_file"]).with_name("rare.json")
    path.write_text(json.dumps(coco))
    dataset = dataclasses.replace(spec.dataset, train_data_sources=[{**source, "json_file": str(path)}])
    return len(build_loader(build_train_dataset(dataset), dataset, training=True).sampler)


def train_sample(spec):
    from rtdetr_tool.data.build import build_train_dataset

    dataset = build_train_dataset(spec.dataset, seed=spec.train.seed, num_epochs=spec.train.num_epochs)
    samples = [dataset[index] for index in range(4)]
    return [(tuple(image.shape), image.float().mean().item(), target.boxes.tolist()) for image, target in samples]


def eval_batches(spec):
    from rtdetr_tool.data.build import build_eval_dataset, build_loader

    return [len(batch) for batch in build_loader(build_eval_dataset(spec.dataset), spec.dataset, training=False)]


def eval_sample(spec):
    from rtdetr_tool.data.build import build_eval_dataset

    image, target = build_eval_dataset(spec.dataset, "val")[0]
    return tuple(image.shape), target.boxes.tolist(), target.box_scale


def decoded(spec):
    from rtdetr_tool.data.build import build_eval_dataset
    from rtdetr_tool.data.build_sources import pixel_format_of

    return build_eval_dataset(spec.dataset, "val", pixels=pixel_format_of(spec))[0][0].tolist()


def test_sample(spec):
    from rtdetr_tool.data.build import build_eval_dataset

    return len(build_eval_dataset(spec.dataset, "test"))


test_sample.__test__ = False


def inference_files(spec):
    from rtdetr_tool.data.build import build_inference_dataset

    return build_inference_dataset(spec.dataset).paths


def loader(spec):
    from rtdetr_tool.data.build import build_loader, build_train_dataset

    loader = build_loader(build_train_dataset(spec.dataset), spec.dataset, training=True)
    return loader.batch_size, loader.num_workers


def pinned(spec):
    from rtdetr_tool.data.build import build_loader, build_train_dataset

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return build_loader(build_train_dataset(spec.dataset), spec.dataset, training=True).pin_memory


def records(spec):
    from rtdetr_tool.data.build import build_train_dataset

    return type(build_train_dataset(spec.dataset).records).__name__


def evaluated(spec):
    from rtdetr_tool.data.build import build_eval_dataset
    from rtdetr_tool.metrics.build import build_evaluator

    result = build_evaluator(build_eval_dataset(spec.dataset, "test"), spec).compute()
    return [row.name for row in result.per_class], result.max_dets


def scaled(spec):
    from rtdetr_tool.ops.structures import Batch
    from rtdetr_tool.training.module import DetectorModule

    module = DetectorModule(spec, classes(spec))
    batch = Batch(torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), targets())
    return tuple(module.prepare_images(batch, multi_scale=True).shape)


def trainer(spec):
    from rtdetr_tool.training.trainer import build_trainer

    built = build_trainer(spec, logger=False)
    return (
        built.num_devices, built.num_nodes, built.max_epochs, built.check_val_every_n_epoch, built.gradient_clip_val,
        built.accumulate_grad_batches,
        built.precision, built.default_root_dir, type(built.strategy).__name__, type(built.accelerator).__name__,
        [type(callback).__name__ for callback in built.callbacks],
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(),
    )  # fmt: skip


def compiled_parts(spec):
    from types import SimpleNamespace

    from rtdetr_tool.training.module import DetectorModule

    module = DetectorModule(spec, classes(spec))
    accelerator = SimpleNamespace(name=lambda: "cpu")
    module._trainer = SimpleNamespace(world_size=1, ckpt_path="x", accelerator=accelerator, strategy="auto")
    module.setup("fit")
    return [name for name, part in module.detector.named_children() if part._compiled_call_impl is not None]


def synchronized(spec):
    """Whether several processes on a CPU share their batch norms."""
    from types import SimpleNamespace

    from rtdetr_tool.training.module import DetectorModule
    from rtdetr_tool.training.sync_batchnorm import SyncBatchNorm2d

    module = DetectorModule(spec, classes(spec))
    accelerator = SimpleNamespace(name=lambda: "cpu")
    module._trainer = SimpleNamespace(world_size=2, ckpt_path="x", accelerator=accelerator, strategy="ddp")
    module.setup("validate")
    return any(isinstance(part, SyncBatchNorm2d) for part in module.modules())


def callbacks(spec):
    from rtdetr_tool.training.trainer import build_trainer

    seen = {}
    for callback in build_trainer(spec, logger=False).callbacks:
        seen |= {k: v for k, v in vars(callback).items() if isinstance(v, (int, float, str, bool))}
    return seen


def ranking(spec):
    """The names under which three epochs with given scores are kept, and whether they replace other checkpoints."""
    from rtdetr_tool.training.callbacks.periodic_checkpoint import checkpoints_of
    from rtdetr_tool.training.trainer import build_trainer

    built = checkpoints_of(build_trainer(spec, logger=False)).ranking
    if built is None:
        return None
    for epoch, score in enumerate((0.3, 0.1, 0.2)):
        built.admit({"val/mAP_50_95": score, "val/loss": score + 1}, epoch, 4 * epoch, validated=True)
    return built.state(), str(built.folder), built.replaces_periodic


def adapters(spec):
    """Shapes and scale of the backbone's adapters."""
    from rtdetr_tool.training.module import DetectorModule

    pytest.importorskip("peft", reason="requires peft")
    backbone = DetectorModule(spec, classes(spec)).detector.backbone
    shapes = {name: tuple(p.shape) for name, p in backbone.named_parameters() if ".lora_" in name}
    return shapes, [module.scaling for module in backbone.modules() if hasattr(module, "scaling")]


def sampling(spec):
    """How deformable attention would sample on a GPU."""
    return [module.precise for module in detector_of(spec).modules() if hasattr(module, "precise")]


def optimizer(spec):
    from rtdetr_tool.training.module import DetectorModule

    built = DetectorModule(spec, classes(spec)).configure_optimizers()["optimizer"]
    keys = ("name", "lr", "weight_decay", "betas", "momentum")
    groups = [
        {key: group[key] for key in keys if key in group} | {"values": sum(p.numel() for p in group["params"])}
        for group in built.param_groups
    ]
    return type(built).__name__, groups


def rates(spec):
    """Learning rate of the first group over three epochs of four steps."""
    from rtdetr_tool.training.module import DetectorModule

    module = DetectorModule(spec, classes(spec))
    module._total_steps = lambda: 12 * spec.train.num_epochs // 3
    built = module.configure_optimizers()
    schedule, seen = built["lr_scheduler"]["scheduler"], []
    for epoch in range(3):
        schedule.start_epoch(epoch)
        for _ in range(4):
            seen.append(round(built["optimizer"].param_groups[0]["lr"], 12))
            built["optimizer"].step()
            schedule.step()
    return seen


def started(spec):
    """The log of a dry run of the complete training."""
    from rtdetr_tool.training.fit import fit

    if not spec.train.is_dry_run:
        spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, is_dry_run=True))
    return sorted(fit(spec).metrics)


def dry(spec):
    from rtdetr_tool.training.fit import fit

    return fit(dataclasses.replace(spec, train=dataclasses.replace(spec.train, num_epochs=1))).dry_run


def resumed(spec):
    from rtdetr_tool.training.checkpointing import find_resume_path

    return find_resume_path(spec.train.results_dir, spec.train.resume_training_checkpoint_path)


def after_bad_steps(spec):
    """Epochs of a run whose images are never finite."""
    from tempfile import TemporaryDirectory

    from pytorch_lightning import Callback

    from rtdetr_tool.training.fit import fit

    class Spoil(Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.prepare_images = lambda batch, multi_scale: torch.full((len(batch), 3, SIDE, SIDE), float("nan"))

    with TemporaryDirectory() as folder:
        train = dataclasses.replace(spec.train, num_epochs=1, results_dir=folder)
        return fit(dataclasses.replace(spec, train=train), callbacks=[Spoil()], logger=False).epochs


def recomputing(spec):
    from rtdetr_tool.training.module import DetectorModule

    return DetectorModule(spec, classes(spec)).detector.backbone.activation_checkpoint


def recomputed_tensors(spec):
    """Whether the backward pass of a training step recomputes tensors."""
    import torch

    from rtdetr_tool.ops import recompute
    from rtdetr_tool.training.module import DetectorModule

    count = 0

    def value(recipe):
        nonlocal count
        count += 1
        return original(recipe)

    original, recompute._Recipe.value = recompute._Recipe.value, value
    try:
        module = DetectorModule(spec, classes(spec)).train()
        module.predict_targets(torch.rand(1, 3, SIDE, SIDE), []).logits.sum().backward()
    finally:
        recompute._Recipe.value = original
    return count > 0


def bad_image(spec):
    """Training data with one broken image file."""
    from rtdetr_tool.data.build import build_train_dataset

    dataset = build_train_dataset(spec.dataset)
    broken = dataset.records[0].path
    good = Path(broken).read_bytes()
    try:
        Path(broken).write_bytes(good[:50])
        return tuple(dataset[0][0].shape)
    finally:
        Path(broken).write_bytes(good)


def replaced_images(spec):
    """How many images of a larger training set may be bad."""
    from rtdetr_tool.data.build import build_train_dataset

    many = list(spec.dataset.train_data_sources) * 50
    return build_train_dataset(dataclasses.replace(spec.dataset, train_data_sources=many)).max_bad


def wandb_settings(spec):
    from rtdetr_tool.training.loggers import wandb_arguments

    return wandb_arguments(spec.wandb, Path("x"))


def mlflow_settings(spec):
    from rtdetr_tool.training.loggers import mlflow_arguments

    return mlflow_arguments(spec.mlflow, Path("x"))


def wanted_loggers(spec):
    """Requested loggers other than CSV, installed or not."""
    from rtdetr_tool.training import loggers

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "k" * 40)
        patch.setattr(loggers, "_create_logger", lambda title, *_, **__: [title])
        return [expected for expected in loggers.build_loggers(spec, Path("x")) if isinstance(expected, str)]


def results_dir(spec):
    return spec.train.results_dir


def rfdetr_parts(spec):
    """Shapes of an RF-DETR, without its numbers."""
    from rtdetr_tool.models.build import build_detector

    with torch.device("meta"):
        detector = build_detector(spec.model, spec.dataset.num_classes)
    return {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}


def mask_output(spec):
    from rtdetr_tool.models.build import build_detector

    torch.manual_seed(0)
    detector = build_detector(spec.model, spec.dataset.num_classes).eval()
    with torch.no_grad():
        return detector(torch.rand(1, 3, 64, 64)).masks


def mask_losses(spec):
    """Terms for an object that fills the lower half of an image, in evaluation."""
    from rtdetr_tool.losses.build import build_criterion
    from rtdetr_tool.ops.structures import Predictions, Target

    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, 32:] = True
    box = torch.tensor([[0.5, 0.75, 1.0, 0.5]])
    target = Target(box, torch.zeros(1, dtype=torch.long), 1, (64, 64), (64.0, 64.0), masks=masks)
    torch.manual_seed(0)
    predicted = Predictions(torch.zeros(1, 1, spec.dataset.num_classes), box[None], masks=torch.randn(1, 1, 16, 16))
    return {name: float(value) for name, value in build_criterion(spec.model).eval()(predicted, [target]).items()}


def consent(spec):
    from rtdetr_tool.checkpoints.published import check_license

    check_license("rf-detr-xlarge.pth", "PML-1.0", spec.model.rfdetr.accept_platform_model_license)


RFDETR = {"model__arch": "rfdetr", "model__rfdetr__num_queries": 12, "model__rfdetr__group_detr": 2}
ADAPTED = {**RFDETR, "model__backbone_lora__enabled": True}
SEGMENTING = {**RFDETR, "model__rfdetr__segmentation_head": True}
DFINE = {
    "model__arch": "dfine", "model__dfine__variant": "n", "model__dfine__num_queries": 12, "model__dfine__dn_number": 6,
}  # fmt: skip
LEVELS = {
    "model__num_feature_levels": 2, "model__return_interm_indices": [2, 3], "model__feat_strides": [16, 32],
    "model__feat_channels": [16, 16], "model__use_encoder_idx": [1],
}  # fmt: skip
SOURCE = {"image_dir": "/no/such/folder", "json_file": "/no/such/file.json"}

# field (with __ for dots), other value, observation, additional changes for both sides
ROWS: list[tuple] = [
    ("results_dir", "/tmp/elsewhere", results_dir),
    ("wandb__enable", True, wanted_loggers),
    *((f"wandb__{name}", value, wandb_settings) for name, value in (
        ("project", "p"), ("entity", "e"), ("tags", ["t"]), ("sync_tensorboard", True), ("save_code", True),
        ("name", "n"), ("run_id", "i"), ("group", "g"))),
    ("mlflow__enable", True, wanted_loggers),
    *((f"mlflow__{name}", value, mlflow_settings) for name, value in (
        ("tracking_uri", "https://host"), ("experiment", "e"), ("run_name", "n"), ("tags", {"a": "b"}),
        ("run_id", "i"))),
    ("model__pretrained_backbone_path", "/no/such.pth", started),
    ("model__backbone", "resnet_34", parts),
    ("model__train_backbone", False, trainable),
    ("model__precise_msda", True, sampling),
    ("model__backbone_lora__enabled", True, adapters, {"model__arch": "rfdetr"}),
    *((f"model__backbone_lora__{name}", value, adapters, ADAPTED) for name, value in (
        ("rank", 2), ("alpha", 32.0), ("dora", False), ("modules", ["fc1"]))),
    ("model__freeze_norm", True, trainable),
    ("model__freeze_at", 1, trainable),
    ("model__num_queries", 20, lambda spec: len(output(spec)[0])),
    ("model__num_select", 4, detections),
    ("model__num_channels", 4, parts),
    ("model__num_feature_levels", 2, parts),
    ("model__return_interm_indices", [0, 1, 2], parts),
    ("model__return_interm_indices", [2, 3], parts, {k: v for k, v in LEVELS.items() if "indices" not in k}),
    ("model__feat_strides", [8, 16, 64], parts),
    ("model__feat_channels", [16, 16, 32], parts),
    ("model__use_encoder_idx", [1], output),
    ("model__hidden_dim", 32, parts, {"model__feat_channels": [32, 32, 32]}),
    ("model__nheads", 4, parts),
    ("model__dropout_ratio", 0.5, training_output),
    ("model__enc_layers", 2, parts),
    ("model__dim_feedforward", 32, parts),
    ("model__pe_temperature", 100, output),
    ("model__pe_order", "rows", wide_output),
    ("model__expansion", 0.5, parts),
    ("model__depth_mult", 2, parts),
    ("model__enc_act", "relu", output),
    ("model__act", "relu", output),
    ("model__dec_layers", 3, parts),
    ("model__dec_hidden_dim", 8, parts),
    ("model__dec_dim_feedforward", 32, parts),
    ("model__num_points", [2], parts),
    ("model__cross_attn_method", "discrete", output),
    ("model__offset_scale", 1.0, output),
    ("model__drop_path", 0.5, skipping),
    ("model__dn_number", 0, losses),
    ("model__label_noise_ratio", 2.0, denoised),
    ("model__box_noise_scale", 0.5, denoised),
    ("model__eval_idx", 0, output),
    ("model__vfl_loss_coef", 3.0, losses),
    ("model__bbox_loss_coef", 3.0, losses),
    ("model__giou_loss_coef", 3.0, losses),
    ("model__class_cost", 9.0, matching),
    ("model__bbox_cost", 9.0, matching),
    ("model__giou_cost", 9.0, matching),
    ("model__alpha", 0.3, losses),
    ("model__gamma", 1.0, losses),
    ("model__aux_loss", False, losses),
    ("model__loss_types", ["vfl"], losses),
    ("model__loss_types", ["mal", "boxes"], losses),
    ("model__linear_proj_names", ["norm1"], optimizer, {"train__optim__lr_linear_proj_mult": 0.5}),
    ("model__arch", "rfdetr", rfdetr_parts),
    *((f"model__rfdetr__{name}", value, rfdetr_parts, RFDETR) for name, value in (
        ("variant", "small"), ("encoder", "dinov2_registers_windowed_small"), ("projector_scale", ["P3"]),
        ("hidden_dim", 128), ("dec_layers", 1), ("sa_nheads", 5), ("ca_nheads", 8), ("dec_n_points", 4),
        ("dim_feedforward", 64), ("num_queries", 20), ("group_detr", 3), ("resolution", 64), ("patch_size", 8),
        ("positional_encoding_size", 4))),
    *((f"model__rfdetr__{name}", value, output, RFDETR) for name, value in (
        ("out_feature_indexes", [2, 6, 9, 12]), ("num_windows", 1), ("bbox_reparam", False),
        ("lite_refpoint_refine", False))),
    ("model__rfdetr__segmentation_head", True, rfdetr_parts, RFDETR),
    ("model__rfdetr__mask_downsample_ratio", 8, lambda spec: mask_output(spec).shape, SEGMENTING),
    *((f"model__rfdetr__{name}", value, mask_losses, SEGMENTING) for name, value in (
        ("mask_ce_loss_coef", 1.0), ("mask_dice_loss_coef", 1.0), ("mask_point_sample_ratio", 2))),
    ("model__rfdetr__use_grouppose_keypoints", True, rfdetr_parts,
     {**RFDETR, "model__rfdetr__num_keypoints_per_class": [3]}),
    *((f"model__rfdetr__{name}", value, rfdetr_parts, POSING) for name, value in (
        ("num_keypoints_per_class", [0, 2]), ("keypoint_cross_attn", False), ("inter_instance_kp_attn", True),
        ("grouppose_keypoint_dim_downscale", 2), ("dual_projector", True))),
    ("model__rfdetr__dual_projector_kp_only", True, output, {**POSING, "model__rfdetr__dual_projector": True}),
    ("model__rfdetr__postprocess_trace_alpha", 0.5, keypoint_scores, POSING),
    *((f"model__rfdetr__keypoint_{name}_loss_coef", 2.0, keypoint_losses, POSING)
      for name in ("l1", "findable", "visible", "nll")),
    ("dataset__augmentation__keypoint_flip_pairs", [], sides),
    ("evaluate__keypoint_oks_sigmas", [0.01, 0.01, 0.01], keypoint_metrics),
    ("model__rfdetr__dropout", 0.5, training_output, RFDETR),
    ("model__rfdetr__drop_path", 0.5, training_output, RFDETR),
    ("model__rfdetr__expanded_scales", False, default_scales, RFDETR),
    ("model__rfdetr__accept_platform_model_license", True, consent, RFDETR),
    ("model__rfdetr__cls_loss_coef", 3.0, losses, RFDETR),
    ("model__rfdetr__focal_alpha", 0.9, losses, RFDETR),
    ("model__dfine__variant", "s", parts, DFINE),
    *((f"model__dfine__{name}", value, parts, DFINE) for name, value in (
        ("hidden_dim", 64), ("dim_feedforward", 64), ("expansion", 0.5), ("depth_mult", 1.0), ("dec_hidden_dim", 64),
        ("dec_dim_feedforward", 64), ("dec_layers", 2), ("num_points", [2, 4]), ("reg_max", 16))),
    ("model__dfine__layer_scale", 2.0, parts, {**DFINE, "model__dfine__eval_idx": 0}),
    ("model__dfine__eval_idx", 0, output, DFINE),
    ("model__dfine__reg_scale", 8.0, lambda spec: detector_of(spec).eval()(images()).boxes.tolist(), DFINE),
    ("model__dfine__num_queries", 20, lambda spec: len(output(spec)[0]), DFINE),
    ("model__dfine__pe_order", "rows", wide_output, DFINE),
    ("model__dfine__freeze_norm", True, trainable, DFINE),
    ("model__dfine__freeze_at", 1, trainable, DFINE),
    ("model__dfine__dn_number", 0, losses, DFINE),
    ("model__dfine__label_noise_ratio", 2.0, denoised, DFINE),
    ("model__dfine__box_noise_scale", 0.5, denoised, DFINE),
    *((f"model__dfine__{name}", value, losses, DFINE) for name, value in (
        ("class_loss", "mal"), ("vfl_loss_coef", 3.0), ("alpha", 0.3), ("gamma", 1.0), ("fgl_loss_coef", 3.0),
        ("ddf_loss_coef", 3.0))),
    ("dataset__dataset_dir", "/no/such/folder", class_list),
    ("dataset__format", "yolo", class_list),
    ("dataset__train_data_sources", [SOURCE], class_list),
    ("dataset__val_data_sources", SOURCE, eval_sample),
    ("dataset__test_data_sources", SOURCE, test_sample),
    ("dataset__infer_data_sources", {"image_dir": "/no/such/folder"}, inference_files),
    ("dataset__batch_size", 3, loader),
    ("dataset__workers", 1, loader),
    ("dataset__remap_mscoco_category", True, class_list, {"dataset__num_classes": 80, "dataset__class_ids": "auto"}),
    ("dataset__pin_memory", False, pinned),
    ("dataset__dataset_type", "default", records),
    ("dataset__num_classes", 5, parts),
    ("dataset__eval_class_ids", [2], evaluated),
    ("evaluate__max_dets", 7, evaluated),
    ("dataset__augmentation__multi_scales", [32], scaled),
    ("dataset__augmentation__train_spatial_size", [32, 96], train_sample),
    ("dataset__augmentation__eval_spatial_size", [32, 96], eval_sample),
    ("dataset__augmentation__distortion_prob", 1.0, train_sample),
    ("dataset__eval_batch_size", 1, eval_batches),
    ("dataset__augmentation__iou_crop_prob", 1.0, train_sample),
    ("dataset__augmentation__zoom_out_prob", 0.0, train_sample),
    ("dataset__augmentation__flip_prob", 0.0, train_sample),
    ("dataset__augmentation__scale_jitter_prob", 1.0, train_sample),
    ("dataset__augmentation__policy", "rfdetr", train_sample),
    *((f"dataset__augmentation__{name}", 1.0, train_sample) for name in (
        "vertical_flip_prob", "rotate90_prob", "rotation_prob", "mosaic_prob", "mixup_prob")),
    ("dataset__augmentation__rotation_degrees", 30.0, train_sample, {"dataset__augmentation__rotation_prob": 1.0}),
    ("dataset__augmentation__copy_paste_prob", 1.0, train_sample),  # refused, because no object has a mask
    # Refused with the command to install the package if it is missing.
    ("dataset__augmentation__albumentations", [{"__class_fullname__": "InvertImg", "p": 1.0}], train_sample),
    ("dataset__augmentation__start_epoch", 1, train_sample, {"dataset__augmentation__distortion_prob": 1.0}),
    ("dataset__augmentation__mix_stop_epoch", 0, train_sample, {"dataset__augmentation__mosaic_prob": 1.0}),
    ("dataset__augmentation__no_aug_epochs", 2, train_sample, {"dataset__augmentation__distortion_prob": 1.0}),
    ("dataset__augmentation__preserve_aspect_ratio", True, train_sample),
    ("dataset__augmentation__preserve_aspect_ratio", True, eval_sample),
    ("dataset__class_ids", "contiguous", class_list),
    ("dataset__cache", "ram", cached_bytes),
    ("dataset__cache", "disk", cached_bytes),
    ("dataset__cache_gb", 1e-5, cached_bytes, {"dataset__cache": "ram"}),
    ("dataset__on_bad_image", "error", bad_image),
    ("dataset__max_bad_share", 0.5, replaced_images),
    ("dataset__repeat_threshold", 1.0, epoch_images),
    ("dataset__train_source_shares", [3.0, 1.0], epoch_images),  # refused, because there is one source
    ("dataset__value_range", [100.0, 200.0], decoded),
    ("train__class_weights", {"dog": 2.0}, class_weights),
    ("train__num_gpus", 2, trainer),
    ("train__gpu_ids", [0, 1], trainer),
    ("train__num_nodes", 2, trainer),
    ("train__seed", 99, train_sample),
    ("train__cudnn__benchmark", True, trainer, {"train__cudnn__deterministic": False}),
    ("train__cudnn__deterministic", False, trainer),
    ("train__tf32", "on", trainer),
    ("train__tf32", "off", trainer),
    ("train__compile", True, compiled_parts),
    ("train__preset", "fast", trainer),
    ("train__num_epochs", 3, trainer),
    ("train__checkpoint_interval", 2, callbacks),
    ("train__checkpoint_interval_unit", "step", callbacks),
    ("train__checkpointer__enable_topk", True, ranking),
    *((f"train__checkpointer__{name}", value, ranking, {"train__checkpointer__enable_topk": True}) for name, value in (
        ("replace_periodic", True), ("monitor", "val_loss"), ("mode", "min"), ("save_top_k", 2), ("filename", "a"),
        ("dirpath", "/tmp/elsewhere"), ("auto_insert_metric_name", True),
    )),
    ("train__validation_interval", 2, trainer),
    ("train__resume_training_checkpoint_path", "/no/such.pth", resumed),
    ("train__results_dir", "/tmp/elsewhere", results_dir),
    ("train__freeze", ["encoder"], trainable),
    ("train__pretrained_model_path", "/no/such.pth", started),
    ("train__clip_grad_norm", 0.0, trainer),
    ("train__non_finite_loss", "skip", after_bad_steps, {"train__validation_interval": 2}),
    ("train__is_dry_run", True, dry),
    ("train__enable_ema", True, trainer),
    ("train__ema__decay", 0.5, callbacks, {"train__enable_ema": True}),
    ("train__ema__every_n_steps", 5, callbacks, {"train__enable_ema": True}),
    ("train__ema__validate_original_weights", True, callbacks, {"train__enable_ema": True}),
    ("train__ema__cpu_offload", True, callbacks, {"train__enable_ema": True}),
    ("train__optim__optimizer", "SGD", optimizer),
    ("train__optim__lr", 0.5, optimizer),
    ("train__optim__lr_backbone", 0.5, optimizer),
    ("train__optim__momentum", 0.5, optimizer),
    ("train__optim__weight_decay", 0.5, optimizer),
    ("train__optim__lr_scheduler", "StepLR", rates, {"train__optim__lr_step_size": 1}),
    ("train__optim__lr_steps", [1], rates),
    ("train__optim__lr_step_size", 1, rates, {"train__optim__lr_scheduler": "StepLR"}),
    ("train__optim__lr_decay", 0.5, rates, {"train__optim__lr_steps": [1]}),
    ("train__optim__warmup_steps", 3, rates),
    ("train__optim__lr_linear_proj_mult", 0.5, optimizer),
    ("train__optim__lr_scheduler", "Cosine", rates),
    ("train__optim__lr_scheduler", "FlatCosine", rates),
    ("train__optim__lr_flat_epochs", 1.0, rates, {"train__optim__lr_scheduler": "FlatCosine"}),
    ("train__optim__lr_final_epochs", 1.0, rates, {"train__optim__lr_scheduler": "FlatCosine"}),
    ("train__optim__warmup_epochs", 1.0, rates),
    ("train__optim__lr_min_factor", 0.5, rates, {"train__optim__lr_scheduler": "Cosine"}),
    ("train__optim__lr_layer_decay", 0.5, optimizer),
    ("train__optim__lr_component_decay", 0.5, optimizer),
    ("train__optim__decay_vectors", True, optimizer),
    ("train__ema__tau", 50.0, callbacks, {"train__enable_ema": True}),
    ("train__ema__validate_both", True, callbacks, {"train__enable_ema": True}),
    ("train__early_stopping__enabled", True, trainer),
    ("train__early_stopping__patience", 3, callbacks, {"train__early_stopping__enabled": True}),
    ("train__early_stopping__min_delta", 0.1, callbacks, {"train__early_stopping__enabled": True}),
    ("train__grad_accum_steps", 2, trainer),
    ("train__drop_path_schedule", "late", trainer),
    ("train__drop_path_epochs", 1, callbacks, {"train__drop_path_schedule": "early"}),
    ("train__tensorboard", False, wanted_loggers),
    ("train__save_dataset_grids", True, trainer),
    ("train__sync_bn", False, lambda spec: synchronized(spec)),
    ("train__precision", "bf16", trainer),
    ("train__distributed_strategy", "fsdp", trainer, {"train__num_gpus": 2, "train__gpu_ids": [0, 1]}),
    ("train__activation_checkpoint", True, recomputing),
    ("train__recompute_norms", True, recomputed_tensors),
    ("train__accelerator", "gpu", trainer),
    ("train__supernet__enabled", True, sub_detectors_of, {"train__supernet__decoder_layers": [1]}),
    *((f"train__supernet__{name}", value, sub_detectors_of, {"train__supernet__enabled": True}) for name, value in (
        ("resolution", [96]), ("decoder_layers", [1]), ("num_queries", [5]))),
    *((f"train__supernet__{name}", value, sub_detectors_of,
       {**RFDETR, "train__supernet__enabled": True, "train__supernet__resolution": [64]}) for name, value in (
        ("num_windows", [1]), ("patch_size", [8]))),
]  # fmt: skip


@dataclasses.dataclass
class Refused:
    message: str


def observe(data, observation, changes) -> Any:
    try:
        return observation(build(data, **changes))
    except RtdetrError as error:
        return Refused(str(error))


@pytest.fixture(scope="module")
def observe_once(data) -> Callable[..., Any]:
    """`observe`, once for the same observation and changes."""
    results: dict[tuple[Any, str], Any] = {}

    def observed(observation: Callable[..., Any], changes: dict[str, Any]) -> Any:
        key = observation, repr(sorted(changes.items()))
        if key not in results:
            results[key] = observe(data, observation, changes)
        return results[key]

    return observed


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].replace('__', '.')}={str(row[1])[:20]}")
def test_a_field_has_an_effect(row, data, observe_once):
    name, value, observation, *rest = row
    shared = dict(rest[0]) if rest else {}
    before = observe_once(observation, shared)
    after = observe(data, observation, {**shared, name: value})
    assert before != after
    assert not (isinstance(before, Refused) and isinstance(after, Refused)), "one of the two must work"


@pytest.mark.parametrize(("verbose", "lines"), [(False, 0), (True, 1)])
def test_lr_changes_are_logged_when_verbose(verbose, lines, data, monkeypatch, caplog):
    from rtdetr_tool.training.module import DetectorModule

    spec = build(data, train__verbose=verbose, train__optim__lr_steps=[1])
    module = DetectorModule(spec, classes(spec))
    built = module.configure_optimizers()
    module.lr_schedulers = lambda: built["lr_scheduler"]["scheduler"]
    module.optimizers = lambda: built["optimizer"]
    monkeypatch.setattr(type(module), "current_epoch", 1)  # the epoch of the drop
    log, heard = logging.getLogger("rtdetr_tool.training.optimized_module"), logging.handlers.BufferingHandler(100)
    caplog.set_level(logging.INFO, logger=log.name)  # unlike setting `level`, this clears the cache of levels
    monkeypatch.setattr(log, "handlers", [heard])
    module.on_train_epoch_start()
    assert sum("earning rate" in record.getMessage() for record in heard.buffer) == lines


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [("enabled", False, True), ("backbone", "radio_v2-b", "radio_v2-h"), ("checkpoint", "file.pth", "/no/such.pth")],
)
def test_a_field_of_the_frozen_foundation_model_has_an_effect(field, before, after, data, tmp_path, monkeypatch):
    from rtdetr_tool.catalog import FOUNDATION_MODELS, FoundationModel
    from rtdetr_tool.families.rtdetr.model.radio import RadioViT

    for name, width in (("radio_v2-b", 16), ("radio_v2-h", 32)):
        monkeypatch.setitem(FOUNDATION_MODELS, name, FoundationModel(name, width, 1, 2, 0, "", ""))
    torch.save(RadioViT(16, 1, 2).state_dict(), tmp_path / "file.pth")

    def seen(value):
        fields = {"enabled": True, "backbone": "radio_v2-b", "checkpoint": "file.pth", field: value}
        fields["checkpoint"] = str(tmp_path / fields["checkpoint"])
        return observe(data, parts, {f"model__frozen_fm__{name}": given for name, given in fields.items()})

    assert not isinstance(seen(before), Refused)
    assert seen(before) != seen(after)


# evaluate and inference: the whole command on an untrained checkpoint.


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory) -> str:
    from rtdetr_tool.checkpoints.io import save_checkpoint
    from rtdetr_tool.checkpoints.metadata import build_metadata
    from rtdetr_tool.spec import spec_to_dict

    spec = build(data)
    weights = {f"model.model.{name}": tensor for name, tensor in detector_of(spec).state_dict().items()}
    meta = build_metadata("test", spec_to_dict(spec), class_list(spec))
    path = tmp_path_factory.mktemp("weights") / "model_epoch_000.pth"
    save_checkpoint({"state_dict": weights, "tao_model": "rtdetr", "rtdetr_tool": meta}, path)
    return str(path)


def run_command(command: str, data: dict, folder: Path, **changes: Any) -> dict[str, Any]:
    """Exit code and files (relative name -> bytes) of a run from the command line."""
    from rtdetr_tool.cli import main

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(changed(data, changes)))
    code = main([command, "-e", str(folder / "spec.json"), "-r", str(folder)])
    skipped = ("log.txt", "status.json", "experiment.yaml", "spec.json")
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {"code": code, **{name: content for name, content in files.items() if Path(name).name not in skipped}}


COMMAND_ROWS = [
    ("evaluate", "checkpoint", "/no/such.pth"),
    ("evaluate", "trt_engine", "model.engine"),
    ("evaluate", "results_dir", "elsewhere"),
    ("evaluate", "conf_threshold", 0.99),
    ("evaluate", "input_width", 96),
    ("evaluate", "input_height", 96),
    ("evaluate", "precision", "bf16"),
    ("evaluate", "is_quantized", True),
    ("evaluate", "num_gpus", 2),
    ("evaluate", "gpu_ids", [0, 1]),
    ("inference", "checkpoint", "/no/such.pth"),
    ("inference", "trt_engine", "model.engine"),
    ("inference", "results_dir", "elsewhere"),
    ("inference", "conf_threshold", 0.99),
    ("inference", "color_map", {"cat": "#010203", "dog": "#030201"}),
    ("inference", "is_internal", True),
    ("inference", "outline_width", 1),
    ("inference", "input_width", 96),
    ("inference", "input_height", 96),
    ("inference", "precision", "bf16"),
    ("inference", "is_quantized", True),
    ("inference", "num_gpus", 2),
    ("inference", "gpu_ids", [0, 1]),
]
# Seen in the devices, in the loader, and (onnx_provider) with ONNX files instead of in the results of a checkpoint.
COMMAND_ROWS_ELSEWHERE = {
    f"{command}.{field}"
    for command in ("evaluate", "inference")
    for field in ("batch_size", "num_nodes", "onnx_provider", "compile")  # compile: formats/test_torch_runtime.py
} | {
    f"{command}.tiles.{field}"  # commands/test_tiles.py
    for command in ("evaluate", "inference")
    for field in ("enabled", "size", "overlap", "whole_image", "merge", "threshold")
} | {
    "train.report", "evaluate.report",  # commands/test_reports.py
    "inference.class_thresholds", "inference.thresholds_from",  # commands/test_thresholds.py
    "inference.tracker", "inference.stream_attempts",  # workflows/test_video.py, commands/test_inference_videos.py
    "dataset.quant_calibration_data_sources",  # commands/test_quantize.py
}  # fmt: skip
# Commands whose tests show the effect of every field: the file sets each as `field=value`.
COMMANDS_WITH_OWN_TESTS = (
    "automl", "benchmark", "export", "gen_trt_engine", "distill", "quantize", "serve", "validate_data",
)  # fmt: skip
# Fields of `model` that only distill reads; its tests show their effect.
OF_DISTILL = {"model.load_teacher_enc_dec", "model.distillation_loss_coef"}


@pytest.fixture(scope="module")
def run_once(data, tmp_path_factory) -> Callable[..., dict[str, Any]]:
    """Run a command from the command line, once for the same values of fields."""
    results: dict[str, dict[str, Any]] = {}

    def run(command: str, **changes: Any) -> dict[str, Any]:
        key = json.dumps([command, changes], sort_keys=True)
        if key not in results:
            results[key] = run_command(command, data, tmp_path_factory.mktemp(command), **changes)
        return results[key]

    return run


@pytest.mark.parametrize("command", ["evaluate", "inference"])
def test_the_same_fields_write_the_same_files(command, data, checkpoint, run_once, tmp_path):
    """Otherwise every field would seem to have an effect."""
    base = {f"{command}__checkpoint": checkpoint, "inference__conf_threshold": 0.0, "evaluate__report": False}
    assert run_command(command, data, tmp_path, **base) == run_once(command, **base)


@pytest.mark.parametrize(("command", "field", "value"), COMMAND_ROWS)
def test_a_field_of_a_command_has_an_effect(command, field, value, data, checkpoint, run_once, tmp_path):
    base = {f"{command}__checkpoint": checkpoint, "inference__conf_threshold": 0.0, "evaluate__report": False}
    if field in ("num_gpus", "gpu_ids"):  # both are set and contradict each other, which is refused
        base |= {f"{command}__num_gpus": 1, f"{command}__gpu_ids": [0]}
    if field == "results_dir":
        value = str(tmp_path / value)
    sizes = {f"{command}__input_width": SIDE, f"{command}__input_height": SIDE} if field.startswith("input_") else {}
    before = run_once(command, **base, **sizes)
    assert before["code"] == 0
    after = run_command(command, data, tmp_path, **{**base, **sizes, f"{command}__{field}": value})
    assert before != after


@pytest.mark.parametrize("command", ["evaluate", "inference"])
def test_batch_size_of_a_command_reaches_its_loader(command, data, checkpoint, tmp_path):
    from rtdetr_tool.data.build import build_eval_dataset
    from rtdetr_tool.spec import LoadedSpec
    from rtdetr_tool.workflows.detection import open_for

    def size(batch_size: int) -> int:
        spec = build(data, command, **{f"{command}__checkpoint": checkpoint, f"{command}__batch_size": batch_size})
        detecting = open_for(LoadedSpec(spec), getattr(spec, command))
        return detecting.loader(build_eval_dataset(spec.dataset, "test")).batch_size

    assert size(-1) == 2
    assert size(5) == 5


@pytest.mark.parametrize("command", COMMANDS_WITH_OWN_TESTS)
def test_every_field_of_a_command_is_set_in_its_tests(command):
    text = "".join(path.read_text() for path in (Path(__file__).parent / "commands").glob(f"test_{command}*.py"))
    unset = [
        name
        for name, _, hint in walk_fields()
        if name.startswith(f"{command}.")
        and not name.startswith("distill.teacher.")  # the fields of `model`, built by the same code
        and section_type(hint) is None
        and name not in reasons("unused")
        and name not in reasons("unsupported")
        and not re.search(rf"\b{name.split('.')[-1]}\"?[=:]", text)  # in a list: {field: value}
    ]
    assert unset == []


OF_TORCH_CLASSES = (
    "optim.optimizer_kwargs", "optim.lr_scheduler_kwargs", "optim.lr_scheduler_interval",
    "optim.lr_scheduler_monitor", "best_metric", "skip_best_epochs", "best_score_smoothing", "num_sanity_val_steps",
)  # fmt: skip


def test_every_field_is_accounted_for():
    seen = {row[0].replace("__", ".") for row in ROWS} | {"train.verbose"}
    in_recipe = ("compute_val_loss", "log_per_class_metrics", "effective_batch_size", "notes")
    seen |= {f"train.{field}" for field in in_recipe}  # training/test_recipe.py
    seen |= {"train.compute_test_loss", "train.early_stopping.use_ema"}  # training/test_logged_keys.py
    seen |= {f"train.{field}" for field in OF_TORCH_CLASSES}  # training/test_torch_classes.py
    seen |= {f"model.frozen_fm.{field}" for field in ("enabled", "backbone", "checkpoint")}
    seen |= {f"{command}.{field}" for command, field, _ in COMMAND_ROWS} | COMMAND_ROWS_ELSEWHERE | OF_DISTILL
    unaccounted = [
        name
        for name, _, hint in walk_fields()
        if section_type(hint) is None
        and name not in seen
        and name not in reasons("unused")
        and name not in reasons("unsupported")
        and name.split(".")[0] not in COMMANDS_WITH_OWN_TESTS
    ]
    assert unaccounted == []


def test_using_an_inert_field_prints_its_reason(tmp_path, capsys):
    from rtdetr_tool.spec import read_spec

    loaded = read_spec(None, ["train.optim.monitor_name=train_loss", "encryption_key=abc"])
    assert any("train.optim.monitor_name" in note for note in loaded.notes)
    assert any("encryption_key" in note for note in loaded.notes)
    assert read_spec(None, []).notes == []


def test_an_unsupported_value_is_refused_with_the_reason(data):
    with pytest.raises(UserError, match="quantize writes an ONNX file itself"):
        build(data, "export", export__is_quantized=True, export__checkpoint="x.pth")
