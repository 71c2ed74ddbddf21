"""Exporting detectors to ONNX, OpenVINO and TorchScript; :mod:`balms_det.deploy` runs them."""

from balms_det.export.describe import image_input, with_counts
from balms_det.export.detectron2_model import ExportedModel, as_instances
from balms_det.export.export import FORMATS, PRECISIONS, check_precision, export_model
from balms_det.export.int8 import MOST_IMAGES

__all__ = [
    "FORMATS",
    "MOST_IMAGES",
    "PRECISIONS",
    "ExportedModel",
    "as_instances",
    "check_precision",
    "export_model",
    "image_input",
    "with_counts",
]
