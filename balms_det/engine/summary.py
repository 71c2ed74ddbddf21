"""What a person needs to know before the first iteration, on one screen."""

from typing import Any

from detectron2.utils import comm
from tabulate import tabulate

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import GROUP_NAMES
from balms_det.losses.registry import LOSSES
from balms_det.options import options_of, value_at


def training_summary(cfg: Any, class_stats: ClassStats) -> str:
    """Return a few lines on data, model, loss, schedule, device and output of a training."""
    solver, long_tail, heads = cfg.SOLVER, cfg.MODEL.LONG_TAIL, cfg.MODEL.ROI_HEADS
    groups = ", ".join(
        f"{class_stats.groups.count(group)} {name}" for group, name in GROUP_NAMES.items()
    )
    epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / max(class_stats.num_images, 1)
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone")
    if "resnet" in backbone:
        backbone += f", depth {cfg.MODEL.RESNETS.DEPTH}"
    rows = [
        (
            "train on",
            f"{', '.join(cfg.DATASETS.TRAIN)}: {class_stats.num_images} images, "
            f"{class_stats.instance_counts.sum()} objects",
        ),
        ("classes", f"{class_stats.num_classes} ({groups})"),
        ("test on", ", ".join(cfg.DATASETS.TEST) or "nothing"),
        ("model", f"{heads.NAME}, {backbone}, {'masks' if cfg.MODEL.MASK_ON else 'boxes only'}"),
        ("weights", cfg.MODEL.WEIGHTS or "random"),
        ("loss", _loss(long_tail) if heads.NAME.startswith("LongTail") else "Detectron2's"),
        ("sampler", cfg.DATALOADER.SAMPLER_TRAIN),
        (
            "schedule",
            f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images ({epochs:.3g} epochs), "
            f"{solver.OPTIMIZER}, learning rate {solver.BASE_LR:g}",
        ),
        (
            "device",
            f"{cfg.MODEL.DEVICE}, processes: {comm.get_world_size()}, "
            f"loader workers: {cfg.DATALOADER.NUM_WORKERS}"
            + (", mixed precision" if solver.AMP.ENABLED else ""),
        ),
        ("output", f"{cfg.OUTPUT_DIR} (log.txt has environment, configuration and model)"),
    ]
    return str(tabulate(rows, tablefmt="plain", disable_numparse=True))


def _loss(long_tail: Any) -> str:
    name = str(long_tail.LOSS.NAME)
    listed = [
        f"{option.key} {value_at(long_tail.LOSS, option.key)}"
        for option in options_of(LOSSES[name].options)
    ]
    if long_tail.LOSS.FEDERATED.ENABLED:
        listed.append("federated")
    return name + (f" ({', '.join(listed)})" if listed else "")
