"""Exporting detectors to ONNX, OpenVINO and TorchScript; :mod:`balms_det.deploy` runs them."""

from balms_det.export.describe import image_input, with_counts
from balms_det.export.export import FORMATS, PRECISIONS, export_model

__all__ = ["FORMATS", "PRECISIONS", "export_model", "image_input", "with_counts"]
