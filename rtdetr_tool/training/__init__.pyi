from .datamodule import DetectionDataModule as DetectionDataModule
from .legacy import convert_legacy_checkpoint as convert_legacy_checkpoint
from .module import DetectorModule as DetectorModule
from .trainer import build_trainer as build_trainer
