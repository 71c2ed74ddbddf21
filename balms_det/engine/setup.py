"""From a command line to a configuration that has been checked."""

import argparse
import logging
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from balms_det.calibration import CALIBRATIONS
from balms_det.config import add_balms_config, find_config
from balms_det.config.checks import merge_config
from balms_det.data import check_num_classes, dataset_class_stats, register_dataset
from balms_det.engine.checkpoint import class_stats_in
from balms_det.engine.validate import validate_config
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return Detectron2's standard command line with ``--dataset``."""
    parser = default_argument_parser()
    parser.description = description
    add_dataset_argument(parser)
    return parser


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register an LVIS- or COCO-format annotation file under NAME, for DATASETS.TRAIN "
        "and DATASETS.TEST to name; repeatable",
    )


def load_config(args: argparse.Namespace) -> CfgNode:
    """The configuration that `args` describe: defaults, then the file, then the overrides.

    Registers the data sets of ``--dataset``, and falls back to the CPU where there is no GPU.

    Args:
        args: with ``config_file``, ``opts`` (KEY VALUE ...) and ``dataset``.

    Raises:
        InputError: a key is unknown, a value not allowed, or a file cannot be used.
    """
    cfg = get_cfg()
    add_balms_config(cfg)
    if args.config_file:
        path = find_config(args.config_file)
        merge_config(cfg, lambda: cfg.merge_from_file(path), args.config_file)
    merge_config(cfg, lambda: cfg.merge_from_list(args.opts or []), "the command line")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's mixed precision is for CUDA only.
    validate_config(cfg)
    for name, json_file, image_root in args.dataset:
        register_dataset(name, json_file, image_root)
    return cfg


def prepare_class_stats(cfg: CfgNode) -> None:
    """Count the training set's classes into OUTPUT_DIR and let the model find the file.

    Does nothing where MODEL.LONG_TAIL.STATS_FILE is set.

    Raises:
        InputError: the training set cannot be counted, or has other classes than the model.
    """
    for name in cfg.DATASETS.TRAIN:
        check_num_classes(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    if cfg.MODEL.LONG_TAIL.STATS_FILE:
        return
    path = Path(cfg.OUTPUT_DIR) / "class_stats.json"
    if comm.is_main_process():
        stats = dataset_class_stats(cfg.DATASETS.TRAIN)
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.save(path)
    comm.synchronize()
    cfg.MODEL.LONG_TAIL.STATS_FILE = str(path)


def prepare_calibration(cfg: CfgNode, weights: str, folder: str | os.PathLike[str]) -> None:
    """Let a model that calibrates its predictions find the class statistics in its checkpoint.

    Does nothing where MODEL.LONG_TAIL.CALIBRATION needs none, or MODEL.LONG_TAIL.STATS_FILE is set.

    Args:
        cfg: gets MODEL.LONG_TAIL.STATS_FILE.
        weights: path of the checkpoint.
        folder: where the main process writes the statistics, as a file for the model to read.

    Raises:
        InputError: the checkpoint carries no statistics.
    """
    name = cfg.MODEL.LONG_TAIL.CALIBRATION.NAME
    if not CALIBRATIONS[name] or cfg.MODEL.LONG_TAIL.STATS_FILE:
        return
    path = Path(folder) / "class_stats.json"
    stats = class_stats_in(weights)
    if stats is None:
        raise InputError(
            f"MODEL.LONG_TAIL.CALIBRATION.NAME is {name!r}, which needs class statistics, but the "
            f"checkpoint {weights!r} carries none; set MODEL.LONG_TAIL.STATS_FILE to the training "
            "annotations, or to a file written by tools/class_stats.py"
        )
    if comm.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        stats.save(path)
    comm.synchronize()
    cfg.MODEL.LONG_TAIL.STATS_FILE = str(path)
