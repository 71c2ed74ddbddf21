"""The ablations of the suites: questions, and the variants that answer them."""

from dataclasses import dataclass, replace
from typing import Any

from balms_det.runtime.errors import InputError
from lab.glyphs_lt.methods import (
    _DECOUPLE,
    _MARGIN,
    _SGD,
    LONG_TAIL,
    METHODS,
    Method,
    Share,
)


@dataclass(frozen=True)
class Ablation:
    """A question, and the variants that answer it."""

    question: str
    variants: tuple[Method, ...]


def _margin(name: str, title: str, **margin: Any) -> Method:
    """Return a variant of Balanced Sigmoid on the frozen features of the suite's base."""
    opts = {f"{_MARGIN}.{key}": value for key, value in margin.items()}
    return Method(name, title, "decoupled_balsig", opts, stage="second")


def _by_images(method: Method) -> Method:
    return replace(method, opts={**method.opts, f"{LONG_TAIL}.COUNT_BY": "images"})


def _prior(prob: float) -> Method:
    opts = {f"{LONG_TAIL}.LOSS.PRIOR_PROB": prob}
    title = f"initial probability {prob:g}"
    return Method(f"prior_{prob:g}", title, "decoupled_balsig", opts, stage="second")


def _posthoc(base: str, name: str, strength: float) -> Method:
    title = {"norcal": "NorCal", "logit_adjustment": "logit adjustment"}[name]
    return Method(
        f"{base}_{name}_{strength:g}",
        f"{METHODS[base].title} + {title} {strength:g}",
        METHODS[base].config,
        {
            f"{LONG_TAIL}.CALIBRATION.NAME": name,
            f"{LONG_TAIL}.CALIBRATION.STRENGTH": strength,
            f"{LONG_TAIL}.COUNT_BY": "images" if name == "norcal" else "instances",
        },
        stage="test",
        base=base,
    )


def _weighted(config: str, over: str) -> Method:
    opts = {f"{LONG_TAIL}.LOSS.CLASS_WEIGHTS.NORMALISE": over}
    title = {"cbw": "1 / n_j", "cb": "effective number"}[config]
    return Method(f"{config}_{over}", f"{title}, mean 1 over {over}", config, opts, stage="joint")


def _fracal(base: str) -> Method:
    title = f"{METHODS[base].title} + FRACAL"
    # The loss is the base's.
    opts = {f"{LONG_TAIL}.LOSS.NAME": METHODS[base].lines()[f"{LONG_TAIL}.LOSS.NAME"]}
    return Method(f"{base}_fracal", title, "fracal", opts, stage="test", base=base)


def _pcb(config: str, title: str) -> Method:
    # Authors: epoch 17 of 24.
    opts = {f"{LONG_TAIL}.LOSS.PCB.START_ITER": Share(17 / 24)}
    return Method(config, f"{title} + Pairwise Class Balance", config, opts, stage="joint")


_LATE = Share(2 / 3)
_FROZEN_LATE = {
    f"{_DECOUPLE}.ENABLED": True,
    f"{_DECOUPLE}.START_ITER": _LATE,
}

ABLATIONS = {
    "margin": Ablation(
        "Which margin, on the frozen features of the base?",
        (
            _margin("none", "no margin (sigmoid)", TAU=0.0),
            _margin("paper", "slides: instances, constant kept, foreground rows"),
            _by_images(_margin("images", "image counts")),
            _margin("drop", "constant dropped", CONSTANT="drop"),
            _by_images(
                _margin("release", "release: image counts, constant dropped", CONSTANT="drop")
            ),
            _margin("all_rows", "all rows", ROWS="all"),
            _margin("tau_0.5", "margin times 0.5", TAU=0.5),
            _margin("tau_1.5", "margin times 1.5", TAU=1.5),
            _margin("all_rows_tau_0.5", "all rows, margin times 0.5", ROWS="all", TAU=0.5),
            Method(
                "sampled_counts",
                "counts as sampled",
                "decoupled_balsig",
                stage="second",
                sampled_counts=True,
            ),
            _prior(0.001),
            _prior(0.1),
        ),
    ),
    "deferral": Ablation(
        "When should the margin begin in the one run?",
        (
            Method("from_start", "margin from the start", "balsig", stage="joint"),
            Method(
                "late",
                "margin in the last third",
                "balsig",
                {f"{_MARGIN}.START_ITER": _LATE},
                stage="joint",
            ),
            Method(
                "late_frozen",
                "margin in the last third, which trains the classifier alone",
                "balsig",
                {f"{_MARGIN}.START_ITER": _LATE, **_FROZEN_LATE},
                stage="joint",
            ),
            Method(
                "none_frozen",
                "no margin, the last third trains the classifier alone",
                "sigmoid",
                _FROZEN_LATE,
                stage="joint",
            ),
        ),
    ),
    "margin_joint": Ablation(
        "Which margin, in joint training?",
        tuple(
            Method(name, title, "balsig", opts, stage="joint")
            for name, title, opts in (
                ("tau_0.5", "margin times 0.5", {f"{_MARGIN}.TAU": 0.5}),
                ("all_rows", "all rows", {f"{_MARGIN}.ROWS": "all"}),
                (
                    "release",
                    "release: image counts, constant dropped",
                    {f"{_MARGIN}.CONSTANT": "drop", f"{LONG_TAIL}.COUNT_BY": "images"},
                ),
            )
        ),
    ),
    "posthoc": Ablation(
        "What does a correction at test time add to each baseline?",
        tuple(
            _posthoc(base, name, strength)
            for base in ("softmax", "rfs", "sigmoid_rfs", "balsig")
            for name, strength in (
                ("logit_adjustment", 0.5),
                ("logit_adjustment", 1.0),
                ("norcal", 0.3),
                ("norcal", 0.6),
            )
        ),
    ),
    "sgd": Ablation(
        "What does SGD, which BALMS needs, do to Balanced Softmax in its second stage?",
        (
            Method("adamw", "AdamW", "decoupled_balsoftmax", stage="second"),
            Method("sgd", "SGD", "decoupled_balsoftmax", _SGD, stage="second"),
        ),
    ),
    "feature_cache": Ablation(
        "Does a second stage on cached features equal one without the cache?",
        tuple(
            replace(
                METHODS[name],
                name=f"{name}_{kind}",
                title=f"{METHODS[name].title}, {kind}",
                cached=kind == "cached",
            )
            for name in ("decoupled_balsig", "balms")
            for kind in ("cached", "uncached")
        ),
    ),
    "lws": Ablation(
        "Is it the learning rate that keeps LWS near its base?",
        tuple(
            replace(METHODS["lws"], name=name, title=title, opts=opts)
            for name, title, opts in (
                ("as_is", "learning rate as it is", {}),
                ("times_10", "learning rate times 10", {"SOLVER.BASE_LR": 0.01}),
                # Decay pulls the scales to zero with a force that grows with the rate.
                (
                    "times_100",
                    "learning rate times 100",
                    {"SOLVER.BASE_LR": 0.1, "SOLVER.WEIGHT_DECAY": 0.0},
                ),
            )
        ),
    ),
    "base": Ablation(
        "Which detector should a second stage start from?",
        tuple(
            replace(
                METHODS[name],
                name=f"{name}_on_{base}",
                title=METHODS[name].title.removesuffix(", second stage"),
                base=base,
            )
            for name in ("crt", "decoupled_balsoftmax", "decoupled_balsig", "balms")
            for base in ("rfs", "softmax")
        ),
    ),
    "rfs_threshold": Ablation(
        "Which threshold of repeat factor sampling, for the classifier on frozen features?",
        tuple(
            Method(
                f"t_{threshold:g}",
                f"softmax, t = {threshold:g}",
                "decoupled_balsoftmax",
                {f"{LONG_TAIL}.LOSS.NAME": "softmax", "DATALOADER.REPEAT_THRESHOLD": threshold},
                stage="second",
                base="softmax",
            )
            for threshold in (1e-6, 0.02, 0.0667, 0.2, 1.0)
        ),
    ),
    "class_weights": Ablation(
        "Over what should class weights have a mean of one?",
        (
            *(
                _weighted(config, over)
                for config in ("cbw", "cb")
                for over in ("instances", "classes")
            ),
            Method(
                "ldam_drw",
                "LDAM-DRW, mean 1 over the batch",
                "ldam_drw",
                {f"{LONG_TAIL}.LOSS.CLASS_WEIGHTS.START_ITER": _LATE},
                stage="joint",
            ),
        ),
    ),
    "recent": Ablation(
        "What do FRACAL and Pairwise Class Balance add?",
        (
            *(_fracal(base) for base in ("softmax", "rfs", "sigmoid_rfs", "balsig")),
            _pcb("softmax_pcb", "softmax, RFS"),
            _pcb("seesaw_pcb", "Seesaw"),
            _pcb("eqlv2_pcb", "Equalization Loss v2"),
        ),
    ),
    "boxes": Ablation(
        "Are boxes better when all classes share their regression?",
        tuple(
            Method(
                f"balsig_{kind}",
                f"Balanced Sigmoid, {kind.replace('_', '-')} boxes",
                "balsig",
                {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": kind == "class_agnostic"},
                stage="joint",
            )
            for kind in ("class_specific", "class_agnostic")
        ),
    ),
    "execution": Ablation(
        "What do faster ways of running a model do to its AP?",
        tuple(
            Method(
                name,
                f"Balanced Sigmoid, {title}",
                "balsig",
                {f"{LONG_TAIL}.INFERENCE.{key}": value for key, value in inference.items()},
                stage="test",
                base="balsig",
            )
            for name, title, inference in (
                ("defaults", "defaults", {}),
                ("fast_convolutions", "fast convolutions", {"FAST_CONVOLUTIONS": True}),
                (
                    "bfloat16_folded",
                    "bfloat16 and folded norms",
                    {"PRECISION": "bfloat16", "FAST_CONVOLUTIONS": True},
                ),
            )
        ),
    ),
    "imbalance": Ablation(
        "How does the tail depend on the imbalance (exponential tail)?",
        tuple(
            Method(
                f"{name}_{imbalance}",
                f"{METHODS[name].title}, imbalance {imbalance}",
                METHODS[name].config,
                stage="joint",
                data={"tail": "exponential", "imbalance": float(imbalance)},
            )
            for imbalance in (10, 100, 1000)
            for name in ("rfs", "balsig")
        ),
    ),
}


def methods_named(names: list[str], ablation: str) -> list[Method]:
    """Return the methods of these names, or the variants of an ablation, all where no name is
    given.

    Raises:
        InputError: there is none of a name.
    """
    known = METHODS
    if ablation:
        if ablation not in ABLATIONS:
            raise InputError(f"--ablation is {ablation!r}; choose one of {', '.join(ABLATIONS)}")
        known = {variant.name: variant for variant in ABLATIONS[ablation].variants}
    for name in names:
        if name not in known:
            raise InputError(f"--methods names {name!r}; choose from {', '.join(known)}")
    return [known[name] for name in names or known]
