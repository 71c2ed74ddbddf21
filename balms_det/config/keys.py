"""Every configuration key that this package adds to Detectron2's, with its meaning and source.

Paper: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv:2007.10740.
Slides: Tan, Ren et al., "Balanced Activation for Long-tailed Visual Recognition", LVIS 2020.
"""

from pathlib import Path
from typing import Any

from balms_det.runtime.errors import InputError


def add_balms_config(cfg: Any) -> None:
    """Add this package's keys, with their defaults, to a Detectron2 configuration, in place."""
    CN = type(cfg)

    cfg.MODEL.LONG_TAIL = CN()
    # Class statistics of the training set: a file written by tools/class_stats.py, or an
    # annotation JSON. Empty: tools/train_net.py counts DATASETS.TRAIN and fills this in.
    cfg.MODEL.LONG_TAIL.STATS_FILE = ""
    # What n_j counts: "instances" (slides) or "images" that contain class j (authors' release).
    cfg.MODEL.LONG_TAIL.COUNT_BY = "instances"

    # Whether layers of a checkpoint whose shape differs from the model's keep their initialisation
    # (and are listed), or the checkpoint is refused.
    cfg.MODEL.LONG_TAIL.REINIT_MISMATCHED = False

    cfg.MODEL.LONG_TAIL.LOSS = CN()
    # One of balms_det.losses.criterion.METHODS.
    cfg.MODEL.LONG_TAIL.LOSS.NAME = "balanced_sigmoid"
    # Probability p that a sigmoid classifier gives every class before training, through the bias
    # -log((1 - p) / p). Release: 0.001. Softmax classifiers start with a bias of zero.
    cfg.MODEL.LONG_TAIL.LOSS.PRIOR_PROB = 0.001

    # The margin m_j of the balanced losses. Balanced Sigmoid (slides):
    #   m_j = log[(n/k) / n_j * (n - n_j) / (n - n/k)],  n = sum_j n_j,  k classes.
    cfg.MODEL.LONG_TAIL.LOSS.MARGIN = CN()
    # "keep": as above (slides). "drop": without the constant -log(k - 1) (release).
    cfg.MODEL.LONG_TAIL.LOSS.MARGIN.CONSTANT = "keep"
    # RoIs whose logits the margin shifts: "foreground" (release) or "all" (slides). Balanced
    # Sigmoid only: a softmax couples the classes of a row, so its shift is on every row.
    cfg.MODEL.LONG_TAIL.LOSS.MARGIN.ROWS = "foreground"
    # Factor on the margin: 0 turns it off, 1 is the paper's.
    cfg.MODEL.LONG_TAIL.LOSS.MARGIN.TAU = 1.0
    # Iteration from which the margin, or the shift of Balanced Softmax, applies; before it the loss
    # is the plain one. Deferred as LDAM's re-weighting is (arXiv:1906.07413).
    cfg.MODEL.LONG_TAIL.LOSS.MARGIN.START_ITER = 0

    # Focal loss, -alpha_t (1 - p_t)^gamma log p_t (arXiv:1708.02002, eq. 5; defaults: section 5.1).
    cfg.MODEL.LONG_TAIL.LOSS.FOCAL = CN()
    # gamma, 0 or more.
    cfg.MODEL.LONG_TAIL.LOSS.FOCAL.GAMMA = 2.0
    # alpha, the weight of positives against 1 - alpha of negatives, at most 1; -1 leaves it out.
    cfg.MODEL.LONG_TAIL.LOSS.FOCAL.ALPHA = 0.25

    # LDAM (arXiv:1906.07413): margins C / n_j^(1/4) of the true class's cosine, or with the linear
    # classifier of its logit. The largest margin, which sets C. Authors' code: 0.5.
    cfg.MODEL.LONG_TAIL.LOSS.LDAM = CN()
    cfg.MODEL.LONG_TAIL.LOSS.LDAM.MAX_MARGIN = 0.5

    # Equalization Loss (arXiv:2003.05176), "eql" on a sigmoid and "softmax_eql".
    cfg.MODEL.LONG_TAIL.LOSS.EQL = CN()
    # lambda: tail classes are in less than this fraction of the images. Authors' code for LVIS
    # v1: 0.0011; paper, for v0.5: 0.00176.
    cfg.MODEL.LONG_TAIL.LOSS.EQL.LAMBDA = 0.0011
    # gamma of the softmax form: how often a tail class is spared another class's example. Paper, on
    # CIFAR-100-LT: 0.95.
    cfg.MODEL.LONG_TAIL.LOSS.EQL.GAMMA = 0.95

    # Equalization Loss v2 (arXiv:2012.08548; defaults: the authors'): the weight of negatives is a
    # sigmoid of steepness gamma about mu, and alpha strengthens positives.
    cfg.MODEL.LONG_TAIL.LOSS.EQLV2 = CN()
    cfg.MODEL.LONG_TAIL.LOSS.EQLV2.GAMMA = 12.0
    cfg.MODEL.LONG_TAIL.LOSS.EQLV2.MU = 0.8
    cfg.MODEL.LONG_TAIL.LOSS.EQLV2.ALPHA = 4.0

    # Seesaw loss (arXiv:2008.10032; defaults: the authors' code).
    cfg.MODEL.LONG_TAIL.LOSS.SEESAW = CN()
    # Exponents of the mitigation and the compensation factor; 0 turns a factor off.
    cfg.MODEL.LONG_TAIL.LOSS.SEESAW.P = 0.8
    cfg.MODEL.LONG_TAIL.LOSS.SEESAW.Q = 2.0
    # Least probability of the true class that the compensation divides by.
    cfg.MODEL.LONG_TAIL.LOSS.SEESAW.EPS = 0.01
    # Two logits of their own tell objects from background, instead of one more class.
    cfg.MODEL.LONG_TAIL.LOSS.SEESAW.OBJECTNESS = True

    # Adaptive Class Suppression Loss (arXiv:2104.00885; defaults: the authors' code).
    cfg.MODEL.LONG_TAIL.LOSS.ACSL = CN()
    # Score from which a foreground RoI suppresses a class that is not its own.
    cfg.MODEL.LONG_TAIL.LOSS.ACSL.SCORE_THRESHOLD = 0.7
    # Part of the background RoIs that suppress the rare, the common and the frequent classes.
    cfg.MODEL.LONG_TAIL.LOSS.ACSL.BACKGROUND_RATIOS = (0.01, 0.1, 1.0)

    # DropLoss (arXiv:2104.06402). lambda: tail classes are in less than this fraction of the
    # images. Authors, for LVIS v0.5: 0.00177; for v1 the authors of GOL take 0.0011.
    cfg.MODEL.LONG_TAIL.LOSS.DROPLOSS = CN()
    cfg.MODEL.LONG_TAIL.LOSS.DROPLOSS.LAMBDA = 0.0011

    # Equilibrium loss of LOCE (arXiv:2108.07507; defaults: the authors' code).
    cfg.MODEL.LONG_TAIL.LOSS.LOCE = CN()
    # alpha of the running mean scores.
    cfg.MODEL.LONG_TAIL.LOSS.LOCE.MOMENTUM = 0.9
    # The background's mean score, a constant.
    cfg.MODEL.LONG_TAIL.LOSS.LOCE.BACKGROUND_SCORE = 0.01

    # Effective Class-Margin loss (arXiv:2301.09724): the background's count over the sum of the
    # classes'. Authors' code, measured on Mask R-CNN: 6.3313.
    cfg.MODEL.LONG_TAIL.LOSS.ECM = CN()
    cfg.MODEL.LONG_TAIL.LOSS.ECM.BACKGROUND_RATIO = 6.3313

    # Gumbel Optimised Loss (arXiv:2207.09972): lambda of its DropLoss. Authors' code, LVIS v1.
    cfg.MODEL.LONG_TAIL.LOSS.GOL = CN()
    cfg.MODEL.LONG_TAIL.LOSS.GOL.LAMBDA = 0.0011

    # Balanced Group Softmax (arXiv:2006.10408; defaults: the authors').
    cfg.MODEL.LONG_TAIL.LOSS.BAGS = CN()
    # Least counts of every group of classes but the first, ascending.
    cfg.MODEL.LONG_TAIL.LOSS.BAGS.BOUNDARIES = (10, 100, 1000)
    # beta: of RoIs outside a group, how many times as many train it as there are inside.
    cfg.MODEL.LONG_TAIL.LOSS.BAGS.BETA = 8.0

    # A factor on the loss of every RoI by its class, on top of any loss; the background's is 1, and
    # the foreground classes' have a mean of 1.
    cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS = CN()
    # "none"; "inverse": 1 / n_j (class-balanced weighting); "effective_number":
    # (1 - beta) / (1 - beta^n_j) (Class-Balanced loss, arXiv:1901.05555); "learned": the Meta
    # Reweighter (arXiv:2007.10740; authors' detection code), whose factors have a mean of 1 over
    # the foreground RoIs of a batch instead, and which SOLVER.META configures.
    cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.NAME = "none"
    # beta in [0, 1). Paper: 0.999 on large-scale data sets.
    cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.BETA = 0.999
    # Iteration from which the factors apply (deferred re-weighting, arXiv:1906.07413).
    cfg.MODEL.LONG_TAIL.LOSS.CLASS_WEIGHTS.START_ITER = 0

    # The federated loss (arXiv:2103.07461): of each batch on a GPU only NUM_CLASSES classes count,
    # its own and others drawn in proportion to image_count^FREQ_POWER. For losses that treat every
    # class by itself. Defaults: Detectron2's and the authors'.
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED = CN()
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED.ENABLED = False
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED.NUM_CLASSES = 50
    cfg.MODEL.LONG_TAIL.LOSS.FEDERATED.FREQ_POWER = 0.5

    # Correction of the class prior at test time, without training; balms_det/calibration.py.
    cfg.MODEL.LONG_TAIL.POSTHOC = CN()
    # "none", "logit_adjustment" (arXiv:2007.07314), "norcal" (arXiv:2107.02170, whose authors count
    # images: COUNT_BY "images") or "tau_norm" (arXiv:1910.09217).
    cfg.MODEL.LONG_TAIL.POSTHOC.NAME = "none"
    # tau of logit adjustment (paper: 1), gamma of NorCal or tau of tau-normalisation (papers: tuned
    # on held-out data, which tools/calibrate.py does). 0 changes nothing.
    cfg.MODEL.LONG_TAIL.POSTHOC.STRENGTH = 1.0

    # The layer that gives the class logits, one of balms_det.classifier.CLASSIFIERS:
    # "linear"; "cosine", COSINE_TEMPERATURE times the cosine of feature and class weight; or
    # "lws", one learned scale per class, for the second stage of LWS (arXiv:1910.09217).
    cfg.MODEL.LONG_TAIL.CLASSIFIER = "linear"
    # "linear" or "cosine" for the layer that gives the mask logits.
    cfg.MODEL.LONG_TAIL.MASK_CLASSIFIER = "linear"
    # Seesaw, authors' code: 20; LDAM, authors' code: 30.
    cfg.MODEL.LONG_TAIL.COSINE_TEMPERATURE = 20.0

    # Two-stage training (arXiv:1910.09217; arXiv:2007.10740): MODEL.WEIGHTS is the
    # checkpoint of a first stage, and all but a few modules of it are frozen. cRT, LWS, decoupled
    # Balanced Softmax and Balanced Sigmoid are configs/lvis_*_{crt,lws,decoupled_*}.yaml.
    # Tau-normalisation trains nothing and is MODEL.LONG_TAIL.POSTHOC.
    cfg.MODEL.LONG_TAIL.DECOUPLE = CN()
    cfg.MODEL.LONG_TAIL.DECOUPLE.ENABLED = False
    # Exact paths of the modules that train; release: the classifier. A Cascade R-CNN has one in
    # each stage: roi_heads.box_predictor.{0,1,2}.cls_score.
    cfg.MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES = ["roi_heads.box_predictor.cls_score"]
    # Of these, the paths of the modules that start from their initialisation instead of the first
    # stage's values (cRT). Release: none.
    cfg.MODEL.LONG_TAIL.DECOUPLE.REINIT = []
    # Iteration from which all but TRAIN_MODULES is frozen, for both stages in one run: with a value
    # above 0 MODEL.WEIGHTS is what any training starts from, and nothing is reinitialised.
    cfg.MODEL.LONG_TAIL.DECOUPLE.START_ITER = 0
    # Folder where the box head's features of every training image are kept, so that a second stage
    # that trains nothing but the classifier computes them once; "" computes them in each iteration.
    # balms_det/engine/feature_cache.py tells what is kept and when it is computed anew.
    cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE = ""
    # How many augmentations of an image are kept.
    cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_VIEWS = 1
    # How many proposals are kept of each, those on an object first, for training to sample from; 0
    # keeps MODEL.RPN.POST_NMS_TOPK_TRAIN, which is all of them.
    cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_ROWS = 0

    # How evaluation and demo run the model. The defaults give Detectron2's detections; the others
    # round otherwise. How much faster, and how far apart: docs/PERFORMANCE.md.
    cfg.MODEL.LONG_TAIL.INFERENCE = CN()
    # Images at a time. Those of a batch are padded to the largest, which moves scores slightly.
    cfg.MODEL.LONG_TAIL.INFERENCE.BATCH_SIZE = 1
    # Fold batch norms into convolutions, run these with channels last in memory, and on a CPU with
    # Winograd's algorithm: scores differ by some 1e-6.
    cfg.MODEL.LONG_TAIL.INFERENCE.FAST_CONVOLUTIONS = False
    # "float32", or "bfloat16" or "float16" where PyTorch's autocast thinks it safe. CPUs without
    # instructions for it are slower so.
    cfg.MODEL.LONG_TAIL.INFERENCE.PRECISION = "float32"
    # torch.compile the backbone, which takes minutes once.
    cfg.MODEL.LONG_TAIL.INFERENCE.COMPILE_BACKBONE = False

    # Train on a CPU with matrix products in the place of convolutions (3 x 3 by Winograd's
    # algorithm) and of RoIAlign's gradient: the same up to rounding. docs/PERFORMANCE.md tells how
    # much faster.
    cfg.MODEL.LONG_TAIL.FAST_TRAINING = False

    # "SGD" (Detectron2's own) or "AdamW", which learns from scratch in far fewer iterations.
    cfg.SOLVER.OPTIMIZER = "SGD"

    # What learns the class rates of the Meta Sampler (DATALOADER.SAMPLER_TRAIN
    # "MetaTrainingSampler") or of the Meta Reweighter (CLASS_WEIGHTS.NAME "learned"); paper:
    # arXiv:2007.10740, section 3.4; formulas: balms_det/bilevel.py.
    cfg.SOLVER.META = CN()
    # Learning rate of Adam on the rates' logits psi. Authors' code: 0.01, on Places-LT 0.001.
    cfg.SOLVER.META.BASE_LR = 0.01
    # The Meta Sampler's rates sigma(psi) start in proportion to n_j^-INITIAL_POWER. 0: at 1/2 for
    # every class, so that all images are drawn alike (authors' code; on Places-LT 0.3).
    cfg.SOLVER.META.INITIAL_POWER = 0.0
    # T of the straight-through Gumbel estimate. Authors' code: 1.
    cfg.SOLVER.META.TEMPERATURE = 1.0
    # Loss on the class-balanced meta batch: "plain", the cross-entropy of the raw logits (paper),
    # or "shifted", the training loss with its margins (what the authors' detection code computes).
    cfg.SOLVER.META.LOSS = "plain"
    # Where everything before the classifier is frozen, the meta batch is drawn from RoI features
    # of past batches instead of a forward pass of its own: of each class the last ones, this many.
    cfg.SOLVER.META.FEATURES_PER_CLASS = 8

    # What scores LVIS results: "hotcoco" (fast) or "lvis" (the official package, the oracle).
    cfg.TEST.LVIS_BACKEND = "hotcoco"


def config_file(name: str) -> str:
    """Path of a shipped configuration file, e.g. "lvis_r50_balsig.yaml".

    Works from a clone, an editable and a regular installation.

    Raises:
        InputError: there is no configuration of that name.
    """
    package = Path(__file__).resolve().parents[1]
    folder = package / "configs"  # where setup.py installs them
    if not folder.is_dir():
        folder = package.parent / "configs"  # in a clone
    path = folder / name
    if not path.is_file():
        known = ", ".join(sorted(str(p.relative_to(folder)) for p in folder.rglob("*.yaml")))
        raise InputError(f"there is no configuration {name!r}; choose one of: {known}")
    return str(path)
