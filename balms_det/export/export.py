"""From a detector to a directory that :class:`balms_det.deploy.Predictor` runs."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balms_det.deploy.description import Classes, Description, ImageInput
from balms_det.deploy.engines import SUFFIXES
from balms_det.export.describe import describe, pooled_features
from balms_det.export.formats import check_format, openvino_model, save_openvino, write_graph
from balms_det.export.graphs import graphs_of
from balms_det.export.int8 import quantized_models
from balms_det.runtime.errors import InputError

FORMATS = tuple(SUFFIXES)
PRECISIONS = ("float32", "bfloat16", "int8")  # of the arithmetic of the engine


def export_model(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    form: str,
    precision: str = "float32",
    image: ImageInput,
    classes: Classes,
    license: str | None = None,
    calibration_images: Sequence[np.ndarray] = (),
) -> Description:
    """Write `model` into `folder` and return its description.

    Args:
        model: a GeneralizedRCNN with the ROI heads of this package; it is not changed.
        folder: is made; files of an earlier export are replaced.
        form: one of `FORMATS`.
        precision: one of `PRECISIONS`; other than "float32" for OpenVINO only.
        image: how images become the model's input.
        classes: K names and ids.
        license: of the weights.
        calibration_images: (H, W, 3) uint8 RGB of the training set, from which "int8" takes the
            ranges of activations.

    Raises:
        InputError: the model or the precision cannot be exported in this format, or a package for
            it is not installed.
    """
    check_precision(form, precision, len(calibration_images))
    check_format(form, precision)
    options: dict[str, Any] = {"image": image, "classes": classes, "license": license}
    description = describe(model, form=form, precision=precision, **options)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    graphs = {
        f"{graph.name}{SUFFIXES[form]}": graph for graph in graphs_of(model, pooled_features(model))
    }
    if precision == "int8":
        models = {name: openvino_model(graph) for name, graph in graphs.items()}
        for name, each in quantized_models(models, description, calibration_images).items():
            save_openvino(each, folder / name)
    else:
        for name, graph in graphs.items():
            write_graph(graph, folder / name, form)
    # Last, so that a directory with a description is complete.
    description.write(folder)
    return description


def check_precision(form: str, precision: str, num_calibration_images: int) -> None:
    """Refuse a precision that the format does not have, or calibration images that do not fit it.

    Raises:
        InputError: says which.
    """
    if precision != "float32" and form != "openvino":
        raise InputError(
            f"--precision {precision} is for --format openvino, but the format is {form}; choose "
            "openvino or float32"
        )
    if (precision == "int8") != (num_calibration_images > 0):
        raise InputError(
            f"--precision is {precision} with {num_calibration_images} images of --calibration; "
            "int8 needs images of the training set, and the other precisions take none"
        )
