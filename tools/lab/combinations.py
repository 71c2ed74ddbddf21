"""Which losses go with federated classes, samplers, a second stage and a calibration: by trying.

A combination is tried in small: its configuration is checked, the predictor of its detector is
built for a few classes, takes a training step on random features, and predicts.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.calibration import CALIBRATIONS, LogitStats
from balms_det.decouple import freeze_except
from balms_det.engine import load_config, validate_config
from balms_det.losses.registry import LOSSES
from balms_det.modeling import LongTailPredictor
from balms_det.runtime.errors import InputError
from lab import markdown

K = 6
_CHANNELS = 8
_LONG_TAIL = "MODEL.LONG_TAIL"
_LOSS = f"{_LONG_TAIL}.LOSS.NAME"
_CLASSIFIER = "roi_heads.box_predictor.cls_score"
# The choices of each part, the first one plain; a part of the configuration is its keys.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "classes": {
        "all classes": {},
        "federated classes": {f"{_LONG_TAIL}.LOSS.FEDERATED.ENABLED": True},
    },
    "sampler": {
        "each image alike": {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"},
        "repeat factors": {"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"},
        "Meta Sampler": {"DATALOADER.SAMPLER_TRAIN": "MetaTrainingSampler"},
    },
    "stage": {
        "one stage": {},
        "second stage": {f"{_LONG_TAIL}.DECOUPLE.ENABLED": True, "MODEL.WEIGHTS": "first.pth"},
    },
    "calibration": {f"`{name}`": {f"{_LONG_TAIL}.CALIBRATION.NAME": name} for name in CALIBRATIONS},
}


def try_all() -> dict[tuple[str, ...], str]:
    """Return for each loss with a choice of each part why it is refused, or "" where it works."""
    with tempfile.TemporaryDirectory() as folder:
        base = _base_config(Path(folder))
        return {
            (loss, *choices): _refusal(base, {_LOSS: loss, **_keys_of(choices)})
            for loss in LOSSES
            for choices in itertools.product(*PARTS.values())
        }


def alone(loss: str, choice: str) -> tuple[str, ...]:
    """Return the combination of a loss in which all parts but that of `choice` are plain."""
    plain = [choice if choice in choices else next(iter(choices)) for choices in PARTS.values()]
    return (loss, *plain)


def outcome_table(refusals: Mapping[tuple[str, ...], str]) -> str:
    """Return a row for each loss and a column for each choice that is not plain, in Markdown.

    Below the table stand the reasons, numbered, and how many combinations were tried.
    """
    columns = [choice for choices in PARTS.values() for choice in list(choices)[1:]]
    reasons: list[str] = []
    rows = []
    for loss in LOSSES:
        cells = []
        for choice in columns:
            reason = _general(refusals[alone(loss, choice)], loss)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"refused ({reasons.index(reason) + 1})" if reason else "yes")
        rows.append([f"`{loss}`", *cells])
    table = markdown.table(["`LOSS.NAME`", *columns], rows, left=range(len(columns) + 1))
    numbered = [f"{number}. {reason}." for number, reason in enumerate(reasons, start=1)]
    refused = sum(bool(reason) for reason in refusals.values())
    tried = (
        f"{len(refusals):,} combinations were tried: {len(refusals) - refused:,} work, and "
        f"{refused:,} are refused, each for one of these reasons."
    )
    return "\n".join([table, "", *numbered, "", tried])


def _general(reason: str, loss: str) -> str:
    """Return a refusal without the name of the loss and without the names to choose from."""
    return reason.partition("; ")[0].replace(f"{_LOSS} {loss!r}", "this loss")


def _base_config(folder: Path) -> Any:
    ClassStats(
        image_counts=np.array([90, 40, 20, 8, 3, 1]),
        instance_counts=np.array([200, 60, 30, 9, 3, 1]),
        num_images=120,
        num_annotated_images=100,
        category_ids=tuple(range(1, K + 1)),
        names=tuple(f"class {j}" for j in range(K)),
        groups=("c", "c", "c", "r", "r", "r"),
        box_dimensions=np.linspace(1.8, 1.0, K),
    ).save(folder / "class_stats.json")
    ones = torch.ones(K, dtype=torch.float64)
    LogitStats(ones.cumsum(0), ones, 100).save(folder / "logit_stats.json")
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.ROI_HEADS.NUM_CLASSES": K,
        f"{_LONG_TAIL}.STATS_FILE": folder / "class_stats.json",
    }
    opts = [str(word) for item in keys.items() for word in item]
    cfg = load_config(argparse.Namespace(config_file="lvis_r50+rfs", opts=opts, dataset=[]))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.LONG_TAIL.CALIBRATION.LOGIT_STATS = str(folder / "logit_stats.json")
    return cfg


def _keys_of(choices: Sequence[str]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for choice, part in zip(choices, PARTS.values(), strict=True):
        keys |= part[choice]
    return keys


def _refusal(base: Any, keys: Mapping[str, Any]) -> str:
    cfg = base.clone()
    cfg.merge_from_list([word for item in keys.items() for word in item])
    try:
        validate_config(cfg)
        _train_and_predict(cfg)
    except InputError as error:
        return str(error)
    return ""


def _train_and_predict(cfg: Any) -> None:
    torch.manual_seed(0)
    predictor = LongTailPredictor(cfg, ShapeSpec(channels=_CHANNELS))
    if cfg.MODEL.LONG_TAIL.DECOUPLE.ENABLED:
        freeze_except(_detector(predictor), [_CLASSIFIER])
    predictor.train()
    features = torch.randn(2 * (K + 1), _CHANNELS)
    gt_classes = torch.arange(len(features)) % (K + 1)
    logits = predictor.cls_score(features)
    with EventStorage():
        predictor.criterion(logits, gt_classes).backward()
    gradient = predictor.cls_score.weight.grad
    assert gradient.isfinite().all() and gradient.any()
    proposals = Instances((9, 9), proposal_boxes=Boxes(torch.zeros(len(features), 4)))
    (probs,) = predictor.eval().predict_probs((logits.detach(), None), [proposals])
    assert ((probs >= 0) & (probs <= 1)).all()


def _detector(predictor: nn.Module) -> nn.Module:
    """Return modules in which the predictor has the path that it has in a detector."""
    model, heads = nn.Module(), nn.Module()
    heads.add_module("box_predictor", predictor)
    model.add_module("roi_heads", heads)
    return model


def refused_for_another_reason(
    refusals: Mapping[tuple[str, ...], str],
) -> Iterator[tuple[str, ...]]:
    """Yield the refused combinations none of whose parts alone is refused with the same reason."""
    for combination, reason in refusals.items():
        loss, *choices = combination
        if reason and reason not in {refusals[alone(loss, choice)] for choice in choices}:
            yield combination
