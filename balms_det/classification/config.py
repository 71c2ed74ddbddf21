"""Every configuration key of the classification experiments, with its meaning and source.

Paper: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv:2007.10740.
Release: its authors' code for classification.
"""

from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode as CN

from balms_det.classification.data import DATASETS
from balms_det.classification.networks import BACKBONES
from balms_det.classification.sampling import SAMPLERS
from balms_det.config import add_balms_config, merge_config_files, run_name
from balms_det.config.checks import check, check_allowed, merge_config
from balms_det.config.keys import check_options
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.registry import LOSSES
from balms_det.options import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Choices, Range

# Of MODEL.LONG_TAIL and of its node DECOUPLE, what a classifier has too.
_SHARED = ("COUNT_BY", "LOSS", "CLASSIFIER", "COSINE_TEMPERATURE")
_SHARED_DECOUPLE = ("ENABLED", "TRAIN_MODULES", "REINIT")


def default_config() -> CN:
    """The keys and their defaults: the release's recipe on CIFAR-10-LT, first stage."""
    cfg = CN()
    # Where checkpoints and results go. Empty: output/CONFIG_if{IMBALANCE}_seed{SEED}, CONFIG being
    # the configuration file's name without .yaml.
    cfg.OUTPUT_DIR = ""
    # "auto" is a GPU where there is one.
    cfg.DEVICE = "auto"
    # Of the long-tailed subset, of the initialisation, and of every random number of training.
    cfg.SEED = 0
    # Imbalance factor: how many times as many training images the most frequent class has as the
    # rarest. No effect on lists of images, which are long-tailed already.
    cfg.IMBALANCE = 100

    cfg.DATA = CN()
    # "cifar10", "cifar100", "digits" (scikit-learn's) or "image_list".
    cfg.DATA.NAME = "cifar10"
    # CIFAR: torchvision's folder, or an .npz of JPEG copies; lists: the folder of the images.
    cfg.DATA.ROOT = "datasets"
    # Lists of the release, "path label" in each line, and the number of their classes.
    cfg.DATA.TRAIN_LIST = ""
    cfg.DATA.TEST_LIST = ""
    cfg.DATA.NUM_CLASSES = 0
    # Processes that read the images of a list.
    cfg.DATA.NUM_WORKERS = 4

    # What training images go through, see balms_det/classification/augment.py. The release's are
    # the defaults.
    cfg.AUGMENT = CN()
    cfg.AUGMENT.CROP_PADDING = 4
    cfg.AUGMENT.FLIP = True
    cfg.AUGMENT.AUTOAUGMENT = True
    # Side of the square in pixels.
    cfg.AUGMENT.CUTOUT = 16

    cfg.MODEL = CN()
    # One of balms_det.classification.networks.BACKBONES.
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = "resnet32_cifar"
    # State dict of a ResNet of torchvision to start from, or "".
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    # Checkpoint of a first stage; {IMBALANCE} and {SEED} stand for this run's.
    cfg.MODEL.WEIGHTS = ""
    # Of each channel, on the scale from 0 to 255. Release, on CIFAR: 0.4914, 0.4822, 0.4465 and
    # 0.2023, 0.1994, 0.2010 of 255.
    cfg.MODEL.PIXEL_MEAN = (125.307, 122.961, 113.8575)
    cfg.MODEL.PIXEL_STD = (51.5865, 50.847, 51.255)
    # The detector's own keys, explained in docs/CONFIGURATION.md.
    cfg.MODEL.LONG_TAIL = CN()
    detector = CN({"MODEL": {}, "SOLVER": {}, "DATALOADER": {}, "TEST": {}})
    add_balms_config(detector)
    for key in _SHARED:
        cfg.MODEL.LONG_TAIL[key] = detector.MODEL.LONG_TAIL[key]
    cfg.MODEL.LONG_TAIL.DECOUPLE = CN()
    for key in _SHARED_DECOUPLE:
        cfg.MODEL.LONG_TAIL.DECOUPLE[key] = detector.MODEL.LONG_TAIL.DECOUPLE[key]
    cfg.MODEL.LONG_TAIL.LOSS.NAME = "softmax"
    cfg.MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES = ["classifier"]

    # "shuffle": every image once in an epoch. "class_balanced", "square_root": a class is drawn
    # with a probability proportional to n_j^0, n_j^(1/2), then one of its images
    # (arXiv:1910.09217). "meta": Meta Sampler, a class is drawn at a learned rate (paper, 3.4).
    cfg.SAMPLER = "shuffle"

    # SGD; the learning rate goes from WARMUP_LR to BASE_LR in WARMUP_ITERS iterations, and then
    # down a cosine to zero at MAX_ITER. Defaults: release.
    cfg.SOLVER = CN()
    cfg.SOLVER.BATCH_SIZE = 512
    cfg.SOLVER.MAX_ITER = 13000
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WARMUP_LR = 0.05
    cfg.SOLVER.WARMUP_ITERS = 800
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 5e-4
    # Iterations from one checkpoint, and one line of progress, to the next.
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    cfg.SOLVER.LOG_PERIOD = 100

    # What learns the rates of the Meta Sampler: the detector's own keys.
    cfg.SOLVER.META = CN()
    for key in ("BASE_LR", "INITIAL_POWER", "TEMPERATURE"):
        cfg.SOLVER.META[key] = detector.SOLVER.META[key]
    # Images of the class-balanced meta batch, drawn from the training images. Release: a batch.
    cfg.SOLVER.META.BATCH_SIZE = 512
    return cfg


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """The configuration of a run: defaults, then the file, then KEY VALUE overrides.

    Fills in OUTPUT_DIR, MODEL.WEIGHTS and DEVICE.

    Raises:
        InputError: a key is unknown, a value not allowed, or the file cannot be used.
    """
    cfg = default_config()
    reference = "balms_det/classification/config.py"
    merge_config_files(cfg, config_file, reference=reference)
    merge_config(cfg, lambda: cfg.merge_from_list(list(opts)), "the command line", reference)
    if cfg.DEVICE == "auto":
        cfg.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    validate_config(cfg)
    place = {"IMBALANCE": f"{cfg.IMBALANCE}", "SEED": cfg.SEED}
    cfg.OUTPUT_DIR = (
        cfg.OUTPUT_DIR or f"output/{run_name(config_file)}_if{{IMBALANCE}}_seed{{SEED}}"
    )
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.MODEL, "WEIGHTS")):
        for name, value in place.items():
            node[key] = node[key].replace(f"{{{name}}}", str(value))
    cfg.freeze()
    return cfg


_ALLOWED: dict[str, Range | Choices] = {
    "DATA.NAME": Choices(DATASETS),
    "MODEL.BACKBONE.NAME": Choices(BACKBONES),
    "SAMPLER": Choices(SAMPLERS),
    "MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME": Choices(("none", "inverse", "effective_number")),
    "IMBALANCE": Range(lambda imbalance: imbalance >= 1, "1 (balanced) or more"),
    "SEED": Range(lambda seed: 0 <= seed < 2**32, "a number from 0 to 2^32 - 1"),
    "AUGMENT.CROP_PADDING": AT_LEAST_0,
    "AUGMENT.CUTOUT": AT_LEAST_0,
    "SOLVER.BATCH_SIZE": AT_LEAST_1,
    "SOLVER.MAX_ITER": AT_LEAST_1,
    "SOLVER.BASE_LR": ABOVE_0,
    "SOLVER.WARMUP_LR": ABOVE_0,
    "SOLVER.META.BATCH_SIZE": AT_LEAST_1,
}


def validate_config(cfg: CN) -> None:
    """Refuse values and combinations that make no sense, before any data is loaded.

    Raises:
        InputError: naming the key, its value, and what is allowed.
    """
    for key, allowed in _ALLOWED.items():
        check_allowed(cfg, key, allowed)
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
