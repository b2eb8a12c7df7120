"""RF-DETR in the Python API: what the classes of all variants have in common."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from rtdetr_tool.api.opening import open_variant
from rtdetr_tool.api.train_arguments import warn_about_callbacks
from rtdetr_tool.catalog import COCO_CATEGORIES, RFDETR_VARIANTS
from rtdetr_tool.checkpoints.published import weights_path
from rtdetr_tool.errors import UserError
from rtdetr_tool.families.rfdetr.api_parts import DetectorWithParts
from rtdetr_tool.families.rfdetr.resolved import resolve_rfdetr

if TYPE_CHECKING:
    from rtdetr_tool.families.rfdetr.configs import ModelConfig
    from rtdetr_tool.families.rfdetr.context import ModelContext
    from rtdetr_tool.training.fit_result import FitResult

logger = logging.getLogger(__name__)


class RFDETR(DetectorWithParts):
    """An RF-DETR; its subclasses are the published variants.

    Args:
        pretrain_weights: a file or published name; by default the published weights of the variant, which are
            downloaded if they are not in the cache; None for random weights.
        num_classes: the number of your classes, without background; by default those of the weights. The class heads
            are initialized from scratch if the weights have another number.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        keywords: fields of Roboflow's `ModelConfig` (docs/rfdetr.md), of `model.rfdetr` (`resolution=448`) and of
            `model`; `accept_platform_model_license=True` where the license of the weights must be accepted (XLarge,
            2XLarge).
    """

    variant: ClassVar[str] = ""  # empty in the base class, which stands for every variant

    def __init__(
        self,
        pretrain_weights: str | os.PathLike[str] | None = "published",
        num_classes: int | None = None,
        device: torch.device | str = "auto",
        **keywords: Any,
    ) -> None:
        where = type(self).__name__
        if not self.variant:
            raise UserError(
                "RFDETR is the base class of RFDETRNano, RFDETRSmall, ...; create one of these, or open a file with "
                "RFDETR.from_checkpoint"
            )
        base = {"model.arch": "rfdetr", "model.rfdetr.variant": self.variant}
        if pretrain_weights == "published":
            pretrain_weights = Path(RFDETR_VARIANTS[self.variant].weights).stem
        super().__init__(*open_variant(pretrain_weights, base, keywords, num_classes, where), device)

    @property
    def size(self) -> str:
        """The name of the model as in Roboflow's package, such as `rfdetr-seg-nano`."""
        variant = self.spec.model.rfdetr.variant
        return "rfdetr-large" if variant == "large_2025" else f"rfdetr-{variant.replace('_', '-')}"

    @property
    def name(self) -> str:
        return f"rfdetr-{self.spec.model.rfdetr.variant.replace('_', '-')}"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by index; those of COCO for a model of that many classes without names."""
        names = list(COCO_CATEGORIES.values())
        return super().class_names or (names if (self.spec.dataset.num_classes or 0) > len(names) else [])

    def predict(
        self,
        images: Any,
        threshold: float = 0.5,
        shape: Sequence[int] | None = None,
        patch_size: int | None = None,
        include_source_image: bool = True,
        batch_size: int | None = None,
        **keywords: Any,
    ) -> Any:
        """`Detector.predict`, but a list of one image gives its detections without a list, as in Roboflow's package.

        Args:
            patch_size: must be that of the model.
            keywords: accepted and ignored, with a warning.
        """
        self._check_patch_size("predict", patch_size)
        if keywords:
            logger.warning("predict: %s has no effect", ", ".join(sorted(keywords)))
        results = super().predict(
            images, threshold, shape, include_source_image=include_source_image, batch_size=batch_size
        )
        return results[0] if isinstance(results, list) and len(results) == 1 else results

    def export(
        self,
        output_dir: str | os.PathLike[str] = "output",
        infer_dir: str | os.PathLike[str] | None = None,
        backbone_only: bool = False,
        opset_version: int = 17,
        verbose: bool = True,
        shape: Sequence[int] | None = None,
        batch_size: int = 1,
        dynamic_batch: bool = False,
        patch_size: int | None = None,
        format: str = "onnx",
        quantization: str | None = None,
        calibration_data: Any = None,
        max_images: int = 100,
        *,
        notes: Any = None,
        output_name: str | None = None,
        **keywords: Any,
    ) -> Path:
        """`Detector.export` with the names of Roboflow's package: `input` (normalized), `dets` and `labels`.

        Args:
            infer_dir: images on which the file is compared with PyTorch.
            verbose: no effect; the log shows the progress.
            patch_size: must be that of the model.
            notes: text or any JSON value, stored in the ONNX file.
            keywords: as of `Detector.export`; `layout="tao"` for TAO's names and images 0..1.
        """
        self._check_patch_size("export", patch_size)
        fields: dict[str, Any] = {"opset_version": opset_version, "format": format}
        fields |= {"quantization": quantization, "max_images": max_images}
        if format.lower() != "tflite":
            fields["layout"] = "rfdetr"
        if backbone_only:
            fields["backbone_only"] = True
        if notes is not None:
            fields["notes"] = notes if isinstance(notes, str) else json.dumps(notes)
        if infer_dir is not None:
            fields["dataset.infer_data_sources"] = {"image_dir": os.fspath(infer_dir)}
        return super().export(
            output_dir,
            shape=shape,
            batch_size=batch_size,
            dynamic_batch=dynamic_batch,
            output_name=output_name,
            calibration_data=calibration_data,
            **{**fields, **keywords},
        )

    def get_model(self, config: ModelConfig) -> ModelContext:
        """The model of a `ModelConfig`, with its `pretrain_weights`; this detector does not change."""
        from rtdetr_tool.families.rfdetr.api import VARIANTS

        given = {name: value for name, value in config.given.items() if name not in ("pretrain_weights", "num_classes")}
        device = given.pop("device", self.device)
        classes = config.given.get("num_classes")
        return VARIANTS[config.variant](config.pretrain_weights, classes, device, **given).model

    def get_train_config(self, **fields: Any) -> Any:
        """A `TrainConfig` with these fields."""
        from rtdetr_tool.families.rfdetr.configs import TrainConfig

        return TrainConfig(**fields)

    def maybe_download_pretrain_weights(self) -> None:
        """Download the published weights of the variant, if they are not in the cache."""
        section = self.spec.model.rfdetr
        given = {"rfdetr": {"accept_platform_model_license": section.accept_platform_model_license}}
        weights_path(RFDETR_VARIANTS[section.variant].weights, given)

    def train(
        self,
        callbacks: Sequence[Any] | Mapping[str, Any] = (),
        resume: str | os.PathLike[str] | bool | None = None,
        **keywords: Any,
    ) -> FitResult:
        """`Detector.train`, which also writes the files of Roboflow's package (docs/rfdetr.md)."""
        from rtdetr_tool.families.rfdetr.run_files import RunFiles
        from rtdetr_tool.training.callbacks.compatible_checkpoints import CompatibleCheckpoints

        files = CompatibleCheckpoints(RunFiles(keywords))
        if isinstance(callbacks, (list, tuple)):
            callbacks = [*callbacks, files]
        elif isinstance(callbacks, Mapping):
            warn_about_callbacks(callbacks)
            callbacks = [files]
        return super().train(callbacks, resume, **keywords)

    def _check_patch_size(self, where: str, patch_size: int | None) -> None:
        actual = resolve_rfdetr(self.spec.model.rfdetr).patch_size
        if patch_size not in (None, actual):
            raise UserError(f"{where}: patch_size {patch_size!r} is invalid; expected {actual}, the model's, or None")

    def deploy_to_roboflow(
        self,
        workspace: str,
        project_id: str,
        version: int | str | None = None,
        api_key: str | None = None,
        size: str | None = None,
    ) -> None:
        """Upload the weights to a project of Roboflow, through its package (`pip install roboflow`).

        Args:
            version: of the project; None = the newest one.
            api_key: None = `$ROBOFLOW_API_KEY`.
            size: a name as in `size`; None = that of this detector.

        Raises:
            UserError: there is no key, the package is missing, or it reports a failure.
        """
        from rtdetr_tool.families.rfdetr.roboflow import deploy

        opened = self._trainable("deploy_to_roboflow")
        deploy(opened, workspace, project_id, version, api_key, size or self.size)

    def export_for_roboflow(self, output_dir: str | os.PathLike[str]) -> None:
        from rtdetr_tool.families.rfdetr.roboflow import write_bundle

        write_bundle(self._trainable("export_for_roboflow"), Path(output_dir))
