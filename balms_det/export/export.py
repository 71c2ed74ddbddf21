"""From a detector to a directory that :class:`balms_det.deploy.Predictor` runs."""

import copy
import os
from pathlib import Path
from typing import Any

from balms_det.deploy.description import Classes, Description, ImageInput
from balms_det.deploy.engines import SUFFIXES
from balms_det.export.describe import describe, pooled_features
from balms_det.export.formats import check_format, write_graph
from balms_det.export.graphs import graphs_of
from balms_det.runtime.errors import InputError

FORMATS = tuple(SUFFIXES)
PRECISIONS = ("float32", "bfloat16")  # of the arithmetic of the engine


def export_model(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    form: str,
    precision: str = "float32",
    image: ImageInput,
    classes: Classes,
    license: str | None = None,
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

    Raises:
        InputError: the model or the precision cannot be exported in this format, or a package for
            it is not installed.
    """
    if precision != "float32" and form != "openvino":
        raise InputError(
            f"--precision {precision} is for --format openvino, but the format is {form}; choose "
            "openvino or float32"
        )
    check_format(form)
    options: dict[str, Any] = {"image": image, "classes": classes, "license": license}
    description = describe(model, form=form, precision=precision, **options)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for graph in graphs_of(model, pooled_features(model)):
        write_graph(graph, folder / f"{graph.name}{SUFFIXES[form]}", form)
    # Last, so that a directory with a description is complete.
    description.write(folder)
    return description
