"""The work of an exported detector, in every format whose packages are installed."""

import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances

from balms_det.deploy import Predictor
from balms_det.deploy.description import Classes
from balms_det.export import ExportedModel, export_model, image_input
from lab.benchmark.detector import (
    detect,
    largest_differences_of_detections,
    random_detectors,
)
from lab.benchmark.measure import Comparison

# Format, precision, and the packages that both need.
_EXPORTS = (
    ("torchscript", "float32", ()),
    ("onnx", "float32", ("onnx", "onnxruntime")),
    ("openvino", "float32", ("openvino",)),
    ("openvino", "bfloat16", ("openvino",)),
    ("openvino", "int8", ("openvino", "nncf")),
)


def exported_image(
    device: str,
    *,
    classes: int = 1203,
    proposals: int = 1000,
    detections: int = 300,
    side: int = 800,
) -> Iterator[Comparison]:
    """One photograph through an exported Mask R-CNN R50-FPN, from pixels to masks of its own size.

    The weights are random, and the class scores made to spread as those of a trained detector.
    Detections are compared in float32; int8 takes its ranges from the photograph itself.

    Args:
        device: "cpu"; on others there is nothing to compare.
        classes, proposals, detections, side: as of :func:`lab.benchmark.detector.image`.
    """
    if device != "cpu":
        return
    cfg, ours, stock, inputs = random_detectors(device, classes, proposals, detections, side)
    pixels = inputs["image"].permute(1, 2, 0).round().to(torch.uint8).numpy()
    options: dict[str, Any] = {
        "image": image_input(cfg, ours),
        "classes": Classes(tuple(map(str, range(classes))), tuple(range(1, classes + 1))),
    }
    for form, precision, packages in _EXPORTS:
        if not all(map(find_spec, packages)):
            continue
        images = [pixels] if precision == "int8" else []
        with tempfile.TemporaryDirectory() as name:
            export_model(
                ours, Path(name), form=form, precision=precision, calibration_images=images,
                **options,
            )  # fmt: skip
            threads = torch.get_num_threads()
            exported = ExportedModel(Predictor.from_exported(name, threads=threads))
        is_exact = precision == "float32"
        yield Comparison(
            "detectron2",
            partial(_detect_exported, exported, inputs),
            partial(detect, stock, inputs),
            largest_differences_of_detections if is_exact else None,
            variant=form,
            dtype=precision,
        )


def _detect_exported(exported: ExportedModel, inputs: dict[str, Any]) -> Instances:
    return exported([inputs])[0]["instances"]
