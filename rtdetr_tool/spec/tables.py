"""Literal tables: where the schema differs from TAO's, fields without effect, other names of fields and values."""

from __future__ import annotations

from rtdetr_tool.catalog import BACKBONE_ALIASES

# Field -> why its default, bounds or options are not those of nvidia-tao-core 6.25.11.
DIFFERENCES: dict[str, str] = {
    "model.backbone": "the documentation's convnextv2 names and the official code's ResNet-d are added",
    "model.return_interm_indices": "stages run from 0 to 3; other values crash TAO",
    "model.feat_strides": "a stride below 1 cannot be",
    "model.feat_channels": "a channel count below 1 cannot be",
    "model.use_encoder_idx": "at most four levels exist; other values crash TAO",
    "model.hidden_dim": "the position embedding needs four values per frequency",
    "model.nheads": "at least one head is needed",
    "model.enc_act": "the known activations are named; others crash TAO",
    "model.act": "the known activations are named; others crash TAO",
    "model.alpha": "TAO states the bound > 0 only as text",
    "model.gamma": "TAO states the bound > 0 only as text",
    "model.loss_types": "the known losses are named; others crash TAO",
    "dataset.train_data_sources": "the shown default (empty paths) cannot be used; null, as TAO's value",
    "dataset.val_data_sources": "the shown default (empty paths) cannot be used; null, as TAO's value",
    "dataset.test_data_sources": "the shown default (empty paths) cannot be used; null, as TAO's value",
    "dataset.infer_data_sources": "image_dir may be one folder or a list of folders",
    "dataset.workers": "0 loads in the main process, as PyTorch means it",
    "dataset.eval_class_ids": "null (all classes), as TAO's value; the documented [1] would score only one class",
    "dataset.augmentation.multi_scales": "TAO's own rectangular specs give [height, width] pairs; both forms are valid",
    "dataset.augmentation.train_spatial_size": "the stride of the last level, 32, is the smallest size",
    "dataset.augmentation.eval_spatial_size": "the stride of the last level, 32, is the smallest size",
    "train.gpu_ids": "a GPU index cannot be negative",
    "evaluate.gpu_ids": "a GPU index cannot be negative",
    "inference.gpu_ids": "a GPU index cannot be negative",
    "train.clip_grad_norm": "0 (not clipped) is documented; TAO's text says > 0",
    "train.ema.decay": "a decay lies in (0, 1]; TAO states only > 0, as text",
    "train.optim.lr": "TAO states the bound > 0 only as text",
    "train.optim.lr_backbone": "TAO states the bound > 0 only as text",
    "train.optim.momentum": "a momentum lies in (0, 1]; TAO states only > 0, as text",
    "train.optim.weight_decay": "0 (no decay) is usual; TAO's text says > 0",
    "train.optim.lr_steps": "an epoch cannot be negative",
    "train.optim.lr_step_size": "TAO states the bound > 0 only as text",
    "train.optim.lr_decay": "TAO states the bound > 0 only as text",
    "evaluate.conf_threshold": "a score lies in 0..1",
    "inference.conf_threshold": "a score lies in 0..1",
    "inference.input_width": "null = the trained size; the documented 960 would stretch every model's input",
    "inference.input_height": "null = the trained size; the documented 544 would stretch every model's input",
    "export.gpu_id": "a GPU index cannot be negative",
    "export.input_width": "null = the trained size; 960 fits only a model trained at 544 x 960",
    "export.input_height": "null = the trained size; 544 fits only a model trained at 544 x 960",
    "distill.bindings": "the items are checked field by field",
}

# Fields that are accepted and have no effect, with the reason that is printed when a spec sets one.
INERT: dict[str, str] = {
    "model_name": "it only serves TAO's launcher",
    "encryption_key": "checkpoints are not encrypted",
    "model.clip_max_norm": "gradients are clipped by train.clip_grad_norm",
    "model.backbone_names": "the backbone's parameters are known without a name pattern",
    "train.optim.monitor_name": "neither MultiStep nor StepLR watches a metric",
    "wandb.reinit": "one process makes one run",
    "gen_trt_engine.input_channel": "the ONNX file says it",
    "gen_trt_engine.input_width": "the ONNX file says it",
    "gen_trt_engine.input_height": "the ONNX file says it",
}

# Fields whose feature is not part of this version: any other value than the default is an error, not a surprise.
NOT_YET: dict[str, str] = {
    "model.frozen_fm.enabled": "a frozen foundation model is not part of this version",
    "evaluate.is_quantized": "quantized checkpoints are not part of this version",
    "inference.is_quantized": "quantized checkpoints are not part of this version",
}

# Sections of commands that this version does not have: checked like all others, read by nothing yet.
SECTIONS_NOT_YET = ("export", "gen_trt_engine", "distill", "quantize")

# Other spellings of fields (TAO's documentation has them) -> the field.
FIELD_ALIASES: dict[str, str] = {
    "evaluate.nput_width": "evaluate.input_width",
}

# Other spellings of values: field -> {spelling: value}.
VALUE_ALIASES: dict[str, dict[str, str]] = {
    "model.backbone": BACKBONE_ALIASES,
    "distill.teacher.backbone": BACKBONE_ALIASES,
    "quantize.backend": {"modelopt": "modelopt.pytorch"},
}

# What a command cannot do without; the alternatives of one line are separated by |.
REQUIRED: dict[str, tuple[str, ...]] = {
    "train": ("dataset.train_data_sources", "dataset.val_data_sources"),
    "evaluate": ("evaluate.checkpoint|evaluate.trt_engine", "dataset.test_data_sources"),
    "inference": ("inference.checkpoint|inference.trt_engine", "dataset.infer_data_sources"),
    "export": ("export.checkpoint", "export.onnx_file"),
    "gen_trt_engine": ("gen_trt_engine.onnx_file", "gen_trt_engine.trt_engine"),
    "distill": (
        "dataset.train_data_sources",
        "dataset.val_data_sources",
        "distill.pretrained_teacher_model_path",
    ),
    "quantize": ("quantize.model_path",),
}
