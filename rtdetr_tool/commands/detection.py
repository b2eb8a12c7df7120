"""What evaluate and inference share: the model, its spec, devices and the loader."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from rtdetr_tool.data.build import build_loader
from rtdetr_tool.data.preprocess import input_size
from rtdetr_tool.errors import UserError
from rtdetr_tool.runtimes.open import OpenedModel, open_model
from rtdetr_tool.spec import MISSING, AugmentationSpec, EvaluateSpec, ExperimentSpec, InferenceSpec, LoadedSpec
from rtdetr_tool.training.distributed import rank, start_processes, world_size


@dataclass
class Detecting:
    """An opened model, ready to run over a data set."""

    model: OpenedModel
    spec: ExperimentSpec  # with the command's input size and batch size in the `dataset` section

    def loader(self, dataset: Dataset) -> DataLoader:
        """This process's share of `dataset`, in order, nothing repeated."""
        return build_loader(dataset, self.spec.dataset, training=False, rank=rank(), world_size=world_size())


def open_for(loaded: LoadedSpec, section: EvaluateSpec | InferenceSpec) -> Detecting:
    """Start the processes that the section asks for and open its checkpoint or engine in each."""
    path = section.trt_engine or section.checkpoint
    if path == MISSING:
        raise UserError("a checkpoint is missing")
    device = start_processes(section.num_gpus, section.gpu_ids, section.num_nodes)
    model = open_model(path, loaded, device, section.onnx_provider)
    dataset = model.spec.dataset
    if section.batch_size > 0:
        dataset = replace(dataset, batch_size=section.batch_size)
    if section.input_height and section.input_width:
        size = [section.input_height, section.input_width]
        dataset = replace(dataset, augmentation=replace(dataset.augmentation, eval_spatial_size=size))
    check_input_size(model.runtime.input_size, dataset.augmentation, path)
    return Detecting(model, replace(model.spec, dataset=dataset))


def check_input_size(fixed: tuple[int, int] | None, augmentation: AugmentationSpec, path: str) -> None:
    """A graph or engine takes one size; another asked for by the command's section is an error."""
    wanted = input_size(augmentation.eval_spatial_size, augmentation.preserve_aspect_ratio)
    if fixed is not None and wanted != fixed:
        raise UserError(
            f"{path} takes inputs of {fixed[0]} x {fixed[1]} (height x width) only, not {wanted[0]} x {wanted[1]}: "
            "leave input_height and input_width out, or export the model with that size"
        )
