from .api import RTDETR as RTDETR
from .api import Detector as Detector
from .api import PlainDetections as PlainDetections
from .api import RFDETR2XLarge as RFDETR2XLarge
from .api import RFDETRBase as RFDETRBase
from .api import RFDETRLarge as RFDETRLarge
from .api import RFDETRLarge2025 as RFDETRLarge2025
from .api import RFDETRMedium as RFDETRMedium
from .api import RFDETRNano as RFDETRNano
from .api import RFDETRSmall as RFDETRSmall
from .api import RFDETRXLarge as RFDETRXLarge
from .errors import RtdetrError as RtdetrError
from .errors import UserError as UserError
from .formats.opening import open_model as open_model
from .losses.build import build_criterion as build_criterion
from .metrics.coco import CocoEvaluator as CocoEvaluator
from .models.build import build_detector as build_detector
from .spec import ExperimentSpec as ExperimentSpec
from .spec import load_spec as load_spec
from .spec import read_spec as read_spec
from .training import DetectionDataModule as DetectionDataModule
from .training import DetectorModule as DetectorModule
from .training import build_trainer as build_trainer
from .training import convert_legacy_checkpoint as convert_legacy_checkpoint

__version__: str
