"""From a command line to a configuration that has been checked."""

import argparse
import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, get_cfg

from balms_det.config import add_balms_config, merge_config_files
from balms_det.config.checks import merge_config
from balms_det.config.effects import warn_of_keys_without_effect
from balms_det.config.values import fitted_overrides
from balms_det.data import register_dataset
from balms_det.engine.validate import validate_config


def load_config(args: argparse.Namespace) -> CfgNode:
    """Return the configuration that `args` describe: defaults, then the file, then the overrides.

    Registers the data sets of ``--dataset`` and of DATASETS.REGISTER, which then holds both with
    absolute paths. Falls back to the CPU where there is no GPU.

    Args:
        args: with ``config_file``, ``opts`` (KEY VALUE ...) and ``dataset``.

    Raises:
        InputError: a key is unknown, a value not allowed, or a file cannot be used.
    """
    cfg = _merged_config(args)
    if cfg.MODEL.DEVICE == "cpu":
        cfg.SOLVER.AMP.ENABLED = False  # Detectron2's mixed precision is for CUDA only.
    validate_config(cfg)
    warn_of_keys_without_effect(cfg)
    _register(cfg, args.dataset)
    return cfg


def configured_device(args: argparse.Namespace) -> str:
    """Return the MODEL.DEVICE of :func:`load_config`; registers no data set.

    Raises:
        InputError: a key is unknown, or a file cannot be used.
    """
    return str(_merged_config(args).MODEL.DEVICE)


def _merged_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    add_balms_config(cfg)
    if args.config_file:
        merge_config_files(cfg, args.config_file)
    overrides = fitted_overrides(cfg, args.opts or [])
    merge_config(cfg, lambda: cfg.merge_from_list(overrides), "the command line")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _register(cfg: CfgNode, given: Sequence[Sequence[str]]) -> None:
    """Register data sets, and keep them in the configuration.

    Those of a configuration file are passed over where their files are not present: a model's
    predictions need no training set.
    """
    sets = {
        name: (name, os.path.abspath(json_file), os.path.abspath(image_root))
        for name, json_file, image_root in (*cfg.DATASETS.REGISTER, *given)
    }
    given_names = {name for name, _, _ in given}
    for name, json_file, image_root in sets.values():
        present = os.path.isfile(json_file) and os.path.isdir(image_root)
        if present or name in given_names:
            register_dataset(name, json_file, image_root)
    cfg.DATASETS.REGISTER = [list(entry) for entry in sets.values()]
