"""Collecting the logits of a trained detector over its training proposals, for LogN."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from balms_det.calibration import LogitMoments, LogitStats
from balms_det.data import build_train_loader, load_train_dataset
from balms_det.decouple import freeze_except
from balms_det.engine.feature_cache import build_feature_loader, cached_features
from balms_det.modeling import sampled_roi_features
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

_CLASSIFIER = "roi_heads.box_predictor.cls_score"


@torch.no_grad()
def collect_logit_stats(cfg: Any, model: nn.Module) -> LogitStats:
    """Return mean and deviation of each class's logit over the proposals of one epoch.

    Images and proposals are sampled as in training. MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE names
    the folder of cached features; without it, they are computed and not kept.

    Args:
        cfg: of the detector.
        model: with its trained weights, not distributed; it is frozen.

    Raises:
        InputError: the detector's heads are not LongTailROIHeads.
    """
    if cfg.MODEL.ROI_HEADS.NAME != "LongTailROIHeads":
        raise InputError(
            f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME!r}, but logit statistics are those "
            "of one classifier; set it to 'LongTailROIHeads'"
        )
    freeze_except(model, [_CLASSIFIER])
    model.train()
    classifier = model.get_submodule(_CLASSIFIER)
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    moments = LogitMoments(num_classes)
    with EventStorage():
        for features in _training_features(cfg, model):
            moments.add(classifier(features)[:, :num_classes].cpu())
    return moments.stats()


def _training_features(cfg: Any, model: nn.Module) -> Iterator[Tensor]:
    """Yield the (R, D) features that the batches of one epoch give to the classifier."""
    dataset: Any = load_train_dataset(cfg)
    num_batches = -(-len(dataset) // cfg.SOLVER.IMS_PER_BATCH)
    loader: Iterable[list[dict[str, Any]]]
    is_cached = bool(cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE)
    if is_cached:
        loader = build_feature_loader(cfg, dataset, cached_features(cfg, model, dataset))
    else:
        loader = build_train_loader(cfg, dataset=dataset)
    weight = next(model.get_submodule(_CLASSIFIER).parameters())
    for number, batch in enumerate(islice(loader, num_batches), start=1):
        if is_cached:
            features = torch.cat([image["features"] for image in batch])
        else:
            features = torch.cat([rows for rows, _ in sampled_roi_features(model, batch)])
        yield features.to(weight)
        if number % 100 == 0 or number == num_batches:
            logger.info("Logits of %d of %d batches are collected", number, num_batches)
