"""Sweeping a calibration over stored predictions, against evaluating each strength afresh."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from test_lvis_evaluation import NUM_CLASSES, as_instances, make_ground_truth, perturb, score

from balms_det.calibration import Calibration
from balms_det.evaluation import LVISEvaluator, plot_sweep, read_predictions, sweep
from balms_det.runtime.errors import InputError

IDS = range(1, NUM_CLASSES + 1)
COUNTS = torch.tensor([5 * index + 1 for index in range(NUM_CLASSES)])
CAP = 20


def calibration(strength):
    return Calibration("norcal", strength, COUNTS, exclusive=False)


@pytest.fixture(scope="module")
def instances():
    return as_instances(perturb(make_ground_truth()[1], "crowded"))


@pytest.fixture
def name(tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(make_ground_truth()[0]))
    MetadataCatalog.get("swept").set(
        json_file=str(path), thing_classes=[f"class_{index}" for index in range(NUM_CLASSES)]
    )
    yield "swept"
    MetadataCatalog.remove("swept")


@pytest.fixture
def stored(name, instances, tmp_path):
    """The file that an evaluation of the uncalibrated predictions leaves."""
    score(name, instances, output_dir=tmp_path / "inference")
    return tmp_path / "inference" / "lvis_instances_results.json"


def test_predictions_are_read_as_they_were_written(name, instances, stored):
    evaluator = LVISEvaluator(name, max_dets_per_image=CAP)
    assert (
        evaluator.score(read_predictions(stored))
        == score(name, instances, max_dets_per_image=CAP)[0]
    )
    first = read_predictions(stored)[0]
    assert first.scores.dtype == np.float32
    expected = instances[first.image_id].scores.numpy()
    np.testing.assert_array_equal(first.scores, expected)


@pytest.mark.parametrize("content", ["{}", '{"a": 1}', "[1, 2]", '[{"image_id": 1}]', '["text"]'])
def test_what_is_no_predictions_is_refused(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    if content == "{}":
        assert read_predictions(path) == []
    else:
        with pytest.raises(InputError, match="results.json: these are no predictions"):
            read_predictions(path)


def test_every_strength_scores_as_an_evaluation_of_calibrated_predictions(name, instances, stored):
    strengths = [0.0, 0.5, 2.0]
    evaluator = LVISEvaluator(name, max_dets_per_image=CAP)
    records = list(sweep(evaluator, read_predictions(stored), IDS, calibration, strengths))
    assert [record["strength"] for record in records] == strengths
    for record in records:
        calibrated = {}
        for image_id, prediction in instances.items():
            calibrated[image_id] = type(prediction)(
                prediction.image_size, **prediction.get_fields()
            )
            calibrated[image_id].scores = calibration(record["strength"]).rescore(
                prediction.scores, prediction.pred_classes
            )
        expected, _ = score(name, calibrated, max_dets_per_image=CAP)
        assert {task: record[task] for task in ("bbox", "segm")} == expected
    assert records[0]["segm"] != records[1]["segm"] != records[2]["segm"]


def test_category_without_a_count_is_refused(name, stored):
    evaluator = LVISEvaluator(name)
    with pytest.raises(InputError, match="of category 12, which the class statistics do not"):
        list(sweep(evaluator, read_predictions(stored), range(1, 12), calibration, [0.5]))


def test_set_without_annotations_is_refused(name, stored, tmp_path):
    content = json.loads((tmp_path / "val.json").read_text())
    content["annotations"] = []
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="val.json has no annotations"):
        list(sweep(LVISEvaluator(name), read_predictions(stored), IDS, calibration, [0.5]))


def test_plot_is_a_picture_even_where_a_group_has_no_value(tmp_path):
    metrics = {"AP": 10.0, "APr": -100.0, "APc": 9.0, "APf": 12.0}
    records = [{"strength": s, "bbox": metrics, "segm": metrics} for s in (0.0, 1.0)]
    plot_sweep(records, tmp_path / "plot.png", title="norcal", xlabel="gamma")
    picture = np.asarray(Image.open(tmp_path / "plot.png"))
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 10
