"""What a report shows is what hotcoco and lvis-api compute from the same files."""

import contextlib
import io
import json

import hotcoco
import numpy as np
import pytest
from lvis import LVIS, LVISEval, LVISResults
from report_sets import GROUPS, IDS, ground_truth, results, written

from balms_det.annotations.class_stats import ClassStats
from balms_det.report import Options, gather, run_files
from balms_det.report.gathering import LVIS_CAP
from balms_det.runtime.errors import InputError

KEYS = ("AP", "APr", "APc", "APf", "AP50", "AP75")


def hotcoco_evaluation(annotations, predictions, task, max_dets=LVIS_CAP):
    gt = hotcoco.LVIS(annotations)
    evaluation = hotcoco.LVISEval(gt, hotcoco.LVISResults(gt, predictions, max_dets), task)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    return evaluation


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    content = ground_truth()
    annotations, first = written(folder, content, results(content))
    _, second = written(folder, content, results(content, seed=1), "other")
    return annotations, first, second


@pytest.fixture(scope="module")
def data(files):
    annotations, *runs = files
    return gather(annotations, [run_files(run) for run in runs], Options(bootstrap=12))


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_ap_equals_hotcocos_and_lvis_apis(files, data, task, monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis-api needs it
    annotations, *runs = files
    for run, path in zip(data.runs, runs, strict=True):
        theirs = hotcoco_evaluation(annotations, path, task).get_results()
        gt = LVIS(annotations)
        reference = LVISEval(gt, LVISResults(gt, json.load(open(path))), task)
        reference.run()
        for key in KEYS:
            assert run.scores[task][key] == pytest.approx(100 * theirs[key], abs=1e-10)
            assert run.scores[task][key] == pytest.approx(100 * reference.results[key], abs=1e-10)
        assert min(theirs[key] for key in KEYS) > 0.05, "there is something to compare"


def test_the_ap_of_classes_averages_to_ap(data):
    run = data.runs[0]
    known = [ap for ap in run.class_ap if ap is not None]
    assert np.mean(known) == pytest.approx(run.scores["segm"]["AP"])


def test_tide_equals_hotcocos_and_its_groups_add_up(files, data):
    annotations, first, _ = files
    theirs = hotcoco_evaluation(annotations, first, "bbox").tide_errors()
    tide = data.detail.tide
    assert list(tide) == ["all", "r", "c", "f"]
    for name, value in theirs["delta_ap"].items():
        assert tide["all"][name] == pytest.approx(100 * value, abs=1e-10)
    assert tide["all"]["AP50"] == pytest.approx(100 * theirs["ap_base"], abs=1e-10)
    objects = data.classes.objects
    number = {g: sum(objects[i] > 0 and GROUPS[c] == g for i, c in enumerate(IDS)) for g in "rcf"}
    for name, total in tide["all"].items():
        parts = sum(number[group] * tide[group][name] for group in "rcf")
        assert parts == pytest.approx(sum(number.values()) * total, abs=1e-8)
    assert min(tide["r"][name] for name in ("Cls", "Loc", "Dupe")) > 0


def test_tides_group_is_ap50_of_the_group(files, data):
    annotations, first, _ = files
    evaluation = hotcoco_evaluation(annotations, first, "bbox")
    precision = evaluation.eval["precision"][0, :, :, 0, 0]
    for group in "rcf":
        of_group = precision[:, [GROUPS[c] == group for c in IDS]]
        expected = 100 * of_group[of_group > -1].mean()
        assert data.detail.tide[group]["AP50"] == pytest.approx(expected, abs=1e-9)


def test_calibration_equals_hotcocos_and_its_groups_add_up(files, data):
    annotations, first, _ = files
    theirs = hotcoco_evaluation(annotations, first, "bbox").calibration(10, 0.5)
    calibration = data.runs[0].calibration
    assert calibration["all"]["ece"] == theirs["ece"]
    assert calibration["all"]["bins"] == theirs["bins"]
    for position, part in enumerate(theirs["bins"]):
        counts = [calibration[group]["bins"][position]["count"] for group in "rcf"]
        assert sum(counts) == part["count"]
    for group in "rcf":
        for name, ece in calibration[group]["per_category"].items():
            assert ece == theirs["per_category"][name]


@pytest.mark.parametrize("cap", [10, 30])
def test_ap_under_a_cap_equals_that_of_the_best_detections(files, data, cap):
    annotations, first, _ = files
    theirs = hotcoco_evaluation(annotations, first, "bbox", max_dets=cap).get_results()
    for key in ("AP", "APr", "APc", "APf"):
        assert data.detail.caps[cap][key] == pytest.approx(100 * theirs[key], abs=1e-10)
    assert data.detail.caps[10]["AP"] < data.detail.caps[30]["AP"]


def test_ap_fixed_of_few_detections_is_ap_without_a_cap(files, data):
    annotations, first, _ = files
    theirs = hotcoco_evaluation(annotations, first, "bbox", max_dets=-1).get_results()
    assert data.detail.ap_fixed["AP"] == pytest.approx(100 * theirs["AP"], abs=1e-10)


def test_ap50_pool_ranks_all_classes_together(files, data):
    annotations, first, _ = files
    evaluation = hotcoco_evaluation(annotations, first, "bbox")
    ranked, num_objects = [], 0
    for part in evaluation.eval_imgs:
        if part is None or part["aRng"] != [0, 1e10]:
            continue
        num_objects += len(part["gtIgnore"]) - sum(part["gtIgnore"])
        matched, ignored = part["dtMatched"][0], part["dtIgnore"][0]
        for score, right, out in zip(part["dtScores"], matched, ignored, strict=True):
            if not out:
                ranked.append((-score, right))
    right, precisions, recalls = 0, [], []
    for position, (_, is_right) in enumerate(sorted(ranked), start=1):
        right += is_right
        precisions.append(right / position)
        recalls.append(right / num_objects)
    total = 0.0
    for step in range(101):
        reached = [p for p, r in zip(precisions, recalls, strict=True) if r >= step / 100]
        total += max(reached, default=0.0)
    assert data.detail.ap50_pool == pytest.approx(100 * total / 101, abs=1e-6)


def test_differences_and_intervals_are_hotcocos_bootstrap(files, data):
    annotations, first, second = files
    a, b = (hotcoco_evaluation(annotations, path, "segm") for path in (first, second))
    theirs = hotcoco.compare(a, b, n_bootstrap=12)
    difference = data.runs[1].difference
    for key in KEYS:
        assert difference.change[key] == pytest.approx(100 * theirs["deltas"][key], abs=1e-10)
        expected = 196 * theirs["ci"][key]["std_err"]
        assert difference.half_width[key] == pytest.approx(expected, abs=1e-10)
        assert difference.better[key] == theirs["ci"][key]["prob_positive"]
        change = data.runs[1].scores["segm"][key] - data.runs[0].scores["segm"][key]
        assert difference.change[key] == pytest.approx(change, abs=1e-10)
        assert data.runs[0].intervals[key] > 0
    assert data.runs[0].difference is None and data.runs[1].intervals == {}


def test_an_interval_is_the_spread_of_the_runs_own_ap(files, data):
    """Against an evaluation without detections, whose AP is 0 in every sample."""
    annotations, first, _ = files
    run = hotcoco_evaluation(annotations, first, "segm")
    gt = hotcoco.LVIS(annotations)
    nothing = hotcoco.LVISEval(gt, gt.load_res(np.zeros((0, 7))), "segm")
    nothing.evaluate()
    theirs = hotcoco.compare(nothing, run, n_bootstrap=12)
    for key in KEYS:
        expected = 196 * theirs["ci"][key]["std_err"]
        assert data.runs[0].intervals[key] == pytest.approx(expected, abs=1e-10)


def test_counts_are_those_of_the_files(files, data):
    annotations, first, _ = files
    content, found = (json.load(open(path)) for path in (annotations, first))
    for i, category_id in enumerate(IDS):
        assert data.classes.objects[i] == sum(
            a["category_id"] == category_id for a in content["annotations"]
        )
        assert data.detail.detections[i] == sum(r["category_id"] == category_id for r in found)
        assert data.classes.train_images[i] == category_id**2
    assert data.detail.confusion.matrix[:-1].sum() == len(content["annotations"])
    assert data.num_images == 40 and len(data.digest) == 64


def test_one_task_can_be_asked_for(files):
    annotations, first, _ = files
    found = gather(annotations, [run_files(first)], Options(task="segm", bootstrap=0))
    assert list(found.runs[0].scores) == ["segm"] and found.cause_task == "segm"
    theirs = hotcoco_evaluation(annotations, first, "segm").tide_errors()
    for name, value in theirs["delta_ap"].items():
        assert found.detail.tide["all"][name] == pytest.approx(100 * value, abs=1e-10)
    assert found.runs[0].intervals == {}


def test_a_coco_set_equals_cocos_ap_and_takes_its_groups_from_the_training_counts(tmp_path):
    content = ground_truth(federated=False)
    found = results(content, masks=False)
    annotations, predictions = written(tmp_path, content, found)
    counts = 5 * np.arange(1, 25)[::2]
    stats = ClassStats(
        counts, counts, 10_000, 5_000, IDS, [c["name"] for c in content["categories"]],
        ["r" if n <= 10 else "c" if n <= 100 else "f" for n in counts],
    )  # fmt: skip
    data = gather(annotations, [run_files(predictions)], Options(bootstrap=0), stats)
    gt = hotcoco.COCO(annotations)
    evaluation = hotcoco.COCOeval(gt, gt.load_res(predictions), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.run()
    scores = data.runs[0].scores["bbox"]
    for position, key in enumerate(("AP", "AP50", "AP75")):
        assert scores[key] == pytest.approx(100 * evaluation.stats[position], abs=1e-10)
    run = tmp_path / "run"
    (run / "inference").mkdir(parents=True)
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    stats.save(run / "class_stats.json")
    by_run = gather(annotations, [run_files(str(run))], Options(bootstrap=0))
    assert by_run.classes.groups == data.classes.groups
    assert by_run.runs[0].scores == data.runs[0].scores
    assert data.classes.groups == list(stats.groups)
    assert data.classes.train_images == counts.tolist()
    of_class = evaluation.eval["precision"][:, :, :, 0, -1]
    for group in "rc":
        chosen = of_class[:, :, [g == group for g in stats.groups]]
        expected = 100 * chosen[chosen > -1].mean()
        assert scores[f"AP{group}"] == pytest.approx(expected, abs=1e-10)


def test_results_without_detections_are_scored(tmp_path):
    content = ground_truth()
    annotations, predictions = written(tmp_path, content, [])
    data = gather(annotations, [run_files(predictions)], Options(bootstrap=2))
    assert data.runs[0].scores["bbox"]["AP"] == 0
    assert data.detail.confusion.matrix[:, :-1].sum() == 0
    assert data.detail.ap50_pool == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda gt, found: found[0].update(image_id=999), "image 999 was predicted on but is not"),
        (lambda gt, found: gt["images"].pop(0), "annotation 1 is of image 1, which is not listed"),
        (lambda gt, found: gt.update(annotations=[]), "there are no annotations"),
        (lambda gt, found: gt["images"][0].pop("neg_category_ids"), "has no 'neg_category_ids'"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, words):
    content = ground_truth()
    found = results(content)
    for record in found:
        del record["segmentation"]
    change(content, found)
    annotations, predictions = written(tmp_path, content, found)
    with pytest.raises(InputError, match=words):
        gather(annotations, [run_files(predictions)], Options(bootstrap=0))


def test_counts_of_other_classes_are_refused(tmp_path):
    content = ground_truth(federated=False)
    annotations, predictions = written(tmp_path, content, results(content))
    stats = ClassStats([5], [5], 9, 9, [3], ["a"], ["r"])
    with pytest.raises(InputError, match="category 4 .* is not in the class statistics"):
        gather(annotations, [run_files(predictions)], Options(bootstrap=0), stats)


def test_a_runs_files_are_found_and_its_history_is_in_order(tmp_path):
    run = tmp_path / "run"
    (run / "inference").mkdir(parents=True)
    with pytest.raises(InputError, match="there are no predictions"):
        run_files(str(run))
    (run / "inference" / "coco_instances_results.json").write_text("[]")
    assert run_files(str(run)).history == []
    (run / "inference" / "lvis_instances_results.json").write_text("[]")
    (run / "config.yaml").write_text("SEED: 1\n")
    lines = ['{"iteration": 20, "total_loss": 1.0}', '{"iteration": 0, "total_loss": 3.0}']
    lines += ['{"iteration": 20, "total_loss": 0.5}', '{"iteration": 20, "segm/AP": 7.0}', '{"iter']
    (run / "metrics.json").write_text("\n".join(lines))
    files = run_files(str(run))
    assert files.name == "run" and files.predictions.name == "lvis_instances_results.json"
    assert files.configuration == "SEED: 1\n"
    assert files.history == [
        {"iteration": 0, "total_loss": 3.0},
        {"iteration": 20, "total_loss": 0.5, "segm/AP": 7.0},
    ]
