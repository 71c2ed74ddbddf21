"""Where the class statistics of a training set come from: one resolver for all sources."""

import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from balms_det.annotations.class_stats import ClassStats, missing_class_stats
from balms_det.calibration import CALIBRATIONS
from balms_det.data import check_num_classes, dataset_class_stats
from balms_det.runtime.errors import InputError


def resolve_class_stats(source: str | os.PathLike[str] | Sequence[str]) -> ClassStats:
    """Return the class statistics of a source.

    Args:
        source: path of an annotation file, of a statistics file or of a checkpoint; or the name of
            a registered data set, or several names.

    Raises:
        InputError: the source does not exist, cannot be read or carries no statistics.
    """
    if isinstance(source, list | tuple):
        return dataset_class_stats(source)
    path = os.fspath(source)
    if not path:
        raise missing_class_stats("this run")
    if path.endswith((".pth", ".pkl")):
        stats = class_stats_in(path)
        if stats is None:
            raise missing_class_stats(f"this run (the checkpoint {path!r} carries none)")
        return stats
    if os.path.exists(path) or path.endswith(".json"):
        return ClassStats.load(path)
    return dataset_class_stats([path])


def training_class_stats(cfg: Any) -> ClassStats:
    """Return the class statistics to train with: MODEL.LONG_TAIL.STATS_FILE, else DATASETS.TRAIN.

    The main process counts, and the others receive its result. It also writes them to
    OUTPUT_DIR/class_stats.json, for people to read.

    Raises:
        InputError: the training set cannot be counted, or has other classes than the model.
    """
    for name in cfg.DATASETS.TRAIN:
        check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    source = cfg.MODEL.LONG_TAIL.STATS_FILE or cfg.DATASETS.TRAIN
    stats = None
    if comm.is_main_process():
        stats = resolve_class_stats(source).with_groups(cfg.MODEL.LONG_TAIL.GROUPS)
        if not cfg.MODEL.LONG_TAIL.STATS_FILE:
            path = Path(cfg.OUTPUT_DIR) / "class_stats.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            stats.save(path)
    # As plain values: arrays would arrive writable.
    content = comm.all_gather(None if stats is None else stats.to_dict())[0]
    return ClassStats.from_dict(content) if stats is None else stats


def inference_class_stats(cfg: Any, weights: str) -> ClassStats | None:
    """Return the class statistics of a trained model, or None where nobody knows them.

    Args:
        cfg: its MODEL.LONG_TAIL.STATS_FILE goes before the checkpoint's statistics. These take its
            place where there is no such file: a run's configuration works without it.
        weights: path of the checkpoint.

    Raises:
        InputError: STATS_FILE cannot be used, or is missing and the checkpoint carries nothing.
        InputError: MODEL.LONG_TAIL.CALIBRATION needs statistics and nobody knows them.
    """
    stats_file = cfg.MODEL.LONG_TAIL.STATS_FILE
    stats = None
    if not stats_file or not os.path.isfile(stats_file):
        stats = class_stats_in(weights)
    if stats is None and stats_file:
        stats = ClassStats.load(stats_file)
    if stats is not None:
        stats = stats.with_groups(cfg.MODEL.LONG_TAIL.GROUPS)
    calibration = cfg.MODEL.LONG_TAIL.CALIBRATION.NAME
    if stats is None and CALIBRATIONS[calibration]:
        raise missing_class_stats(
            f"MODEL.LONG_TAIL.CALIBRATION.NAME {calibration!r} (the checkpoint {weights!r} "
            "carries none)"
        )
    return stats


def class_stats_in(path: str) -> ClassStats | None:
    """Return the class statistics that a checkpoint on disk carries, or None.

    Raises:
        InputError: the checkpoint is missing or cannot be read.
    """
    if path and "://" not in path and not os.path.isfile(path.split("?")[0]):
        raise InputError(f"{path}: there is no such checkpoint; {CHECKPOINT_REMEDY}")
    if not path.endswith(".pth") or not os.path.isfile(path):
        return None
    # Memory-mapped, so that only the small part asked for is read; files from before PyTorch 1.6
    # are not zip files and cannot be mapped.
    mmap = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise unreadable_checkpoint(path, error) from error
    stats = content.get("class_stats") if isinstance(content, dict) else None
    return None if stats is None else ClassStats.from_dict(stats)


def unreadable_checkpoint(path: str, error: Exception) -> InputError:
    """Return the error of a checkpoint that cannot be read."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{path}: the checkpoint cannot be read ({reason}); {CHECKPOINT_REMEDY}")


CHECKPOINT_REMEDY = "give MODEL.WEIGHTS the path of a checkpoint, or '' to start from scratch"
