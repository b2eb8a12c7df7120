"""Literal tables: differences from TAO's schema, and aliases of fields and values."""

from __future__ import annotations

from rtdetr_tool.catalog import BACKBONE_ALIASES

# The versions of nvidia-tao-core whose specs load: the last one before its numbering changed, and the current one.
TAO_VERSIONS = ("6.25.11", "7.3.0")

# Field -> (what differs from both versions, why), checked by a test. Bounds that the package states only as text
# (`> 0`) count as stated. What a row says about `model` also applies to `distill.teacher`.
DIFFERENCES: dict[str, tuple[str, str]] = {
    "model.backbone": ("options", "convnextv2 of TAO's documentation, edgenext of its code and ResNet-d are added"),
    "model.num_select": ("max", "the documentation has none; a detector never returns more than it has"),
    "model.return_interm_indices": ("min max", "stages are 0 to 3; other values crash TAO"),
    "model.feat_strides": ("min", "a stride below 1 is impossible"),
    "model.feat_channels": ("min", "a channel count below 1 is impossible"),
    "model.use_encoder_idx": ("min max", "at most four levels exist; other values crash TAO"),
    "model.hidden_dim": ("min", "the position embedding needs four values per frequency"),
    "model.nheads": ("min", "at least one head is needed"),
    "model.enc_act": ("options", "only the known activations; others crash TAO"),
    "model.act": ("options", "only the known activations; others crash TAO"),
    "model.loss_types": ("options", "only the known losses, others crash TAO; mal is added"),
    "dataset.infer_data_sources": ("type", "image_dir may be one folder or a list of folders, as in TAO's own specs"),
    "dataset.num_classes": ("type", "null = the number of classes in the training data"),
    "dataset.workers": ("min", "0 loads in the main process, as in PyTorch"),
    "dataset.eval_class_ids": ("min", "a category id cannot be negative"),
    "dataset.augmentation.multi_scales": ("type", "TAO's own rectangular specs give [height, width] pairs"),
    "dataset.augmentation.train_spatial_size": ("min", "the smallest size is 32, the stride of the last level"),
    "dataset.augmentation.eval_spatial_size": ("min", "the smallest size is 32, the stride of the last level"),
    "train.gpu_ids": ("min", "a GPU index cannot be negative"),
    "train.num_epochs": ("automl", "AutoML may vary it according to the documentation"),
    "train.clip_grad_norm": ("min", "0 (not clipped) is documented; the package's text says > 0"),
    "train.precision": ("options", "auto is added"),
    "train.optim.lr_scheduler": ("options", "Cosine and FlatCosine are added"),
    "train.optim.weight_decay": ("min", "0 (no decay) is usual; the package's text says > 0"),
    "train.optim.lr_steps": ("min", "an epoch cannot be negative"),
    "evaluate.gpu_ids": ("min", "a GPU index cannot be negative"),
    "evaluate.conf_threshold": ("min max", "a score is in 0..1"),
    "inference.gpu_ids": ("min", "a GPU index cannot be negative"),
    "inference.conf_threshold": ("min max", "a score is in 0..1"),
    "export.gpu_id": ("min", "a GPU index cannot be negative"),
    "export.input_channel": ("options", "models take any number of channels (model.num_channels)"),
    "export.opset_version": ("min max", "the models' operators require 12; the exporter does not support newer ones"),
    "export.format": ("options", "TAO's RT-DETR does not export xdl either"),
    "export.input_width": (
        "type default",
        "null = the trained width; a fixed default is only valid for models of that size",
    ),
    "export.input_height": (
        "type default",
        "null = the trained height; a fixed default is only valid for models of that size",
    ),
    "distill.bindings[].criterion": ("options", "only the documented criteria"),
    "quantize.layers[].module_name": ("default", "a pattern is required; the package's empty default matches nothing"),
    "quantize.layers[].weights.dtype": ("options", "only the documented types"),
    "quantize.layers[].activations.dtype": ("options", "only the documented types"),
}

_SINCE_73 = "the maximum exists only since 7.3, and a spec of 6.25.11 must still load"
# The differences from one version only.
DIFFERENCES_OF_VERSION: dict[str, dict[str, tuple[str, str]]] = {
    "6.25.11": {
        "train.ema.decay": ("max", "a decay is in (0, 1]"),
        "train.optim.momentum": ("max", "a momentum is in (0, 1]"),
    },
    "7.3.0": {
        "results_dir": ("default", "/results, as in the documentation; 7.3 has an empty text"),
        "model.enc_layers": ("max", _SINCE_73),
        "model.dec_layers": ("max", _SINCE_73),
        "train.optim.lr": ("max", _SINCE_73),
        "train.optim.lr_backbone": ("max", _SINCE_73),
        "train.optim.weight_decay": ("min max", f"0 (no decay) is usual; {_SINCE_73}"),
        "train.optim.lr_step_size": ("max", _SINCE_73),
        "train.optim.lr_decay": ("max", _SINCE_73),
    },
}

# Field -> (what differs from the tables of TAO's documentation, why we use the package's or our own value).
DOCUMENTATION_DIFFERENCES: dict[str, tuple[str, str]] = {
    "model.backbone": ("options", "efficientvit of the package, edgenext of TAO's code and ResNet-d are added"),
    "model.frozen_fm.enabled": ("default", "false, as in the package; true would require weights that are not set"),
    "dataset.train_data_sources": ("default", "null, as the package's value; empty paths cannot be used"),
    "dataset.val_data_sources": ("default", "null, as the package's value; empty paths cannot be used"),
    "dataset.test_data_sources": ("default", "null, as the package's value; empty paths cannot be used"),
    "dataset.infer_data_sources": ("default", "null, as the package's value; empty paths cannot be used"),
    "dataset.workers": ("min", "0 loads in the main process, as in PyTorch"),
    "train.optim.lr_scheduler": ("options", "Cosine and FlatCosine are added"),
    "dataset.eval_class_ids": ("default", "null (all classes), as the package's value; [1] would score one class only"),
    "export.input_channel": ("min", "1 as in the package, for gray images"),
    "export.opset_version": ("min", "the models' operators require at least 12"),
    "inference.input_width": ("default", "null = the trained width; 960 would stretch every model's input"),
    "inference.input_height": ("default", "null = the trained height; 544 would stretch every model's input"),
    "export.input_width": ("default", "null = the trained width; the documentation's example has 640, its table 960"),
    "export.input_height": ("default", "null = the trained height; the documentation's example has 640, its table 544"),
    "train.precision": ("options", "auto is added"),
}

# Other spellings of fields (in TAO's documentation) -> the field.
FIELD_ALIASES: dict[str, str] = {
    "evaluate.nput_width": "evaluate.input_width",
}

# Other spellings of values: field -> {spelling: value}.
VALUE_ALIASES: dict[str, dict[str, str]] = {
    "model.backbone": BACKBONE_ALIASES,
    "distill.teacher.backbone": BACKBONE_ALIASES,
    "quantize.backend": {"modelopt": "modelopt.pytorch"},
}

# Data source of the `dataset` section -> its forms: (required keys, optional keys). The first key identifies the form.
_LABELLED = ((("image_dir", "json_file"), ()), (("dataset_dir",), ("split",)))
SOURCE_KEYS: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "train_data_sources": _LABELLED,
    "val_data_sources": _LABELLED,
    "test_data_sources": _LABELLED,
    "infer_data_sources": ((("image_dir",), ("video", "classmap")), (("video",), ("image_dir", "classmap"))),
    "quant_calibration_data_sources": ((("image_dir",), ("json_file",)),),
}
