"""The features that the classifier sees, taken out of a detector and put back into its training.

Shapes: R_i RoIs of image i, D features of a RoI, K foreground classes, background index K.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from balms_det.runtime.transfers import to_device


@torch.no_grad()
def sampled_roi_features(
    model: nn.Module, batched_inputs: Sequence[Mapping[str, Any]], *, at_most: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return the features and classes that a training iteration gives to its classifier.

    Args:
        model: a GeneralizedRCNN with :class:`LongTailROIHeads`, in training mode, inside an
            EventStorage: proposals are sampled, as in training, with PyTorch's random generator.
        batched_inputs: of Detectron2's training mapper.
        at_most: None samples proposals as training does; a number keeps up to so many of each
            image, those on an object before the others.

    Returns:
        For each image its (R_i, D) features and (R_i,) classes in [0, K].
    """
    heads = model.roi_heads
    images = model.preprocess_image(batched_inputs)
    targets = [each["instances"].to(model.device) for each in batched_inputs]
    feature_maps = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, feature_maps, targets)
    with contextlib.nullcontext() if at_most is None else _keeping(heads, at_most):
        sampled = heads.label_and_sample_proposals(proposals, targets)
    pooled = heads.box_pooler(
        [feature_maps[name] for name in heads.box_in_features],
        [each.proposal_boxes for each in sampled],
    )
    features = heads.box_head(pooled).flatten(1)
    per_image = features.split([len(each) for each in sampled])
    return [(rows, each.gt_classes) for rows, each in zip(per_image, sampled, strict=True)]


@contextlib.contextmanager
def _keeping(heads: nn.Module, at_most: int) -> Iterator[None]:
    """Let `heads` keep up to so many proposals of an image, those on an object first."""
    before = heads.batch_size_per_image, heads.positive_fraction
    heads.batch_size_per_image, heads.positive_fraction = at_most, 1.0
    try:
        yield
    finally:
        heads.batch_size_per_image, heads.positive_fraction = before


def train_on_features(model: nn.Module) -> None:
    """Let `model` take features for images in training, in place; inference stays as it is.

    A batch is then, for each image, a dictionary with "features" (R_i, D) and "gt_classes" (R_i,),
    and the only loss is the classifier's.
    """
    model.forward = functools.partial(_forward, model, model.forward)  # type: ignore


def _forward(
    model: nn.Module, whole: Callable[..., Any], batched_inputs: Sequence[Mapping[str, Any]]
) -> Any:
    if not model.training:
        return whole(batched_inputs)
    predictor = model.roi_heads.box_predictor
    features = torch.cat([each["features"] for each in batched_inputs])
    gt_classes = torch.cat([each["gt_classes"] for each in batched_inputs])
    foreground = (gt_classes < predictor.num_classes).nonzero()[:, 0]
    features, gt_classes, foreground = (
        to_device(tensor, model.device) for tensor in (features, gt_classes, foreground)
    )
    # Half precision is widened on the device, so that half as many bytes are copied.
    logits = predictor.cls_score(features.to(predictor.cls_score.weight.dtype))
    return predictor.classification_loss(logits, gt_classes, foreground)
