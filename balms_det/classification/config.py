"""Configurations of classification experiments: defaults, files, overrides and checks."""

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode as CN

from balms_det.classification.options import ALL_OPTIONS
from balms_det.config import add_balms_config, merge_config_files, run_name
from balms_det.config.checks import check, check_allowed, merge_config
from balms_det.config.effects import warn_of_keys_without_effect
from balms_det.config.keys import check_options
from balms_det.config.values import fitted_overrides
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES
from balms_det.options import Choices, add_keys, check_keys

# Keys of MODEL.LONG_TAIL and of its node DECOUPLE that a classifier has too.
_SHARED = ("COUNT_BY", "LOSS", "CLASSIFIER", "COSINE_TEMPERATURE")
_SHARED_DECOUPLE = ("ENABLED", "TRAIN_MODULES", "REINIT")
# Keys of SOLVER.META, which learns the rates of the Meta Sampler.
_SHARED_META = ("BASE_LR", "INITIAL_POWER", "TEMPERATURE")


def default_config() -> CN:
    """Return the keys with their defaults: the release's recipe on CIFAR-10-LT, first stage."""
    cfg = CN()
    for options in ALL_OPTIONS:
        add_keys(cfg, options)
    detector = CN()
    add_balms_config(detector)
    shared = detector.MODEL.LONG_TAIL
    cfg.MODEL.LONG_TAIL = CN({key: shared[key] for key in _SHARED})
    cfg.MODEL.LONG_TAIL.DECOUPLE = CN({key: shared.DECOUPLE[key] for key in _SHARED_DECOUPLE})
    cfg.MODEL.LONG_TAIL.LOSS.NAME = "softmax"
    cfg.MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES = ["classifier"]
    for key in _SHARED_META:
        cfg.SOLVER.META[key] = detector.SOLVER.META[key]
    return cfg


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Return the configuration of a run: defaults, then the file, then KEY VALUE overrides.

    Fills in OUTPUT_DIR, MODEL.WEIGHTS and DEVICE.

    Raises:
        InputError: a key is unknown, a value not allowed, or the file cannot be used.
    """
    cfg = default_config()
    reference = "balms_det/classification/options.py"
    merge_config_files(cfg, config_file, reference=reference)
    overrides = fitted_overrides(cfg, opts)
    merge_config(cfg, lambda: cfg.merge_from_list(overrides), "the command line", reference)
    if cfg.DEVICE == "auto":
        cfg.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    validate_config(cfg)
    warn_of_keys_without_effect(cfg)
    place = {"IMBALANCE": f"{cfg.IMBALANCE}", "SEED": cfg.SEED}
    cfg.OUTPUT_DIR = (
        cfg.OUTPUT_DIR or f"output/{run_name(config_file)}_if{{IMBALANCE}}_seed{{SEED}}"
    )
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS")):
        for name, value in place.items():
            node[key] = node[key].replace(f"{{{name}}}", str(value))
    cfg.freeze()
    return cfg


# A classifier's rates are learned by the Meta Sampler alone.
_CLASS_WEIGHTS = Choices(("none", "inverse", "effective_number"))


def validate_config(cfg: CN) -> None:
    """Refuse values and combinations that make no sense, before any data is loaded.

    Raises:
        InputError: naming the key, its value, and what is allowed.
    """
    for options in ALL_OPTIONS:
        check_keys(cfg, "", options)
    check_allowed(cfg, "MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME", _CLASS_WEIGHTS)
    check_options(cfg)
    long_tail = cfg.MODEL.LONG_TAIL
    second_stage = long_tail.DECOUPLE.ENABLED
    check(
        cfg,
        "SOLVER.WARMUP_ITERS",
        0 <= cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER,
        "0 or more, less than SOLVER.MAX_ITER",
    )
    check(
        cfg,
        "MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED",
        not long_tail.LOSS.FEDERATED.ENABLED,
        "False: an image has one label, and the classes it lacks are known",
    )
    check(
        cfg,
        "MODEL.LONG_TAIL.DECOUPLE.ENABLED",
        not second_stage or cfg.MODEL.WEIGHTS,
        "False, or MODEL.WEIGHTS to the checkpoint of the first stage",
    )
    check(
        cfg,
        "MODEL.LONG_TAIL.CLASSIFIER",
        long_tail.CLASSIFIER != "lws" or second_stage,
        "'linear', or MODEL.LONG_TAIL.DECOUPLE.ENABLED to True: only a second stage has scales",
    )
    check(
        cfg,
        "SAMPLER",
        cfg.SAMPLER != "meta" or (second_stage and long_tail.CLASSIFIER == "linear"),
        "another sampler, or MODEL.LONG_TAIL.DECOUPLE.ENABLED to True and CLASSIFIER to "
        "'linear': the Meta Sampler looks ahead of a linear classifier on fixed features",
    )
    check(
        cfg,
        "MODEL.LONG_TAIL.LOSS.NAME",
        cfg.SAMPLER != "meta" or LOSSES[long_tail.LOSS.NAME].link in PLAIN_LOSSES,
        "a loss over softmax or sigmoid, or SAMPLER to another than 'meta'",
    )
