"""Which values and combinations of the configuration make sense."""

from detectron2.config import CfgNode

from balms_det.config.checks import check, check_allowed
from balms_det.config.keys import check_options
from balms_det.data import DETECTRON2_SAMPLERS, SAMPLERS
from balms_det.decouple import is_within
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES
from balms_det.options import AT_LEAST_0, AT_LEAST_1, FRACTION, Choices, Range
from balms_det.runtime.errors import InputError

_SAMPLERS = Choices((*DETECTRON2_SAMPLERS, *SAMPLERS))
# Detectron2's keys that lead to a traceback, or to a result that means nothing.
_ALLOWED = {
    "MODEL.ROI_HEADS.NUM_CLASSES": Range(
        lambda number: number >= 1, "the number of foreground classes, 1 or more"
    ),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": FRACTION,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": FRACTION,
    "SOLVER.MAX_ITER": AT_LEAST_1,
    "SOLVER.IMS_PER_BATCH": AT_LEAST_1,
    "SOLVER.CHECKPOINT_PERIOD": AT_LEAST_1,
    "TEST.DETECTIONS_PER_IMAGE": Range(
        lambda number: number == -1 or number >= 1, "1 or more, or -1 for no limit"
    ),
    "TEST.EVAL_PERIOD": AT_LEAST_0,
    "DATALOADER.NUM_WORKERS": AT_LEAST_0,
}


def validate_config(cfg: CfgNode) -> None:
    """Refuse values and combinations that make no sense, before any data is loaded.

    Raises:
        InputError: naming the key, its value, and what is allowed.
    """
    check_options(cfg)
    check_allowed(cfg, "DATALOADER.SAMPLER_TRAIN", _SAMPLERS)
    for key, allowed in _ALLOWED.items():
        check_allowed(cfg, key, allowed)
    long_tail, heads = cfg.MODEL.LONG_TAIL, cfg.MODEL.ROI_HEADS.NAME
    check(
        cfg,
        "MODEL.LONG_TAIL.CALIBRATION.NAME",
        long_tail.CALIBRATION.NAME == "none" or heads.startswith("LongTail"),
        "'none', or MODEL.ROI_HEADS.NAME to LongTailROIHeads or LongTailCascadeROIHeads",
    )
    check(
        cfg,
        "MODEL.LONG_TAIL.INFERENCE.PRECISION",
        long_tail.INFERENCE.PRECISION != "float16" or cfg.MODEL.DEVICE != "cpu",
        "'float32' or 'bfloat16' on a CPU, where few operations have 'float16'",
    )
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    check(
        cfg,
        "DATALOADER.REPEAT_THRESHOLD",
        "RepeatFactor" not in sampler or cfg.DATALOADER.REPEAT_THRESHOLD > 0,
        f"more than 0 (LVIS: 0.001), or {sampler} repeats nothing",
    )
    _validate_decouple(cfg)
    _validate_meta(cfg)
    if long_tail.LOSS.FEDERATED.ENABLED:
        _validate_federated(cfg)
    if long_tail.MASK_CLASSIFIER == "cosine" and cfg.MODEL.ROI_MASK_HEAD.NAME != "LongTailMaskHead":
        raise InputError(
            "MODEL.LONG_TAIL.MASK_CLASSIFIER is 'cosine', which MODEL.ROI_MASK_HEAD.NAME "
            f"{cfg.MODEL.ROI_MASK_HEAD.NAME!r} does not have; set that to 'LongTailMaskHead'"
        )
    if heads.startswith("LongTail"):
        for key in ("USE_FED_LOSS", "USE_SIGMOID_CE"):
            if cfg.MODEL.ROI_BOX_HEAD.get(key, False):
                raise InputError(
                    f"MODEL.ROI_BOX_HEAD.{key} is True, but {heads} takes its "
                    "loss from MODEL.LONG_TAIL.LOSS; set it to False"
                )


def _validate_decouple(cfg: CfgNode) -> None:
    classifier, decouple = cfg.MODEL.LONG_TAIL.CLASSIFIER, cfg.MODEL.LONG_TAIL.DECOUPLE
    key = "MODEL.LONG_TAIL.DECOUPLE"
    if classifier != "linear" and cfg.MODEL.LONG_TAIL.CALIBRATION.NAME == "tau_norm":
        raise InputError(
            "MODEL.LONG_TAIL.CALIBRATION.NAME is 'tau_norm', which divides by the norms of a "
            f"linear classifier, but MODEL.LONG_TAIL.CLASSIFIER is {classifier!r}; set it to "
            "'linear'"
        )
    if classifier == "lws":
        if not decouple.ENABLED:
            raise InputError(
                "MODEL.LONG_TAIL.CLASSIFIER is 'lws', whose scales are learned on the frozen "
                f"weights of a first stage, but {key}.ENABLED is False; set it to True"
            )
        for path in decouple.TRAIN_MODULES:
            if path.endswith("cls_score"):
                raise InputError(
                    f"{key}.TRAIN_MODULES names {path!r}, but with MODEL.LONG_TAIL.CLASSIFIER "
                    f"'lws' only the scales train; set it to '{path}.scale'"
                )
    if not decouple.ENABLED:
        return
    for name, least in (("START_ITER", 0), ("FEATURE_VIEWS", 1), ("FEATURE_ROWS", 0)):
        if decouple[name] < least:
            raise InputError(f"{key}.{name} is {decouple[name]}; set it to {least} or more")
    if decouple.FEATURE_CACHE:
        _validate_feature_cache(cfg)
    if decouple.START_ITER > 0:
        for name, value in (
            (f"{key}.REINIT", decouple.REINIT),
            ("MODEL.LONG_TAIL.CLASSIFIER", [classifier] if classifier == "lws" else []),
        ):
            if value:
                raise InputError(
                    f"{key}.START_ITER is {decouple.START_ITER}, so that one run trains both "
                    f"stages, but {name} is {value[0]!r}, which needs a first stage that is "
                    f"complete; set {key}.START_ITER to 0"
                )
    elif not cfg.MODEL.WEIGHTS:
        raise InputError(
            f"{key}.ENABLED is True, but MODEL.WEIGHTS is ''; set it to the checkpoint of the "
            "first stage"
        )
    if not decouple.TRAIN_MODULES:
        raise InputError(
            f"{key}.TRAIN_MODULES is empty, so that nothing would train; set it to the paths of "
            "one or more modules, such as roi_heads.box_predictor.cls_score"
        )
    for path in decouple.REINIT:
        if not is_within(path, decouple.TRAIN_MODULES):
            raise InputError(
                f"{key}.REINIT names {path!r}, which would stay at its random initialisation; "
                f"name modules that train ({key}.TRAIN_MODULES)"
            )


def _validate_meta(cfg: CfgNode) -> None:
    """Refuse what the derivative through an SGD step of a linear classifier does not cover."""
    long_tail, solver = cfg.MODEL.LONG_TAIL, cfg.SOLVER
    weights = long_tail.LOSS.CLASS_WEIGHTS
    sampler = "DATALOADER.SAMPLER_TRAIN is 'MetaTrainingSampler'"
    reweighter = "MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME is 'learned'"
    learned = [
        key
        for key, is_learned in (
            (sampler, cfg.DATALOADER.SAMPLER_TRAIN == "MetaTrainingSampler"),
            (reweighter, weights.NAME == "learned"),
        )
        if is_learned
    ]
    if not learned:
        return
    if len(learned) == 2:
        raise InputError(
            f"{sampler}, and {reweighter}, but only one of them can learn; set the latter to 'none'"
        )
    if not cfg.MODEL.ROI_HEADS.NAME.startswith("LongTail"):
        raise InputError(
            f"{learned[0]}, which MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME!r} cannot learn; "
            "set that to LongTailROIHeads or LongTailCascadeROIHeads"
        )
    able = [name for name, loss in LOSSES.items() if loss.link in PLAIN_LOSSES]
    if long_tail.LOSS.NAME not in able:
        raise InputError(
            f"{learned[0]}, but MODEL.LONG_TAIL.LOSS.NAME {long_tail.LOSS.NAME!r} has no plain "
            f"loss for the meta batch; choose one of {', '.join(able)}"
        )
    for key, value, required in (
        ("SOLVER.OPTIMIZER", solver.OPTIMIZER, "SGD"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", solver.CLIP_GRADIENTS.ENABLED, False),
        ("SOLVER.AMP.ENABLED", solver.AMP.ENABLED, False),
        ("SOLVER.BIAS_LR_FACTOR", solver.BIAS_LR_FACTOR, 1.0),
        ("MODEL.LONG_TAIL.CLASSIFIER", long_tail.CLASSIFIER, "linear"),
        ("MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.START_ITER", weights.START_ITER, 0),
    ):
        if value != required:
            raise InputError(
                f"{key} is {value!r}, but {learned[0]}, whose learning rests on plain SGD steps of "
                f"a linear classifier; set it to {required!r}"
            )
    heads = "roi_heads.box_predictor"
    classifiers = (
        [f"{heads}.{stage}.cls_score" for stage in range(len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS))]
        if cfg.MODEL.ROI_HEADS.NAME == "LongTailCascadeROIHeads"
        else [f"{heads}.cls_score"]
    )
    for path in classifiers if long_tail.DECOUPLE.ENABLED else ():
        if not is_within(path, long_tail.DECOUPLE.TRAIN_MODULES):
            raise InputError(
                f"MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES leaves {path} frozen, but {learned[0]}, "
                "which needs the classifier to train; add it"
            )


def _validate_feature_cache(cfg: CfgNode) -> None:
    """Refuse cached features where more than the classifier depends on the images."""
    decouple = cfg.MODEL.LONG_TAIL.DECOUPLE
    key = "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE"
    classifier = "roi_heads.box_predictor.cls_score"
    for path in decouple.TRAIN_MODULES:
        if not is_within(path, [classifier]):
            raise InputError(
                f"{key} is set, but MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES names {path!r}, which "
                f"does not train on cached features; train {classifier} alone, or set {key} to ''"
            )
    sampled = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    if 0 < decouple.FEATURE_ROWS < sampled:
        raise InputError(
            f"MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS is {decouple.FEATURE_ROWS}, but training "
            f"samples MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE {sampled}; set it to 0 or no less"
        )
    for name, value, needed in (
        ("MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, "LongTailROIHeads"),
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, "GeneralizedRCNN"),
        ("MODEL.LONG_TAIL.DECOUPLE.START_ITER", decouple.START_ITER, 0),
    ):
        if value != needed:
            raise InputError(
                f"{key} is set, but {name} is {value!r}; set it to {needed!r}, or {key} to ''"
            )


def _validate_federated(cfg: CfgNode) -> None:
    """Refuse federated classes where the loss cannot leave classes out, or twice over."""
    key = "MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED is True"
    if cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False):
        raise InputError(f"{key}, and so is MODEL.ROI_BOX_HEAD.USE_FED_LOSS; set it to False")
    name = cfg.MODEL.LONG_TAIL.LOSS.NAME
    able = [other for other, loss in LOSSES.items() if loss.has_independent_classes()]
    if name not in able:
        raise InputError(
            f"{key}, but the classes of MODEL.LONG_TAIL.LOSS.NAME {name!r} depend on one another; "
            f"choose one of {', '.join(able)}"
        )
