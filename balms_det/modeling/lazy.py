"""The criterion for a LazyConfig, which has no configuration node."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from omegaconf import OmegaConf

from balms_det.config import add_balms_config
from balms_det.losses.criterion import Criterion, build_criterion
from balms_det.modeling.predictor import class_stats_for, training_iteration
from balms_det.runtime.errors import InputError


def criterion_from_options(
    *, num_classes: int, stats_file: str = "", options: Mapping[str, Any] | None = None
) -> Criterion:
    """Return the criterion of :func:`build_criterion`, from plain Python or a LazyConfig.

        L(criterion_from_options)(
            num_classes=1203,
            stats_file="class_stats.json",
            options=dict(LOSS=dict(NAME="balanced_softmax")),
        )

    Args:
        num_classes: K.
        stats_file: written by `balms-det stats`, or the training annotations; "" for inference.
        options: keys below MODEL.LONG_TAIL, nested, over their defaults in balms_det/config.py.

    Raises:
        InputError: a key is unknown, its value of another type, or the file cannot be used or is of
            other classes.
    """
    cfg = get_cfg()
    add_balms_config(cfg)
    long_tail = cfg.MODEL.LONG_TAIL
    try:
        plain = OmegaConf.to_container(OmegaConf.create(options or {}), resolve=True)
        long_tail.merge_from_other_cfg(CfgNode(plain))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the criterion's options: {' '.join(str(error.args[0]).split())}; its keys are those "
            "of MODEL.LONG_TAIL in balms_det/config.py"
        ) from error
    stats = class_stats_for(num_classes, stats_file)
    return build_criterion(long_tail, num_classes, stats, training_iteration)
