"""The options of classification experiments, by configuration node.

Paper: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv:2007.10740.
Release: its authors' code for classification, from which all defaults are unless stated otherwise.
"""

from dataclasses import dataclass

from balms_det.classification.data import DATASETS
from balms_det.classification.networks import BACKBONES
from balms_det.classification.sampling import SAMPLERS
from balms_det.options import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Choices, Options, Range, option


@dataclass(frozen=True)
class RunOptions(Options):
    """The run as a whole."""

    output_dir: str = option(
        "OUTPUT_DIR",
        "",
        "Directory of checkpoints and results. Empty: output/CONFIG_if{IMBALANCE}_seed{SEED}, with "
        "the name of the configuration.",
    )
    device: str = option("DEVICE", "auto", '"auto" is a GPU where there is one.')
    seed: int = option(
        "SEED",
        0,
        "Seed of the long-tailed subset, of the initialisation and of training.",
        allowed=Range(lambda seed: 0 <= seed < 2**32, "a number from 0 to 2^32 - 1"),
    )
    imbalance: float = option(
        "IMBALANCE",
        100,
        "Imbalance factor: training images of the most frequent class over those of the rarest. It "
        "has no effect on lists of images, which are long-tailed already.",
        allowed=Range(lambda imbalance: imbalance >= 1, "1 (balanced) or more"),
    )
    sampler: str = option(
        "SAMPLER",
        "shuffle",
        '"shuffle": every image once in an epoch. "class_balanced", "square_root": a class is '
        "drawn with a probability proportional to n_j^0, n_j^(1/2), then one of its images "
        '(arXiv:1910.09217). "meta": Meta Sampler, a class is drawn at a learned rate '
        "(paper, section 3.4).",
        allowed=Choices(SAMPLERS),
    )


@dataclass(frozen=True)
class DataOptions(Options):
    """The data set."""

    name: str = option(
        "DATA.NAME",
        "cifar10",
        '"cifar10", "cifar100", "digits" (scikit-learn\'s) or "image_list".',
        allowed=Choices(DATASETS),
    )
    root: str = option(
        "DATA.ROOT",
        "datasets",
        "CIFAR: torchvision's directory, or an .npz of JPEG copies; lists: that of the images.",
    )
    train_list: str = option(
        "DATA.TRAIN_LIST", "", 'List of training images, "path label" in each line.'
    )
    test_list: str = option("DATA.TEST_LIST", "", "List of test images.")
    num_classes: int = option("DATA.NUM_CLASSES", 0, "Number of the classes of the lists.")
    num_workers: int = option("DATA.NUM_WORKERS", 4, "Processes that read the images of a list.")


@dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation of training images (balms_det/classification/augment.py)."""

    crop_padding: int = option(
        "AUGMENT.CROP_PADDING", 4, "Pixels of padding before a random crop.", allowed=AT_LEAST_0
    )
    flip: bool = option("AUGMENT.FLIP", True, "Whether images are mirrored at random.")
    autoaugment: bool = option("AUGMENT.AUTOAUGMENT", True, "Whether AutoAugment's policy applies.")
    cutout: int = option(
        "AUGMENT.CUTOUT", 16, "Side in pixels of the square that is cut out.", allowed=AT_LEAST_0
    )


@dataclass(frozen=True)
class ModelOptions(Options):
    """The network."""

    backbone: str = option(
        "MODEL.BACKBONE.NAME",
        "resnet32_cifar",
        "The backbone.",
        allowed=Choices(BACKBONES),
    )
    backbone_weights: str = option(
        "MODEL.BACKBONE.WEIGHTS", "", "State dict of a torchvision ResNet to start from, or empty."
    )
    weights: str = option(
        "MODEL.WEIGHTS",
        "",
        "Checkpoint of a first stage; {IMBALANCE} and {SEED} stand for this run's.",
    )
    pixel_mean: tuple[float, ...] = option(
        "MODEL.PIXEL_MEAN",
        (125.307, 122.961, 113.8575),
        "Mean of each channel, on the scale from 0 to 255 (0.4914, 0.4822, 0.4465 of 255).",
    )
    pixel_std: tuple[float, ...] = option(
        "MODEL.PIXEL_STD",
        (51.5865, 50.847, 51.255),
        "Deviation of each channel, on the same scale (0.2023, 0.1994, 0.2010 of 255).",
    )


@dataclass(frozen=True)
class SolverOptions(Options):
    """SGD and its schedule.

    The learning rate goes from WARMUP_LR to BASE_LR in WARMUP_ITERS iterations, and then down a
    cosine to zero at MAX_ITER.
    """

    batch_size: int = option("SOLVER.BATCH_SIZE", 512, "Images of a batch.", allowed=AT_LEAST_1)
    max_iter: int = option("SOLVER.MAX_ITER", 13000, "Iterations.", allowed=AT_LEAST_1)
    base_lr: float = option("SOLVER.BASE_LR", 0.1, "Highest learning rate.", allowed=ABOVE_0)
    warmup_lr: float = option("SOLVER.WARMUP_LR", 0.05, "First learning rate.", allowed=ABOVE_0)
    warmup_iters: int = option("SOLVER.WARMUP_ITERS", 800, "Iterations of the warm-up.")
    momentum: float = option("SOLVER.MOMENTUM", 0.9, "Momentum.")
    nesterov: bool = option("SOLVER.NESTEROV", False, "Whether the momentum is Nesterov's.")
    weight_decay: float = option("SOLVER.WEIGHT_DECAY", 5e-4, "Weight decay.")
    checkpoint_period: int = option(
        "SOLVER.CHECKPOINT_PERIOD", 1000, "Iterations from one checkpoint to the next."
    )
    log_period: int = option(
        "SOLVER.LOG_PERIOD", 100, "Iterations from one line of progress to the next."
    )
    meta_batch_size: int = option(
        "SOLVER.META.BATCH_SIZE",
        512,
        "Images of the Meta Sampler's class-balanced meta batch, drawn from the training images.",
        allowed=AT_LEAST_1,
    )


ALL_OPTIONS = (RunOptions, DataOptions, AugmentOptions, ModelOptions, SolverOptions)
