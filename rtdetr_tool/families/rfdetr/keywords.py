"""Every field of `TrainConfig` and `ModelConfig` of Roboflow's package (rfdetr 1.11), and what it means here.

These tables drive the Python API, the tables in docs/rfdetr.md (scripts/generate_rfdetr_fields.py) and their test,
which compares names and defaults with the installed package.
"""

from __future__ import annotations

from rtdetr_tool.families.keywords import Keyword, keyword_table
from rtdetr_tool.families.rfdetr.keyword_rules import (
    aug_config,
    if_given,
    multi_scale,
    notes,
    only,
    optimizer,
    optimizer_kwargs,
    scheduler,
    scheduler_kwargs,
)

_SAME_METRICS = "there is one implementation of the COCO metrics"
_AUGMENTATION = "augmentation has one implementation, set by the fields of dataset.augmentation"


TRAIN: tuple[Keyword, ...] = (
    Keyword("lr", 1e-4, "works", "train.optim.lr"),
    Keyword("lr_encoder", 1.5e-4, "works", "train.optim.lr_backbone"),
    Keyword("batch_size", 4, "works", "dataset.batch_size", "'auto' also works on a CPU"),
    Keyword("grad_accum_steps", 1, "works", "train.grad_accum_steps"),
    Keyword("eval_batch_size", None, "works", "dataset.eval_batch_size"),
    Keyword("pad_targets_to", None, "warned", note="targets are not padded"),
    Keyword("auto_batch_target_effective", 16, "works", "train.effective_batch_size"),
    Keyword("auto_batch_max_targets_per_image", 100, "warned", note="batch_size='auto' tries 100 objects per image"),
    Keyword("auto_batch_ema_headroom", 0.7, "warned", note="batch_size='auto' leaves a fifth of the memory free"),
    Keyword("epochs", 100, "works", "train.num_epochs"),
    Keyword("resume", None, "works", "train.resume_training_checkpoint_path", "True resumes the run in output_dir"),
    Keyword("ema_decay", 0.993, "works", "train.ema.decay"),
    Keyword("ema_tau", 100, "works", "train.ema.tau"),
    Keyword("checkpoint_interval", 10, "works", "train.checkpoint_interval", "the default here is 1, so that a run can "
            "be resumed from every epoch"),
    Keyword("skip_best_epochs", 0, "works", "train.skip_best_epochs"),
    Keyword("smooth_alpha", 0.0, "works", "train.best_score_smoothing", "the package's default for keypoints is 0.5"),
    Keyword("warmup_epochs", 0.0, "works", "train.optim.warmup_epochs"),
    Keyword("lr_vit_layer_decay", 0.8, "works", "train.optim.lr_layer_decay"),
    Keyword("lr_component_decay", 0.7, "works", "train.optim.lr_component_decay"),
    Keyword("drop_path", 0.0, "works", "model.rfdetr.drop_path"),
    Keyword("cls_loss_coef", 1.0, "works", "model.rfdetr.cls_loss_coef"),
    Keyword("keypoint_flip_pairs", [], "works",
            lambda pairs: {"dataset.augmentation.keypoint_flip_pairs": list(pairs)} if pairs else {},
            "dataset.augmentation.keypoint_flip_pairs"),
    *(
        Keyword(f"keypoint_{term}_loss_coef", 0, "works", f"model.rfdetr.keypoint_{term}_loss_coef", "the default is 1")
        for term in ("l1", "findable", "visible", "nll")
    ),
    Keyword("keypoint_oks_sigmas", None, "works", "evaluate.keypoint_oks_sigmas"),
    Keyword(
        "dataset_file", "roboflow", "works",
        only("dataset_file", {"roboflow": {}, "coco": {"dataset.format": "coco"}, "yolo": {"dataset.format": "yolo"}},
              "Convert other datasets to COCO."),
        "dataset.format; o365 and webdataset are refused",
    ),
    Keyword("square_resize_div_64", True, "refused", note="batches have one size; preserve_aspect_ratio=True keeps the "
            "aspect ratio and pads images to a square"),
    Keyword("dataset_dir", ..., "works", "dataset.dataset_dir"),
    Keyword("output_dir", "output", "works", "train.results_dir"),
    Keyword("multi_scale", "per-batch", "works", multi_scale, "augmentation.multi_scales; per-sample is refused"),
    Keyword("expanded_scales", True, "works", "model.rfdetr.expanded_scales"),
    Keyword("use_ema", True, "works", "train.enable_ema"),
    Keyword("ema_update_interval", 1, "works", "train.ema.every_n_steps"),
    Keyword("eval_base_model", False, "works", "train.ema.validate_both"),
    Keyword("eval_ema_only", False, "works", lambda on: {"train.ema.validate_both": False} if on else {},
            "the default here"),
    Keyword("num_workers", 2, "works", "dataset.workers"),
    Keyword("weight_decay", 1e-4, "works", "train.optim.weight_decay"),
    Keyword(
        "amp_dtype", "auto", "works",
        only("amp_dtype", {"auto": {"train.precision": "auto"}, "bf16": {"train.precision": "bf16"},
                            "fp16": {"train.precision": "fp16"}, None: {"train.precision": "fp32"}},
              "FP8 training is not supported."),
        "train.precision; fp8 is refused",
    ),
    Keyword(
        "best_model_metric", "map", "works",
        only("best_model_metric", {"map": {"train.best_metric": "mAP"}, "mar": {"train.best_metric": "mAR"}},
              "For other metrics, keep checkpoints with train.checkpointer.monitor."),
        "train.best_metric",
    ),
    Keyword("early_stopping", False, "works", "train.early_stopping.enabled"),
    Keyword("early_stopping_patience", 10, "works", "train.early_stopping.patience"),
    Keyword("early_stopping_min_delta", 0.001, "works", "train.early_stopping.min_delta"),
    Keyword("early_stopping_use_ema", False, "works", "train.early_stopping.use_ema"),
    Keyword("progress_bar", None, "warned", note="there is one built-in progress bar, which is always shown"),
    Keyword("tensorboard", True, "works", "train.tensorboard"),
    Keyword("wandb", False, "works", "wandb.enable"),
    Keyword("mlflow", False, "works", "mlflow.enable"),
    Keyword("clearml", False, "refused", note="ClearML is not supported, as in the package; use wandb, mlflow or "
            "tensorboard"),
    Keyword("project", None, "works",
            lambda name: {} if name is None else {"wandb.project": name, "mlflow.experiment": name},
            "wandb.project and mlflow.experiment"),
    Keyword("run", None, "works", lambda name: {} if name is None else {"wandb.name": name, "mlflow.run_name": name},
            "wandb.name and mlflow.run_name"),
    Keyword("class_names", None, "works", lambda names: {}, "must be the names in the data, which are always used"),
    Keyword("run_test", False, "works", lambda on: {}, "scores the test split with the best weights after training"),
    Keyword("eval_max_dets", 500, "works", "evaluate.max_dets"),
    Keyword("eval_interval", 1, "works", "train.validation_interval"),
    Keyword("log_per_class_metrics", False, "works", "train.log_per_class_metrics"),
    Keyword("eval_backend", "vernier", "warned", note=_SAME_METRICS),
    Keyword("eval_masks_head_resolution", False, "refused", note="masks are scored at the size of the image"),
    Keyword("aug_config", None, "works", aug_config, "flips set dataset.augmentation.flip_prob and vertical_flip_prob, "
            "other transforms dataset.augmentation.albumentations"),
    Keyword("scale_jitter", True, "works", lambda on: {} if on else {"dataset.augmentation.scale_jitter_prob": 0.0},
            "dataset.augmentation.scale_jitter_prob"),
    Keyword("augmentation_backend", "cpu", "warned", note=_AUGMENTATION),
    Keyword("save_dataset_grids", False, "works", "train.save_dataset_grids"),
    Keyword("notes", None, "works", notes, "train.notes; values that are not text are stored as JSON"),
    Keyword("accelerator", "auto", "works", lambda name: {"train.accelerator": "gpu" if name == "cuda" else name},
            "train.accelerator"),
    Keyword("clip_max_norm", 0.1, "works", "train.clip_grad_norm"),
    Keyword("seed", None, "works", if_given("train.seed"), "train.seed; the default here is 1234"),
    Keyword("sync_bn", False, "works", "train.sync_bn"),
    Keyword("strategy", "auto", "works", lambda name: {} if name == "auto" else {"train.distributed_strategy": name},
            "train.distributed_strategy"),
    Keyword("devices", 1, "works", "train.num_gpus"),
    Keyword("num_nodes", 1, "works", "train.num_nodes"),
    Keyword("fp16_eval", False, "warned", note="validation uses the precision of training, as in the package"),
    Keyword("lr_scheduler", "step", "works", scheduler, "train.optim.lr_scheduler; step, cosine, StepLR and others of "
            "torch.optim.lr_scheduler"),
    Keyword("lr_scheduler_kwargs", {}, "works", scheduler_kwargs, "train.optim.lr_scheduler_kwargs; lr_drop: "
            "train.optim.lr_steps, min_factor: train.optim.lr_min_factor"),
    Keyword("lr_scheduler_interval", "step", "works", "train.optim.lr_scheduler_interval", "of a schedule by dotted "
            "name"),
    Keyword("lr_scheduler_monitor", "val/loss", "works", "train.optim.lr_scheduler_monitor", "of ReduceLROnPlateau"),
    Keyword("optimizer", "adamw", "works", optimizer, "train.optim.optimizer; AdamW, SGD and others of torch.optim"),
    Keyword("optimizer_kwargs", {}, "works", optimizer_kwargs, "train.optim.optimizer_kwargs; lr and weight_decay set "
            "train.optim.lr and weight_decay"),
    Keyword("dont_save_weights", False, "refused", note="a run always saves checkpoints; delete output_dir afterwards"),
    Keyword("train_log_sync_dist", False, "warned", note="logged losses are always averaged over processes per epoch"),
    Keyword("train_log_on_step", False, "warned", note="the total loss is always logged per step, its terms per epoch"),
    Keyword("compact_train_metrics", True, "warned", note="the terms of the last layer are logged"),
    Keyword("compute_train_metrics", False, "refused", note="metrics are computed on validation and test data; "
            "pass the training data to evaluate()"),
    Keyword("num_sanity_val_steps", 0, "works", "train.num_sanity_val_steps"),
    Keyword(
        "compute_val_loss", "auto", "works",
        only("compute_val_loss", {"auto": {}, True: {"train.compute_val_loss": True},
                                   False: {"train.compute_val_loss": False}}, "Loss of the validation data."),
        "train.compute_val_loss",
    ),
    Keyword("compute_test_loss", True, "works", "train.compute_test_loss"),
    Keyword("pin_memory", None, "works", if_given("dataset.pin_memory"), "dataset.pin_memory"),
    Keyword("persistent_workers", None, "warned", note="loader processes always persist between epochs"),
    Keyword("prefetch_factor", None, "warned", note="loader processes prefetch two batches each"),
    Keyword("pack_targets", True, "warned", note="targets are never packed"),
)  # fmt: skip

_DEPRECATED = "deprecated in rfdetr as well"
# Accepted by `train()` and constructors there, without being a field.
TRAIN_DEPRECATED: dict[str, str] = {
    "start_epoch": f"{_DEPRECATED}; resume=True continues with the epoch after the last checkpoint",
    "do_benchmark": f"{_DEPRECATED}; `rtdetr evaluate` reports milliseconds per image",
}

MODEL: tuple[Keyword, ...] = (
    Keyword("encoder", ..., "works", "model.rfdetr.encoder"),
    Keyword("out_feature_indexes", ..., "works", "model.rfdetr.out_feature_indexes"),
    Keyword("dec_layers", ..., "works", "model.rfdetr.dec_layers"),
    Keyword("two_stage", True, "refused", note="queries always start from the encoder's proposals"),
    Keyword("projector_scale", ..., "works", "model.rfdetr.projector_scale"),
    Keyword("hidden_dim", ..., "works", "model.rfdetr.hidden_dim"),
    Keyword("patch_size", ..., "works", "model.rfdetr.patch_size"),
    Keyword("num_windows", ..., "works", "model.rfdetr.num_windows"),
    Keyword("sa_nheads", ..., "works", "model.rfdetr.sa_nheads"),
    Keyword("ca_nheads", ..., "works", "model.rfdetr.ca_nheads"),
    Keyword("dec_n_points", ..., "works", "model.rfdetr.dec_n_points"),
    Keyword("num_queries", 300, "works", "model.rfdetr.num_queries"),
    Keyword("num_select", 300, "works", "model.num_select"),
    Keyword("postprocess_trace_alpha", 0.2, "works", "model.rfdetr.postprocess_trace_alpha"),
    Keyword("bbox_reparam", True, "works", "model.rfdetr.bbox_reparam"),
    Keyword("lite_refpoint_refine", True, "works", "model.rfdetr.lite_refpoint_refine"),
    Keyword("layer_norm", True, "refused", note="the projector always normalizes"),
    Keyword("amp", True, "works", lambda on: {} if on else {"train.precision": "fp32"}, "train.precision"),
    Keyword("num_channels", 3, "works", "model.num_channels"),
    Keyword("num_classes", 90, "works", lambda count: {}, "the constructor's argument"),
    Keyword("pretrain_weights", None, "works", lambda path: {}, "the constructor's argument; default: the variant's"),
    Keyword("device", "cpu", "works", lambda name: {}, "the constructor's argument; the default is auto"),
    Keyword("resolution", ..., "works", "model.rfdetr.resolution"),
    Keyword("group_detr", 13, "works", "model.rfdetr.group_detr"),
    Keyword("gradient_checkpointing", False, "works", "train.activation_checkpoint"),
    Keyword("compile", False, "works", "train.compile", "backbone and encoder; in the package, on CUDA only"),
    Keyword("cuda_graphs", False, "warned", note="training does not use CUDA graphs"),
    Keyword("fused_optimizer", True, "warned", note="the optimizer is fused where the device supports it; the results "
            "are the same"),
    Keyword("positional_encoding_size", ..., "works", "model.rfdetr.positional_encoding_size"),
    Keyword("ia_bce_loss", True, "refused", note="the class loss is always IoU-aware"),
    Keyword("segmentation_head", False, "works", "model.rfdetr.segmentation_head"),
    Keyword("use_grouppose_keypoints", False, "works", "model.rfdetr.use_grouppose_keypoints"),
    Keyword("keypoint_cross_attn", True, "works", "model.rfdetr.keypoint_cross_attn"),
    Keyword("inter_instance_kp_attn", False, "works", "model.rfdetr.inter_instance_kp_attn"),
    Keyword("grouppose_keypoint_dim_downscale", 1, "works", "model.rfdetr.grouppose_keypoint_dim_downscale"),
    Keyword("dual_projector", False, "works", "model.rfdetr.dual_projector"),
    Keyword("dual_projector_kp_only", False, "works", "model.rfdetr.dual_projector_kp_only"),
    Keyword("num_keypoints_per_class", [], "works", "model.rfdetr.num_keypoints_per_class", "training takes "
            "those of the data if it is not given"),
    Keyword("num_decoder_registers", 0, "refused", note="decoder registers are not supported"),
    Keyword("mask_downsample_ratio", 4, "works", "model.rfdetr.mask_downsample_ratio"),
    Keyword("backbone_lora", False, "works", "model.backbone_lora.enabled", "DoRA of rank 16, as in the package"),
    Keyword("freeze_encoder", False, "works", lambda on: {"train.freeze": ["backbone"]} if on else {}, "train.freeze"),
    Keyword("license", "Apache-2.0", "warned", note="the license is that of the weights"),
    Keyword("model_name", None, "warned", note="the class of a detector follows from its variant"),
)  # fmt: skip

TRAIN_TABLE = keyword_table(TRAIN)
MODEL_TABLE = keyword_table(MODEL)
