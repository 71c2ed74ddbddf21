"""Running exported models with NumPy and an engine: neither PyTorch nor Detectron2 is needed."""

from balms_det.deploy.description import Description, read_description
from balms_det.deploy.predictor import Detections, Predictor

__all__ = ["Description", "Detections", "Predictor", "read_description"]
