"""The meta learning that a configuration describes."""

from typing import Any

from detectron2.utils import comm
from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.data import build_train_loader, meta_sampler_of
from balms_det.engine.meta.hook import MetaLearning
from balms_det.engine.meta.meta_sets import FeatureBank, ForwardPass, MetaSet
from balms_det.engine.meta.rates import ReweighterRates, SamplerRates
from balms_det.engine.meta.recorder import Recorder
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES


def build_meta_learning(
    cfg: Any, model: nn.Module, train_loader: Any, class_stats: ClassStats
) -> MetaLearning | None:
    """Return the hook that learns what the configuration says is learned, or None.

    Args:
        cfg: checked by :func:`balms_det.engine.validate_config`.
        model: that is trained, not its distributed wrapper.
        train_loader: of the training batches.
        class_stats: of the training set.
    """
    sampler = meta_sampler_of(train_loader)
    if sampler is None and cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME != "learned":
        return None
    meta = cfg.SOLVER.META
    recorder = Recorder(model)
    rates = (
        ReweighterRates(recorder.predictors)
        if sampler is None
        else SamplerRates(sampler, meta.TEMPERATURE)
    )
    meta_set: MetaSet
    if features_are_frozen(model):
        # Each process has features, and draws, of its own.
        seed = max(cfg.SEED, 0) + comm.get_rank()
        meta_set = FeatureBank(cfg.MODEL.ROI_HEADS.NUM_CLASSES, meta.FEATURES_PER_CLASS, seed)
    else:
        meta_set = ForwardPass(model, recorder, _class_balanced_loader(cfg))
    plain = PLAIN_LOSSES[LOSSES[cfg.MODEL.LONG_TAIL.LOSS.NAME].link]
    return MetaLearning(
        recorder,
        rates,
        meta_set,
        [plain if meta.LOSS == "plain" else p.criterion.unweighted for p in recorder.predictors],
        lr=meta.BASE_LR,
        class_stats=class_stats,
        output_dir=cfg.OUTPUT_DIR,
    )


def features_are_frozen(model: nn.Module) -> bool:
    """Return whether training changes nothing that the classifier's features depend on."""
    before = (model.backbone, model.proposal_generator, model.roi_heads.box_head)
    return not any(p.requires_grad for part in before for p in part.parameters())


def _class_balanced_loader(cfg: Any) -> Any:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassBalancedTrainingSampler"
    if cfg.SEED >= 0:
        cfg.SEED += 1  # or it would follow a class-balanced training sampler image by image
    return build_train_loader(cfg)
