"""Post-training quantisation of graphs to int8, for OpenVINO, by NNCF.

Activations get their ranges from what a float32 predictor feeds its graphs on calibration images.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from balms_det.deploy import Description, Predictor
from balms_det.deploy.engines import Graph, import_engine, openvino_graph

# Layers that end a graph stay in float32: nothing after them averages their rounding away, and a
# box or a score is what they say.
FLOAT_LAYERS = (
    "rpn_head.objectness_logits",
    "rpn_head.anchor_deltas",
    "predictor.cls_score",
    "predictor.bbox_pred",
    "head.predictor",
    # The mask head's, of the own class of each instance: its weights are gathered, then multiplied.
    "aten::index",
    "aten::baddbmm",
)
_SOME_BOX = (0.0, 0.0, 32.0, 32.0)
# More add time and hardly change a range.
MOST_IMAGES = 300


class CalibrationInputs:
    """The inputs of one graph on the calibration images, computed anew in each pass.

    Kept, those of large images would not fit into memory.
    """

    def __init__(
        self,
        description: Description,
        graphs: Mapping[str, Graph],
        name: str,
        images: Sequence[np.ndarray],
    ) -> None:
        """
        Args:
            graphs: of the description, float32.
            name: of the graph whose inputs are wanted.
            images: (H, W, 3) uint8 RGB.
        """
        self._predictor = Predictor(description, {**graphs, name: _stop})
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for image in self._images:
            try:
                self._predictor(image)
            except _Reached as reached:
                yield without_empty_levels(reached.inputs)


class _Reached(Exception):
    """A predictor has come to the graph whose inputs are wanted."""

    def __init__(self, inputs: list[np.ndarray]) -> None:
        self.inputs = inputs


def _stop(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    raise _Reached([np.array(array) for array in inputs])


def without_empty_levels(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the inputs of a graph with a box, of class 0, for each level that has none.

    The range of nothing has infinite ends, and all levels share one.

    Args:
        inputs: feature maps, boxes (R_l, 4) of each level, perhaps classes (R,); or an image.
    """
    maps = [array for array in inputs if array.ndim == 4]
    boxes = [array for array in inputs if array.ndim == 2]
    per_box = [array for array in inputs if array.ndim == 1]
    ends = np.cumsum([len(each) for each in boxes], dtype=np.int64)
    at = [end for end, each in zip(ends.tolist(), boxes, strict=True) if not len(each)]
    one = np.array([_SOME_BOX], np.float32)
    filled = [each if len(each) else one for each in boxes]
    return [*maps, *filled, *(np.insert(array, at, 0) for array in per_box)]


def quantized_models(
    models: Mapping[str, Any], description: Description, images: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Return OpenVINO models with int8 convolutions and matrix products.

    Args:
        models: float32, by the names of their files; they are not changed.
        description: of the model, as of :func:`balms_det.export.describe.describe`.
        images: (H, W, 3) uint8 RGB, from the training set; the first 300 count.
    """
    nncf = import_engine("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    graphs: dict[str, Graph] = {
        name: openvino_graph(model, "float32", None) for name, model in models.items()
    }
    patterns = [f".*{re.escape(layer)}.*" for layer in FLOAT_LAYERS]
    result = {}
    for name, model in models.items():
        inputs = CalibrationInputs(description, graphs, name, images[:MOST_IMAGES])
        result[name] = nncf.quantize(
            model.clone(),
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False),
        )
    return result
