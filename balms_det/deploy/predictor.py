"""An exported model as a function from images to detections.

Shapes: R RoIs, K classes, N detections, M the edge of the mask head's masks.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from balms_det.deploy.boxes import are_larger, by_level, clip, decode
from balms_det.deploy.description import Description, Levels, read_description
from balms_det.deploy.engines import Graph, load_graph
from balms_det.deploy.image import padded, resized
from balms_det.deploy.masks import paste_mask
from balms_det.deploy.proposals import find_proposals
from balms_det.deploy.selection import select

Features = Mapping[str, np.ndarray]  # by name

# Instances whose masks are computed at once; more take memory, not less time.
_MASK_CHUNK = 64


@dataclass(frozen=True)
class Detections:
    """The N detections of an image, the best first.

    Attributes:
        image_size: (height, width) in pixels.
        boxes: (N, 4) float32, x1 y1 x2 y2 in pixels.
        scores: (N,) float32 in [0, 1].
        classes: (N,) int64 in [0, K).
        mask_probs: (N, M, M) float32, each mask in its box; None for a model without masks.
    """

    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_probs: np.ndarray | None

    def __len__(self) -> int:
        return len(self.scores)

    def mask(self, i: int) -> np.ndarray:
        """Return the (height, width) bool mask of detection `i`."""
        assert self.mask_probs is not None, "the model predicts no masks"
        return paste_mask(self.mask_probs[i], self.boxes[i], self.image_size)

    def at(self, rows: np.ndarray) -> "Detections":
        """Return the detections at `rows`, indices or bool."""
        return Detections(
            self.image_size,
            self.boxes[rows],
            self.scores[rows],
            self.classes[rows],
            None if self.mask_probs is None else self.mask_probs[rows],
        )


class Predictor:
    """An exported model that predicts one image at a time.

    A predictor's graphs reuse their memory: give each thread its own.

    Attributes:
        description: of the model; its `classes` has the names.
    """

    def __init__(self, description: Description, graphs: Mapping[str, Graph]) -> None:
        """
        Args:
            description: of the exported model.
            graphs: by the names of their files.
        """
        self.description = description
        self._graphs = graphs

    @classmethod
    def from_exported(
        cls, folder: str | os.PathLike[str], *, threads: int | None = None
    ) -> "Predictor":
        """Return the predictor of the model that `balms-det export` wrote into `folder`.

        Args:
            threads: of the engine; None leaves their number to it.

        Raises:
            InputError: there is no such model, or its engine is not installed.
        """
        description = read_description(folder)
        form, precision = description.format, description.precision
        graphs = {
            name: load_graph(Path(folder) / name, form, precision, threads)
            for name in description.graphs()
        }
        return cls(description, graphs)

    def __call__(self, image: np.ndarray) -> Detections:
        """Return the detections in an (H, W, 3) uint8 RGB image.

        Raises:
            InputError: it is not such an image.
        """
        height, width = image.shape[:2]
        return self.predict_resized(resized(image, self.description.image), (height, width))

    def predict_resized(self, image: np.ndarray, output_size: tuple[int, int]) -> Detections:
        """Return the detections in an image that has the model's size and order of channels.

        Args:
            image: (H, W, 3), values in [0, 255].
            output_size: (height, width) of the image before it was resized, in whose pixels the
                boxes are.
        """
        image_size = image.shape[0], image.shape[1]
        proposals = self.description.proposals
        outputs = self._graphs[proposals.graph]([padded(image, self.description.image)])
        num_features, num_levels = len(proposals.features), len(proposals.strides)
        features = dict(zip(proposals.features, outputs, strict=False))
        objectness = outputs[num_features : num_features + num_levels]
        deltas = outputs[num_features + num_levels :]
        boxes = find_proposals(objectness, deltas, image_size, proposals)
        boxes, scores, classes = self._detect(features, boxes, image_size)
        scale = np.array(output_size, np.float32)[::-1] / np.array(image_size, np.float32)[::-1]
        output_boxes = clip(boxes * np.tile(scale, 2), output_size)
        kept = are_larger(output_boxes, 0)
        boxes, classes = boxes[kept], classes[kept]
        masks = self._mask_probs(features, boxes, classes)
        return Detections(output_size, output_boxes[kept], scores[kept], classes, masks)

    def _detect(
        self, features: Features, boxes: np.ndarray, image_size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes (N, 4), scores and classes of the detections among (R, 4) proposals."""
        options = self.description.boxes
        if not len(boxes):
            return boxes, np.zeros(0, np.float32), np.zeros(0, np.int64)
        scores, deltas = self._run(options.stages[0].graph, features, boxes, options.levels)
        for previous, stage in itertools.pairwise(options.stages):
            boxes = clip(decode(deltas, boxes, previous.coder), image_size)
            stage_scores, deltas = self._run(stage.graph, features, boxes, options.levels)
            scores = scores + stage_scores
        scores = scores * np.float32(1 / len(options.stages))
        coder = options.stages[-1].coder
        finite = np.isfinite(scores).all(axis=1) & np.isfinite(deltas).all(axis=1)
        boxes, scores = boxes[finite], scores[finite]
        deltas = deltas[finite].reshape(len(boxes), -1, 4)  # of each class, or of all

        def boxes_at(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
            chosen = deltas[rows, classes if deltas.shape[1] > 1 else 0]
            return clip(decode(chosen, boxes[rows], coder), image_size)

        rows, classes = select(scores, boxes_at, options)
        return boxes_at(rows, classes), scores[rows, classes], classes

    def _mask_probs(
        self, features: Features, boxes: np.ndarray, classes: np.ndarray
    ) -> np.ndarray | None:
        """Return (N, M, M) masks of the (N, 4) boxes for their (N,) classes."""
        masks = self.description.masks
        if masks is None:
            return None
        probs = np.zeros((len(boxes), masks.size, masks.size), np.float32)
        for start in range(0, len(boxes), _MASK_CHUNK):
            chunk = slice(start, start + _MASK_CHUNK)
            per_box = () if masks.class_agnostic else (classes[chunk],)
            (probs[chunk],) = self._run(masks.graph, features, boxes[chunk], masks.levels, per_box)
        return probs

    def _run(
        self,
        graph: str,
        features: Features,
        boxes: np.ndarray,
        levels: Levels,
        per_box: Sequence[np.ndarray] = (),
    ) -> list[np.ndarray]:
        """Return the outputs of a graph of features pooled in (N, 4) boxes, and of arrays (N,)."""
        order, boxes_of_levels = by_level(boxes, levels)
        maps = [features[name] for name in levels.features]
        outputs = self._graphs[graph]([*maps, *boxes_of_levels, *(each[order] for each in per_box)])
        original = order.argsort()
        return [output[original] for output in outputs]
