from .datamodule import DetectionDataModule as DetectionDataModule
from .module import DetectorModule as DetectorModule
from .roboflow_resume import convert_legacy_checkpoint as convert_legacy_checkpoint
from .trainer import build_trainer as build_trainer
