"""The methods of configs/methods: paper, formula and published numbers of each.

In formulas, z is a row's logits, p their softmax (of sigmoid losses, their sigmoids), y the row's
class, t_j one where j = y, n_j the training count of class j, n their sum, k the number of classes
and b the background. A formula is the loss of a row unless it says otherwise.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Numbers on LVIS v1 val, in percent.

    Attributes:
        source: key of :data:`SOURCES`.
        r50, r101: (mask AP, box AP) of Mask R-CNN with this backbone; mask AP alone, or over all,
            rare, common and frequent classes. None where none is known.
    """

    source: str
    r50: tuple[str, str] | None = None
    r101: tuple[str, str] | None = None


@dataclass(frozen=True)
class Method:
    """A file of configs/methods.

    Attributes:
        name: of the file.
        title: what it is.
        paper: arXiv id; "slides", or "" where there is none.
        formula: see the module.
        published: its numbers, or None where none is known.
    """

    name: str
    title: str
    paper: str
    formula: str
    published: Published | None = None


SOURCES = {
    "slides": "authors of the slides (Ren, Yu, Cai and Zhao), details of training unpublished",
    "authors": "authors' repository, 24 epochs",
    "fracal": "authors' repository, 24 epochs; cosine classifier and mask predictor, CARAFE "
    "upsampling, suppression at an overlap of 0.3",
    "mmdetection": "MMDetection, configs/seesaw_loss, repeat factor sampling, 24 epochs",
}

_KANG, _REN, _TAN = "1910.09217", "2007.10740", "2003.05176"
_SOFTMAX = "-log p_y"
_BALSOFTMAX = "-log softmax(z_j + log n_j)_y, b not shifted"
_BALSIG = "sum_j BCE(sigmoid(z_j - m_j), t_j), m_j = log[(n/k)/n_j (n - n_j)/(n - n/k)]"

METHODS = (
    Method(
        "rfs",
        "softmax with repeat factor sampling",
        "1908.03195",
        f"{_SOFTMAX}; an image is repeated max_j max(1, sqrt(t / f_j)) times, f_j the fraction "
        "of images with class j",
        Published(
            "slides", ("22.1 / 11.6 / 21.1 / 27.8", "23.6"), ("23.2 / 13.5 / 22.0 / 28.8", "24.7")
        ),
    ),
    Method(
        "sqrt",
        "softmax, square-root sampling",
        _KANG,
        f"{_SOFTMAX}; a class is drawn in proportion to sqrt(n_j), then one of its images",
    ),
    Method(
        "cbs",
        "softmax, class-balanced sampling",
        _KANG,
        f"{_SOFTMAX}; all classes are drawn equally often, then one of their images",
    ),
    Method(
        "irfs",
        "softmax, instance-aware repeat factors",
        "2305.08069",
        f"{_SOFTMAX}; repeat factors of sqrt(f_j g_j), g_j the fraction of annotations of class j",
    ),
    Method(
        "copy_paste",
        "softmax, Copy-Paste of rare classes, large-scale jitter",
        "2012.07177",
        f"{_SOFTMAX}; objects of a second image, drawn for a rare class half of the time, are "
        "pasted onto each image",
    ),
    Method(
        "crt",
        "cRT: softmax, classifier trained anew (second stage)",
        _KANG,
        f"{_SOFTMAX} on class-balanced images; only the classifier trains",
        Published(
            "slides", ("23.2 / 14.7 / 22.5 / 27.8", "24.8"), ("23.9 / 15.8 / 22.7 / 28.7", "25.6")
        ),
    ),
    Method(
        "lws",
        "LWS: softmax, one learned scale per class (second stage)",
        _KANG,
        "-log softmax(s_j z_j)_y on class-balanced images; only the scales s_j train",
        Published(
            "slides", ("23.3 / 14.9 / 22.5 / 27.8", "24.8"), ("24.2 / 16.5 / 23.1 / 28.8", "24.7")
        ),
    ),
    Method(
        "logit_adjustment",
        "softmax, logits adjusted at test time",
        "2007.07314",
        "at test time softmax(z_j - tau log(k n_j / n))_j, b not shifted",
    ),
    Method(
        "norcal",
        "softmax, NorCal at test time",
        "2107.02170",
        "at test time p_j n_j^-gamma / (sum_i p_i n_i^-gamma + p_b)",
    ),
    Method(
        "fracal",
        "softmax, FRACAL at test time",
        "2410.11774",
        "at test time softmax(z_j - log10(k n_j / n))_j / D_j^2, b unchanged, normalised; D_j the "
        "box-counting dimension of the class's boxes",
        Published(
            "fracal", ("28.5 / 23.0 / 28.1 / 31.5", "28.4"), ("29.9 / 24.6 / 29.3 / 32.8", "29.8")
        ),
    ),
    Method(
        "tau_norm",
        "softmax, tau-normalised at test time",
        _KANG,
        "at test time z_j = w_j f / ||w_j||^tau + b_j",
    ),
    Method(
        "logn",
        "softmax, LogN at test time",
        "2203.17020",
        "at test time (z_j - (mu_j - min mu)) / sigma_j, b unchanged; mu_j, sigma_j the mean and "
        "deviation of the logit over training proposals",
    ),
    Method("sigmoid", "sigmoid cross-entropy", "", "sum_j BCE(sigmoid(z_j), t_j)"),
    Method(
        "balsig",
        "Balanced Sigmoid",
        "slides",
        _BALSIG,
        Published(
            "slides", ("25.1 / 18.3 / 24.0 / 29.3", "26.7"), ("26.4 / 20.1 / 25.4 / 30.2", "28.4")
        ),
    ),
    Method("balsoftmax", "Balanced Softmax", _REN, _BALSOFTMAX),
    Method(
        "decoupled_balsig",
        "Balanced Sigmoid on the classifier alone (second stage)",
        _REN,
        f"{_BALSIG}; only the classifier trains",
    ),
    Method(
        "decoupled_balsoftmax",
        "Balanced Softmax on the classifier alone (second stage)",
        _REN,
        f"{_BALSOFTMAX}; only the classifier trains",
    ),
    Method(
        "balms",
        "BALMS: the same with the Meta Sampler (second stage)",
        _REN,
        f"{_BALSOFTMAX}; classes are drawn at rates sigmoid(psi_j) that lower {_SOFTMAX} on a "
        "class-balanced batch after the step",
    ),
    Method(
        "balms_reweight",
        "Balanced Sigmoid on the classifier alone with the Meta Reweighter (second stage)",
        _REN,
        f"sigmoid(psi_y) over its mean, times {_BALSIG}; psi learned as by the Meta Sampler",
    ),
    Method(
        "cbw",
        "softmax, rows weighted by 1 / n_j",
        "",
        "-w_y log p_y, w_j proportional to 1 / n_j, mean 1 over instances, w_b = 1",
    ),
    Method(
        "cb",
        "softmax, Class-Balanced loss (effective number)",
        "1901.05555",
        "-w_y log p_y, w_j proportional to (1 - beta) / (1 - beta^n_j), mean 1 over instances",
    ),
    Method(
        "focal",
        "focal loss",
        "1708.02002",
        "-sum_j alpha_t (1 - p_t)^gamma log p_t, p_t = p_j or 1 - p_j of the truth",
    ),
    Method(
        "ldam",
        "LDAM, cosine classifier",
        "1906.07413",
        "-log softmax(z_j - s C n_j^(-1/4) t_j)_y, the largest margin 0.5",
    ),
    Method(
        "ldam_drw",
        "LDAM with deferred re-weighting",
        "1906.07413",
        "LDAM's, later times weights of the effective number with mean 1 over the batch",
    ),
    Method(
        "eql",
        "Equalization Loss",
        _TAN,
        "sum_j w_j BCE(p_j, t_j), w_j = 0 for tail classes j != y of an object's row",
        Published(
            "slides", ("24.2 / 16.5 / 24.2 / 27.5", "25.8"), ("25.4 / 18.5 / 25.3 / 28.8", "27.3")
        ),
    ),
    Method(
        "softmax_eql",
        "Softmax Equalization Loss",
        _TAN,
        "-log[exp(z_y) / sum_j w_j exp(z_j)], w_j = 0 at random for tail classes j != y",
    ),
    Method(
        "eqlv2",
        "Equalization Loss v2, no resampling",
        "2012.08548",
        "sum_j w_j BCE(p_j, t_j), w of the ratio of positive to negative gradients so far",
    ),
    Method(
        "seesaw",
        "Seesaw loss, cosine classifier",
        "2008.10032",
        "-log[exp(z_y) / sum_j S_yj exp(z_j)], "
        "S_yj = min(1, N_j / N_y)^p max(1, p_j / p_y)^q, N the samples so far",
        Published("mmdetection", ("26.4", "27.6"), ("27.6", "28.9")),
    ),
    Method(
        "seesaw_normed_mask",
        "the same, cosine mask predictor",
        "2008.10032",
        "as seesaw",
        Published("mmdetection", ("26.8", "27.6"), ("28.2", "28.9")),
    ),
    Method(
        "softmax_pcb",
        "softmax with Pairwise Class Balance",
        "2201.02784",
        "-(1 - a) log p_y - a sum_j M_jy / (sum_i M_iy) log p_j, M the running confusion matrix",
        Published("authors", ("26.5 / 18.5 / 26.5 / 30.2", "28.3")),
    ),
    Method(
        "seesaw_pcb",
        "Seesaw loss with Pairwise Class Balance, cosine classifier and mask predictor",
        "2201.02784",
        "as softmax_pcb, p Seesaw's softmax",
        Published(
            "authors", ("27.2 / 19.0 / 27.1 / 30.9", "28.1"), ("28.7 / 22.8 / 28.0 / 32.1", "30.0")
        ),
    ),
    Method(
        "eqlv2_pcb",
        "Equalization Loss v2 with Pairwise Class Balance, no resampling",
        "2201.02784",
        "eqlv2's with the targets (1 - a) t_j + a M_jy, M the running confusion matrix",
        Published("authors", ("26.2 / 18.2 / 25.9 / 30.1", "27.3")),
    ),
    Method(
        "fed",
        "federated loss on sigmoid",
        "2103.07461",
        "sum_j BCE(p_j, t_j) over the batch's classes and others drawn by sqrt(images)",
    ),
    Method(
        "acsl",
        "Adaptive Class Suppression Loss, no resampling",
        "2104.00885",
        "sum_j w_j BCE(p_j, t_j), w_j = 1 for y and for classes with p_j of at least 0.7",
    ),
    Method(
        "droploss",
        "DropLoss",
        "2104.06402",
        "eql's; background rows drop tail classes at random, by the batch's share of the tail",
    ),
    Method(
        "loce",
        "LOCE's equilibrium loss, cosine mask predictor, no resampling",
        "2108.07507",
        "-log[s_y exp(z_y) / sum_j s_j exp(z_j)], s_j the running mean score of class j",
        Published("authors", ("26.6", "27.4"), ("28.0", "29.0")),
    ),
    Method(
        "ecm",
        "Effective Class-Margin loss, cosine classifier and mask predictor",
        "2301.09724",
        "sum_j w_j BCE(sigmoid(2 z_j + log(n_j / n_-j) / 4), t_j), n_-j what is not of class j",
        Published("authors", ("27.5", "27.9"), ("28.7", "29.4")),
    ),
    Method(
        "gol",
        "Gumbel Optimised Loss, cosine mask predictor",
        "2207.09972",
        "droploss's with p_j = exp(-exp(-z_j))",
        Published(
            "authors", ("27.7 / 21.4 / 27.7 / 30.4", "27.5"), ("29.0 / 22.8 / 29.0 / 31.7", "29.2")
        ),
    ),
    Method(
        "bags",
        "Balanced Group Softmax, no resampling",
        "2006.10408",
        "a softmax of objects against background, and one of each group of classes by count",
    ),
)
