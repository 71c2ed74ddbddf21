"""The options of this package that belong to no loss and no calibration, by node.

Paper: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv:2007.10740.
Slides: Ren, Yu, Cai and Zhao, "Balanced Activation for Long-tailed Visual Recognition", LVIS
    2020; technical report: arXiv:2008.11037.
Release: the code of the paper's authors.
"""

from dataclasses import dataclass

from balms_det.annotations.frequency_groups import are_groups
from balms_det.classifier import CLASSIFIERS
from balms_det.options import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    Choices,
    Options,
    Range,
    option,
)


@dataclass(frozen=True)
class LongTailOptions(Options):
    """Class statistics, classifiers and training, under MODEL.LONG_TAIL."""

    stats_file: str = option(
        "STATS_FILE",
        "",
        "Class statistics of the training set: a file written by `balms-det stats`, or an "
        "annotation file. Empty: the trainer counts DATASETS.TRAIN.",
    )
    count_by: str = option(
        "COUNT_BY",
        "instances",
        'What n_j counts: "instances" (slides) or "images" that contain class j (release).',
        allowed=Choices(("instances", "images")),
        source="slides",
    )
    groups: str = option(
        "GROUPS",
        "lvis",
        'Which classes are rare, common and frequent: "lvis" takes what the annotation file says, '
        'or LVIS\'s limits of 10 and 100 training images; "thirds" makes groups of equal size; '
        '"20,200" sets the limits. APr, APc and APf are of these groups, and ACSL reads them.',
        allowed=Range(are_groups, '"lvis", "thirds", or two limits such as "20,200"'),
        source="arXiv:1908.03195",
    )
    reinit_mismatched: bool = option(
        "REINIT_MISMATCHED",
        False,
        "Whether layers of a checkpoint whose shape differs from the model's keep their "
        "initialisation, and are listed, or the checkpoint is refused.",
    )
    classifier: str = option(
        "CLASSIFIER",
        "linear",
        'Layer of the class logits: "linear"; "cosine", COSINE_TEMPERATURE times the cosine of '
        'feature and class weight; or "lws", one learned scale per class, for the second stage of '
        "LWS (arXiv:1910.09217).",
        allowed=Choices(CLASSIFIERS),
    )
    mask_classifier: str = option(
        "MASK_CLASSIFIER",
        "linear",
        'Layer of the mask logits: "linear" or "cosine".',
        allowed=Choices(("linear", "cosine")),
    )
    cosine_temperature: float = option(
        "COSINE_TEMPERATURE",
        20.0,
        "Factor on the cosines of a cosine classifier. LDAM's authors take 30.",
        allowed=ABOVE_0,
        source="authors' code of Seesaw",
    )
    fast_training: bool = option(
        "FAST_TRAINING",
        False,
        "Train on a CPU with matrix products instead of convolutions (3 x 3 by Winograd's "
        "algorithm) and of RoIAlign's gradient: the same up to rounding. docs/PERFORMANCE.md has "
        "the speed.",
    )


@dataclass(frozen=True)
class DecoupleOptions(Options):
    """Two-stage training (arXiv:1910.09217; arXiv:2007.10740), under MODEL.LONG_TAIL.

    MODEL.WEIGHTS is the checkpoint of a first stage, and all but a few modules of it are frozen.
    """

    enabled: bool = option("DECOUPLE.ENABLED", False, "Whether this is a second stage.")
    train_modules: list[str] = option(
        "DECOUPLE.TRAIN_MODULES",
        ["roi_heads.box_predictor.cls_score"],
        "Exact paths of the modules that train. A Cascade R-CNN has one classifier in each stage: "
        "roi_heads.box_predictor.{0,1,2}.cls_score.",
        source="release",
    )
    reinit: list[str] = option(
        "DECOUPLE.REINIT",
        [],
        "Paths among these of the modules that start from their initialisation instead of the "
        "first stage's values (cRT).",
        source="release",
    )
    start_iter: int = option(
        "DECOUPLE.START_ITER",
        0,
        "Iteration from which all but TRAIN_MODULES is frozen, for both stages in one run. Above "
        "0, MODEL.WEIGHTS is what any training starts from, and nothing is reinitialised.",
    )
    feature_cache: str = option(
        "DECOUPLE.FEATURE_CACHE",
        "",
        "Directory of the box head's features of every training image, so that a second stage "
        "that trains only the classifier computes them once. Empty: each iteration computes them.",
    )
    feature_views: int = option(
        "DECOUPLE.FEATURE_VIEWS", 1, "Number of augmentations of an image that are cached."
    )
    feature_rows: int = option(
        "DECOUPLE.FEATURE_ROWS",
        0,
        "Number of proposals cached of each augmentation, those on an object first; 0 caches all "
        "MODEL.RPN.POST_NMS_TOPK_TRAIN.",
    )


@dataclass(frozen=True)
class InferenceOptions(Options):
    """How evaluation and demo run the model, under MODEL.LONG_TAIL.

    The defaults give Detectron2's detections; the others round differently. docs/PERFORMANCE.md has
    the speed and the differences.
    """

    batch_size: int = option(
        "INFERENCE.BATCH_SIZE",
        1,
        "Images at a time. Those of a batch are padded to the largest, which moves scores "
        "slightly.",
        allowed=Range(lambda size: size >= 1, "the number of images at a time, 1 or more"),
    )
    fast_convolutions: bool = option(
        "INFERENCE.FAST_CONVOLUTIONS",
        False,
        "Fold batch norms into convolutions, run these with channels last in memory, and on a CPU "
        "with Winograd's algorithm: scores differ by some 1e-6.",
    )
    precision: str = option(
        "INFERENCE.PRECISION",
        "float32",
        '"float32", or "bfloat16" or "float16" where PyTorch\'s autocast thinks it safe. CPUs '
        "without instructions for it are slower so.",
        allowed=Choices(("float32", "bfloat16", "float16")),
    )
    compile_backbone: bool = option(
        "INFERENCE.COMPILE_BACKBONE",
        False,
        "torch.compile the backbone, which takes minutes once.",
    )


@dataclass(frozen=True)
class DatasetOptions(Options):
    """Data sets of your own, under DATASETS."""

    register: list[list[str]] = option(
        "REGISTER",
        [],
        "Annotation files to register, each as [NAME, JSON, IMAGE_ROOT]; --dataset adds to it. A "
        "run's config.yaml holds them with absolute paths. Those whose files are not present are "
        "passed over.",
        allowed=Range(
            lambda sets: all(
                isinstance(entry, list | tuple) and [type(part) for part in entry] == [str] * 3
                for entry in sets
            ),
            "a list of [NAME, JSON, IMAGE_ROOT]",
        ),
    )


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """The optimizer, under SOLVER."""

    optimizer: str = option(
        "OPTIMIZER",
        "SGD",
        '"SGD" (Detectron2\'s own) or "AdamW", which learns from scratch in far fewer iterations.',
        allowed=Choices(("SGD", "AdamW")),
    )


@dataclass(frozen=True)
class MetaOptions(Options):
    """Learning of class rates, under SOLVER (paper, section 3.4; formulas: balms_det/bilevel.py).

    It serves the Meta Sampler (DATALOADER.SAMPLER_TRAIN "MetaTrainingSampler") and the Meta
    Reweighter (CLASS_WEIGHTS.NAME "learned").
    """

    base_lr: float = option(
        "META.BASE_LR",
        0.01,
        "Learning rate of Adam on the rates' logits psi. The release takes 0.001 on "
        "ImageNet-LT and Places-LT.",
        allowed=ABOVE_0,
        source="release",
    )
    initial_power: float = option(
        "META.INITIAL_POWER",
        0.0,
        "The Meta Sampler's rates sigma(psi) start in proportion to n_j^-INITIAL_POWER. 0: at 1/2 "
        "for every class, so that all images are drawn alike. The release "
        "takes 0.1 on ImageNet-LT and 0.3 on Places-LT.",
        allowed=AT_LEAST_0,
        source="release",
    )
    temperature: float = option(
        "META.TEMPERATURE",
        1.0,
        "T of the straight-through Gumbel estimate.",
        allowed=ABOVE_0,
        source="release",
    )
    loss: str = option(
        "META.LOSS",
        "plain",
        'Loss on the class-balanced meta batch: "plain", the cross-entropy of the raw logits '
        '(paper), or "shifted", the training loss with its margins (release, detection).',
        allowed=Choices(("plain", "shifted")),
        source="paper",
    )
    features_per_class: int = option(
        "META.FEATURES_PER_CLASS",
        8,
        "Where everything before the classifier is frozen, the meta batch is drawn from the last "
        "RoI features of each class, this many, instead of a forward pass of its own.",
        allowed=AT_LEAST_1,
    )
