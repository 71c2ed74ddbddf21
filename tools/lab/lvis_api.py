"""LVIS's precision by lvis-api, the reference that evaluation is compared with.

LVISEvaluator(name, precision_of=lvis_api_precision)
"""

from collections.abc import Sequence
from types import SimpleNamespace

import lvis.eval
import numpy as np
from lvis import LVIS, LVISEval, LVISResults

from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation import ImagePredictions

# lvis 0.5.3 uses np.float, which NumPy 1.24 removed: its module sees a NumPy that has it.
lvis.eval.np = SimpleNamespace(**{**vars(np), "float": float})


def lvis_api_precision(
    ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions], task: str, max_dets: int
) -> np.ndarray:
    """Return the precision (T, P, K, A), -1 where there is no ground truth."""
    lvis_gt = LVIS(ground_truth.path)
    records = [record for prediction in predictions for record in prediction.records([task])]
    if records:
        lvis_dt = LVISResults(lvis_gt, records, max_dets=max_dets)
    else:  # LVISResults looks at the first record.
        lvis_dt = LVISResults.__new__(LVISResults)
        lvis_dt.logger = lvis_gt.logger
        lvis_dt.dataset = {**lvis_gt.dataset, "annotations": []}
        lvis_dt._create_index()
    evaluation = LVISEval(lvis_gt, lvis_dt, task)
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"]
    return precision
