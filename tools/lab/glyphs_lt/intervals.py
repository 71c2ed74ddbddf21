"""How sure the difference between two methods is: bootstrap intervals over images.

The runs of all seeds are taken together, as if every seed had been tested on images of its own; the
images are then drawn with replacement, the same for both methods.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hotcoco

from balms_det.annotations.file import read_json
from balms_det.evaluation import ImagePredictions, best_of_each_image

METRICS = ("AP", "APr", "APc", "APf")


def differences(
    annotations: Path,
    baseline: Sequence[Sequence[ImagePredictions]],
    method: Sequence[Sequence[ImagePredictions]],
    *,
    cap: int,
    draws: int = 1000,
    confidence: float = 0.95,
) -> dict[str, dict[str, float]]:
    """Return the gain of `method` over `baseline` in mask AP, in percent, with an interval.

    Args:
        annotations: of the validation set, in LVIS format.
        baseline, method: one set of predictions for each seed, of the same seeds.
        cap: detections of an image that count.
        draws: of the bootstrap.
        confidence: that the interval holds the difference.

    Returns:
        metric -> {"difference", "lower", "upper"}, for AP, APr, APc and APf.
    """
    assert len(baseline) == len(method)
    content = read_json(annotations)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        path.write_text(json.dumps(_repeated(content, len(baseline))))
        ground_truth = hotcoco.LVIS(str(path))

    def evaluated(runs: Sequence[Sequence[ImagePredictions]]) -> Any:
        records = [
            {**detection, "image_id": _image_id(detection["image_id"], copy)}
            for copy, predictions in enumerate(runs)
            for image in best_of_each_image(predictions, cap)
            for detection in image.records(["segm"])
        ]
        detections = hotcoco.LVISResults(ground_truth, records, max_dets=cap)
        evaluation = hotcoco.LVISEval(ground_truth, detections, "segm")
        evaluation.evaluate()
        return evaluation

    compared = hotcoco.compare(
        evaluated(baseline),
        evaluated(method),
        n_bootstrap=draws,
        seed=0,
        confidence=confidence,
    )
    return {
        metric: {
            "difference": round(100 * compared["deltas"][metric], 3),
            "lower": round(100 * compared["ci"][metric]["lower"], 3),
            "upper": round(100 * compared["ci"][metric]["upper"], 3),
        }
        for metric in METRICS
    }


def _image_id(image_id: int, copy: int) -> int:
    return image_id + 10_000_000 * copy


def _repeated(content: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return an annotation file with every image `times` times, under ids of its own."""
    size = max((annotation["id"] for annotation in content["annotations"]), default=0)
    return {
        **content,
        "images": [
            {**image, "id": _image_id(image["id"], copy)}
            for copy in range(times)
            for image in content["images"]
        ],
        "annotations": [
            {
                **annotation,
                "id": annotation["id"] + size * copy,
                "image_id": _image_id(annotation["image_id"], copy),
            }
            for copy in range(times)
            for annotation in content["annotations"]
        ],
    }
