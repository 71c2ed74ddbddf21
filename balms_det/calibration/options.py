"""The options of calibration, and what each method needs."""

from dataclasses import dataclass

from balms_det.options import AT_LEAST_0, Choices, Options, option

# Whether each needs class statistics.
CALIBRATIONS = {
    "none": False,
    "logit_adjustment": True,
    "norcal": True,
    "fracal": True,
    "tau_norm": False,
    "logn": False,
}


@dataclass(frozen=True)
class CalibrationOptions(Options):
    """Correction of the class prior at test time, without training, under MODEL.LONG_TAIL."""

    name: str = option(
        "CALIBRATION.NAME",
        "none",
        '"none", "logit_adjustment" (arXiv:2007.07314), "norcal" (arXiv:2107.02170, whose authors '
        'count images: COUNT_BY "images"), "fracal" (arXiv:2410.11774, whose authors count images '
        'too), "tau_norm" (arXiv:1910.09217) or "logn" (arXiv:2203.17020).',
        allowed=Choices(CALIBRATIONS),
    )
    strength: float = option(
        "CALIBRATION.STRENGTH",
        1.0,
        "tau of logit adjustment (paper: 1), gamma of NorCal or tau of tau-normalisation (papers: "
        "tuned on held-out data, as `balms-det calibrate` does), or a factor on FRACAL's "
        "or LogN's correction (papers: 1). 0 changes nothing.",
        allowed=AT_LEAST_0,
    )
    fractal_power: float = option(
        "CALIBRATION.FRACTAL_POWER",
        2.0,
        "lambda of FRACAL: exponent of the box-counting dimensions.",
        allowed=AT_LEAST_0,
        source="authors' code of arXiv:2410.11774",
    )
    logit_stats: str = option(
        "CALIBRATION.LOGIT_STATS",
        "",
        "Statistics of the detector's logits, which LogN needs: a file that `balms-det "
        "logit-stats` wrote.",
    )
