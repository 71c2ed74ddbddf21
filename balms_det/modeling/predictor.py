"""The last layers of the box head: class logits and box deltas, for every method alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.calibration import (
    Calibration,
    LogitNormalisation,
    TauNormalisation,
    build_calibration,
    build_logit_calibration,
)
from balms_det.classifier import choose_classifier
from balms_det.losses.criterion import Criterion, build_criterion
from balms_det.modeling.deferred_scalars import put_scalar
from balms_det.modeling.inference import PredictedBoxes, select_detections
from balms_det.runtime.errors import InputError


@dataclass(frozen=True)
class ClassDeltas:
    """Box deltas of R RoIs for any of K classes, computed for those that are asked for.

    Training asks for those of a RoI's own class; with a thousand classes the others are most of the
    predictor's work.

    Attributes:
        features: (R, C) of the RoIs.
        layer: from C to 4 * K.
    """

    features: Tensor
    layer: nn.Linear

    def at(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Return (N, 4) deltas of the RoIs in `rows` for `classes`, both (N,) int64."""
        weight = self.layer.weight.unflatten(0, (-1, 4))[classes]  # (N, 4, C)
        bias = self.layer.bias.unflatten(0, (-1, 4))[classes]
        return torch.baddbmm(bias[:, :, None], weight, self.features[rows, :, None])[:, :, 0]


class LongTailPredictor(FastRCNNOutputLayers):
    """Detectron2's Fast R-CNN predictor with the classification left to a :class:`Criterion`.

    Parameter names and shapes are those of Detectron2, and of the authors' release for sigmoid
    methods, whose ``cls_score`` has no background column.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        criterion: Criterion,
        classifier: Callable[[int, int], nn.Linear] = nn.Linear,
        prior_prob: float = 0.001,
        calibration: Calibration | None = None,
        logit_calibration: TauNormalisation | LogitNormalisation | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape: of the box head's output.
            num_classes: K.
            criterion: the classification loss and the meaning of the logits.
            classifier: makes the layer that gives the logits, from its numbers of inputs and
                outputs.
            prior_prob: initial probability of every class under a sigmoid, in (0, 1).
            calibration: correction of the probabilities at test time.
            logit_calibration: correction of the foreground logits at test time.
            kwargs: of :class:`FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, num_classes=num_classes, **kwargs)
        self.criterion = criterion
        self.calibration = calibration
        self.logit_calibration = logit_calibration
        activation = criterion.activation
        self.cls_score = classifier(self.cls_score.in_features, activation.num_logits(num_classes))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        with torch.no_grad():
            self.cls_score.bias.copy_(activation.initial_bias(num_classes, prior_prob))

    @classmethod
    def from_config(cls, cfg: Any, input_shape: ShapeSpec) -> dict[str, Any]:
        long_tail = cfg.MODEL.LONG_TAIL
        stats = class_stats_for(cfg.MODEL.ROI_HEADS.NUM_CLASSES, long_tail.STATS_FILE)
        criterion = build_criterion(
            long_tail, cfg.MODEL.ROI_HEADS.NUM_CLASSES, stats, training_iteration
        )
        return {
            **super().from_config(cfg, input_shape),
            "criterion": criterion,
            "classifier": choose_classifier(long_tail),
            "prior_prob": long_tail.LOSS.PRIOR_PROB,
            "calibration": build_calibration(
                long_tail, stats, exclusive=criterion.activation.exclusive
            ),
            "logit_calibration": build_logit_calibration(cfg),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | ClassDeltas]:
        """Return (R, ...) features of the RoIs of all images -> (R, num_logits) logits, and box
        deltas.

        The deltas are (R, 4K) or (R, 4), or class-specific and in training, :class:`ClassDeltas`.
        """
        if not self.training or self.bbox_pred.out_features == 4:
            return super().forward(x)
        x = x.flatten(1)
        return self.cls_score(x), ClassDeltas(x, self.bbox_pred)

    def losses(
        self, predictions: tuple[Tensor, Tensor | ClassDeltas], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Return the classification and box regression losses of one batch.

        Args:
            predictions: of :meth:`forward`, for all images.
            proposals: per image, with ``proposal_boxes``, ``gt_classes`` and, where there is an
                object, ``gt_boxes``.

        Returns:
            "loss_cls" and "loss_box_reg", scalars, each per sampled proposal.
        """
        logits, deltas = predictions
        empty = logits.new_zeros((0, 4), dtype=torch.float32)
        gt_classes = cat([logits.new_zeros(0).long(), *(p.gt_classes for p in proposals)])
        proposal_boxes = cat([empty, *(p.proposal_boxes.tensor for p in proposals)])
        # An image without objects has no gt_boxes; its proposals are all background, whose boxes
        # no loss reads.
        gt_boxes = cat(
            [
                empty,
                *(
                    (p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor
                    for p in proposals
                ),
            ]
        )
        # The host waits for the device once to know these rows, as in Detectron2's box_reg_loss.
        rows = (gt_classes < self.num_classes).nonzero()[:, 0]
        own = self._own_deltas(deltas, rows, gt_classes[rows])
        box_reg_loss = self._foreground_box_loss(own, proposal_boxes[rows], gt_boxes[rows])
        box_reg_loss = box_reg_loss / max(len(gt_classes), 1)
        return {
            **self.classification_loss(logits, gt_classes, rows),
            "loss_box_reg": box_reg_loss * self.loss_weight.get("loss_box_reg", 1.0),
        }

    def _own_deltas(self, deltas: Tensor | ClassDeltas, rows: Tensor, classes: Tensor) -> Tensor:
        """Return (N, 4) deltas of the RoIs in `rows` for `classes`, both (N,) int64."""
        if isinstance(deltas, ClassDeltas):
            return deltas.at(rows, classes)
        of_class = deltas.unflatten(1, (-1, 4))
        return of_class[rows, classes if of_class.shape[1] > 1 else 0]

    def _foreground_box_loss(self, deltas: Tensor, proposals: Tensor, boxes: Tensor) -> Tensor:
        """Return the summed loss of (N, 4) deltas against (N, 4) boxes of objects."""
        loss: Tensor = _dense_box_regression_loss(
            [proposals],
            self.box2box_transform,
            [deltas[None]],
            [boxes],
            ...,  # all of them are foreground
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return loss

    def classification_loss(
        self, logits: Tensor, gt_classes: Tensor, foreground: Tensor
    ) -> dict[str, Tensor]:
        """Return the part of :meth:`losses` that trains the classifier.

        Args:
            logits: (R, num_logits).
            gt_classes: (R,) in [0, K].
            foreground: (N,) rows whose class is not K.

        Returns:
            "loss_cls", a scalar.
        """
        _log_foreground_accuracy(logits[foreground, : self.num_classes], gt_classes[foreground])
        weight = self.loss_weight.get("loss_cls", 1.0)
        return {"loss_cls": self.criterion(logits, gt_classes) * weight}

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor | ClassDeltas], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Return per image the (R_i, 4) boxes of each proposal's own class, any for background."""
        logits, deltas = predictions
        if isinstance(deltas, ClassDeltas):
            classes = cat([p.gt_classes for p in proposals]).clamp(max=self.num_classes - 1)
            deltas = deltas.at(torch.arange(len(classes), device=classes.device), classes)
        return super().predict_boxes_for_gt_classes((logits, deltas), proposals)

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Return per image the detections, and the (N,) index of the proposal of each."""
        probs = self.predict_probs(predictions, proposals)
        deltas = predictions[1].split([len(image) for image in proposals])
        selected = [
            self.select(
                PredictedBoxes(image_deltas, image.proposal_boxes.tensor, self.box2box_transform),
                scores,
                image.image_size,
            )
            for image_deltas, scores, image in zip(deltas, probs, proposals, strict=True)
        ]
        return [detections for detections, _ in selected], [rows for _, rows in selected]

    def select(
        self, boxes: PredictedBoxes, scores: Tensor, image_size: tuple[int, int]
    ) -> tuple[Instances, Tensor]:
        """Return :func:`select_detections` with the thresholds of the configuration."""
        return select_detections(
            boxes,
            scores,
            image_size,
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Return per image the (R_i, K + 1) probabilities, background last.

        They are those of the raw logits, corrected as MODEL.LONG_TAIL.CALIBRATION says. Only
        inference needs them.
        """
        logits, _ = predictions
        return self.calibrated_probs(logits).split([len(p) for p in proposals])

    def calibrated_probs(self, logits: Tensor) -> Tensor:
        """Return (R, num_logits) logits -> (R, K + 1) calibrated probabilities, background last."""
        if self.logit_calibration is not None:
            foreground, others = logits.float().tensor_split([self.num_classes], dim=1)
            foreground = self.logit_calibration(foreground, self.cls_score)
            logits = torch.cat([foreground, others], dim=1)
        probs = self.criterion.activation.probs(logits)
        return probs if self.calibration is None else self.calibration(probs)


def class_stats_for(num_classes: int, path: str) -> ClassStats | None:
    """Return the statistics in the file at `path`, or None where it is empty.

    Raises:
        InputError: the file cannot be used, or is of other than `num_classes` classes.
    """
    if not path:
        return None
    stats = ClassStats.load(path)
    check_class_stats(stats, num_classes, path)
    return stats


def check_class_stats(stats: ClassStats, num_classes: int, source: str) -> None:
    """Refuse statistics of another number of classes than the model's.

    Raises:
        InputError: names `source` and both numbers.
    """
    if stats.num_classes != num_classes:
        raise InputError(
            f"{source}: the statistics are of {stats.num_classes} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}; set it to {stats.num_classes}, or "
            "name the statistics of the training set in MODEL.LONG_TAIL.STATS_FILE"
        )


def _log_foreground_accuracy(logits: Tensor, gt_classes: Tensor) -> None:
    """Log how often the highest of the (N, K) foreground logits is the right one of (N,) classes.

    Detectron2's own statistics take the last column for the background, which sigmoid
    classifiers do not have.
    """
    # Without foreground the mean is NaN, which is not logged.
    accuracy = (logits.argmax(dim=1) == gt_classes).float().mean()
    put_scalar("fast_rcnn/fg_cls_accuracy", accuracy, skip_nan=True)


def training_iteration() -> int:
    """Return the iteration of the Detectron2 trainer whose step calls this."""
    return int(get_event_storage().iter)
