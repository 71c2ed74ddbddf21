"""From class probabilities and boxes to detections, when there are a thousand classes.

Shapes and names used throughout:
    R: RoIs of one image. K: foreground classes; the last of K + 1 score columns is the background.
    candidate: one (RoI, class) pair whose score exceeds the threshold. There are up to R * K.
"""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from balms_det.deploy.suppression import TOO_CLOSE, class_wise_nms, overlaps
from balms_det.runtime.transfers import to_device

# Up to as many candidates torchvision suppresses all classes at once, with boxes moved apart by
# class, which rounds overlaps differently. Equal results mean doing the same.
_FEW_CANDIDATES = {"cpu": 1000, "cuda": 25_000}
# Most candidates of one image survive suppression, so that a few times as many suffice.
_FIRST_CHUNK = 4
# Scores are ruled out by the best of as many at a time.
_BLOCK = 64
# Boxes decoded from deltas and proposals up to this are finite.
_BOUND = 1e15


@dataclass(frozen=True)
class PredictedBoxes:
    """The boxes of one image's RoIs, class-specific or not, decoded where they are looked at.

    Attributes:
        values: (R, 4 * K) or (R, 4) box deltas, or without `proposals` the boxes themselves,
            x1 y1 x2 y2 in pixels.
        proposals: (R, 4) boxes that the deltas are relative to.
        transform: decodes them.
    """

    values: Tensor
    proposals: Tensor | None = None
    transform: Box2BoxTransform | None = None

    def all(self) -> Tensor:
        """Return (R, 4 * K) or (R, 4) boxes."""
        if self.proposals is None:
            return self.values
        return self.transform.apply_deltas(self.values, self.proposals)

    def at(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Return (N, 4) boxes of the RoIs in `rows` for `classes`, both (N,) int64."""
        values = self.values.unflatten(1, (-1, 4))
        values = values[rows, classes if values.shape[1] > 1 else 0]
        if self.proposals is None:
            return values
        return self.transform.apply_deltas(values, self.proposals[rows])

    def are_bounded(self) -> Tensor:
        """Return whether, for certain, all boxes are finite: a bool scalar."""
        bounded = _is_bounded(self.values)
        return bounded if self.proposals is None else bounded & _is_bounded(self.proposals)


def select_detections(
    boxes: PredictedBoxes,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """Return the image's best detections after class-wise suppression, equal to Detectron2's.

    Detectron2 suppresses among all candidates of every class and then keeps the `topk_per_image`
    best. But whether a candidate survives depends on better-scored ones alone. So it is enough to
    walk down from the best in growing chunks until as many have survived as are wanted: what
    follows can neither be kept nor change what is.

    Args:
        boxes: of R RoIs.
        scores: (R, K + 1) probabilities.
        image_shape: (height, width) in pixels, to which boxes are clipped.
        score_thresh: candidates must score higher.
        nms_thresh: a box that overlaps a better one of its class by a larger IoU is dropped.
        topk_per_image: how many detections to keep; negative keeps all.

    Returns:
        Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, the best first, and the
        (N,) row of each in the arguments without their rows that are not finite, both exactly as
        :func:`detectron2.modeling.roi_heads.fast_rcnn.fast_rcnn_inference_single_image` has them.
    """
    options = (image_shape, score_thresh, nms_thresh, topk_per_image)
    is_finite = boxes.are_bounded() & _is_bounded(scores)
    index = _selected(boxes, scores, *options, is_finite=is_finite)
    if index is None:
        decoded = boxes.all()
        finite = decoded.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
        boxes, scores = PredictedBoxes(decoded[finite]), scores[finite]
        index = _selected(boxes, scores, *options, is_finite=torch.ones_like(is_finite))
        assert index is not None
    rows, classes = _rows_and_classes(index, scores)
    result = Instances(image_shape)
    result.pred_boxes = Boxes(_clipped(boxes.at(rows, classes), image_shape))
    result.scores = scores[rows, classes]
    result.pred_classes = classes
    return result, rows


def _selected(
    boxes: PredictedBoxes,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
    *,
    is_finite: Tensor,
) -> Tensor | None:
    """Return (N,) indices of the detections, the best first, into the flat scores of the classes.

    None where `is_finite`, a bool scalar, is false.
    """
    flat_scores = scores[:, :-1].flatten()  # (R * K,), RoI by RoI
    num_candidates = torch.count_nonzero(flat_scores > score_thresh)
    chunk = len(flat_scores) if topk_per_image < 0 else max(1, _FIRST_CHUNK * topk_per_image)
    while True:
        best, index = _best(flat_scores, min(chunk, len(flat_scores)))
        rows, classes = _rows_and_classes(index, scores)
        chunk_boxes = _clipped(boxes.at(rows, classes), image_shape).float()
        # The one wait for the device: a chunk is small, and a loop of decisions follows.
        (finite, total), best_, index_, classes_, boxes_ = _to_host(
            torch.stack([is_finite, num_candidates]), best, index, classes, chunk_boxes
        )
        if not finite:
            return None
        if total <= _FEW_CANDIDATES.get(scores.device.type, 0):
            # As nonzero() has them, but their number is known, so that nobody waits for it.
            index = _best(flat_scores, int(total))[1].sort().values
            keep = _suppress_all(boxes, scores, index, image_shape, nms_thresh)
            return index[keep] if topk_per_image < 0 else index[keep[:topk_per_image]]

        order = np.lexsort((index_, -best_))[: int(total)]  # equal scores by their index
        exact = _ExactNMS(chunk_boxes, best, boxes_, order, nms_thresh)
        keep = class_wise_nms(boxes_[order], classes_[order], nms_thresh, exact)
        is_all = len(order) == total
        if not is_all:
            # Others that tie with the last may lie beyond the chunk.
            keep = keep[best_[order[keep]] > best_[order[-1]]]
        if is_all or len(keep) >= topk_per_image:
            keep = order[keep] if topk_per_image < 0 else order[keep[:topk_per_image]]
            return index[to_device(torch.from_numpy(keep), index.device)]
        chunk *= _FIRST_CHUNK


def _suppress_all(
    boxes: PredictedBoxes,
    scores: Tensor,
    index: Tensor,
    image_shape: tuple[int, int],
    nms_thresh: float,
) -> Tensor:
    """Return the positions in `index` of the candidates that survive, the best first.

    Few candidates of all classes are suppressed at once, as Detectron2 does.
    """
    rows, classes = _rows_and_classes(index, scores)
    few_boxes = _clipped(boxes.at(rows, classes), image_shape)
    return batched_nms(few_boxes, scores[rows, classes], classes, nms_thresh)


@dataclass(frozen=True)
class _ExactNMS:
    """Suppression by torchvision among some members of a chunk of candidates.

    It runs on the host, where the boxes are. If the host cannot decide, because an overlap is too
    near to the threshold, it runs on the device, and the host waits.

    Attributes:
        boxes: (C, 4) of the chunk, on the device.
        scores: (C,), on the device.
        boxes_on_host: (C, 4), the same.
        order: (N,) positions in the chunk, the best-scored first.
        nms_thresh: as of :func:`select_detections`.
    """

    boxes: Tensor
    scores: Tensor
    boxes_on_host: np.ndarray
    order: np.ndarray
    nms_thresh: float

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """Return the members, positions in `order`, that survive."""
        which = self.order[members]
        boxes = self.boxes_on_host[which].astype(np.float32)
        ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32)  # as the scores order them
        kept = nms(torch.from_numpy(boxes), ranks, self.nms_thresh).numpy()
        device = self.boxes.device
        if device.type != "cpu":
            # Only overlaps with boxes that are kept decide anything.
            margins = np.abs(overlaps(boxes[kept, None], boxes) - self.nms_thresh)
            if (margins < TOO_CLOSE).any():
                on_device = to_device(torch.from_numpy(which), device)
                scores = self.scores[on_device]
                kept = nms(self.boxes[on_device], scores, self.nms_thresh).cpu().numpy()
        return members[kept]


def _rows_and_classes(index: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and class of every index into the flat scores of the classes."""
    num_classes = scores.shape[1] - 1
    return index // num_classes, index % num_classes


def _clipped(boxes: Tensor, image_shape: tuple[int, int]) -> Tensor:
    # As Boxes.clip, which also asks the device whether all is finite.
    height, width = image_shape
    limits = (width, height, width, height)
    return torch.stack([boxes[:, i].clamp(0, limit) for i, limit in enumerate(limits)], dim=1)


def _is_bounded(values: Tensor) -> Tensor:
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    low, high = values.aminmax()  # NaN if any is
    return (low > -_BOUND) & (high < _BOUND)


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of the (N,) values, and their indices.

    Which of those that tie with the least of them is open.
    """
    blocks = values[: len(values) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    if len(blocks) < count:
        return tuple(values.topk(count))
    # They lie in the blocks whose best are the best, or in the rest that makes no block.
    which = blocks.amax(dim=1).topk(count, sorted=False).indices
    within = which[:, None] * _BLOCK + torch.arange(_BLOCK, device=values.device)
    rest = torch.arange(blocks.numel(), len(values), device=values.device)
    index = torch.cat([within.flatten(), rest])
    best, position = values[index].topk(count, sorted=False)
    return best, index[position]


def _to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Return arrays of the tensors, in float64, fetched all at once."""
    flat = torch.cat([tensor.detach().flatten().double() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    parts = np.split(flat, ends)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
