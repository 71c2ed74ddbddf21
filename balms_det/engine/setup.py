"""From a command line to a configuration that has been checked."""

import argparse

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser

from balms_det.config import add_balms_config, merge_config_files
from balms_det.config.checks import merge_config
from balms_det.data import register_dataset
from balms_det.engine.validate import validate_config
from balms_det.modeling.efficientnet_lite import set_input


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
    """Return the configuration that `args` describe: defaults, then the file, then the overrides.

    Registers the data sets of ``--dataset``, and falls back to the CPU where there is no GPU.

    Args:
        args: with ``config_file``, ``opts`` (KEY VALUE ...) and ``dataset``.

    Raises:
        InputError: a key is unknown, a value not allowed, or a file cannot be used.
    """
    cfg = get_cfg()
    add_balms_config(cfg)
    if args.config_file:
        merge_config_files(cfg, args.config_file)
    merge_config(cfg, lambda: cfg.merge_from_list(args.opts or []), "the command line")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's mixed precision is for CUDA only.
    validate_config(cfg)
    set_input(cfg)
    for name, json_file, image_root in args.dataset:
        register_dataset(name, json_file, image_root)
    return cfg
