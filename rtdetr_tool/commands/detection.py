"""What evaluate and inference share: the model, its spec, devices and the loader."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch.utils.data import DataLoader, Dataset

from rtdetr_tool.data.build import build_loader
from rtdetr_tool.errors import UserError
from rtdetr_tool.runtimes.open import OpenedModel, open_model
from rtdetr_tool.spec import MISSING, EvaluateSpec, ExperimentSpec, InferenceSpec, LoadedSpec
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
    if section.trt_engine:
        raise UserError(f"{section.trt_engine}: TensorRT engines are not part of this version; give a checkpoint")
    if section.checkpoint == MISSING:
        raise UserError("a checkpoint is missing")
    device = start_processes(section.num_gpus, section.gpu_ids, section.num_nodes)
    model = open_model(section.checkpoint, loaded, device)
    dataset = model.spec.dataset
    if section.batch_size > 0:
        dataset = replace(dataset, batch_size=section.batch_size)
    if section.input_height and section.input_width:
        size = [section.input_height, section.input_width]
        dataset = replace(dataset, augmentation=replace(dataset.augmentation, eval_spatial_size=size))
    return Detecting(model, replace(model.spec, dataset=dataset))
