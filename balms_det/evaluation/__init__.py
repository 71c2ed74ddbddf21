"""Scoring predictions by LVIS's metrics, and printing the scores."""

from balms_det.evaluation.budget import (
    best_of_each_class,
    best_of_each_image,
    score_with_caps,
    score_with_class_budget,
)
from balms_det.evaluation.lvis import LVISEvaluator
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.report import format_per_class, format_results
from balms_det.evaluation.result_file import read_predictions
from balms_det.evaluation.sweep import plot_sweep, sweep

__all__ = [
    "ImagePredictions",
    "LVISEvaluator",
    "best_of_each_class",
    "best_of_each_image",
    "format_per_class",
    "format_results",
    "plot_sweep",
    "read_predictions",
    "score_with_caps",
    "score_with_class_budget",
    "sweep",
]
