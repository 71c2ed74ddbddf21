"""The command-line tools from end to end, on a tiny generated data set."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from balms_det.config import config_file
from balms_det.data import register_dataset
from balms_det.evaluation import LVISEvaluator, read_predictions
from balms_det.synthetic import GlyphOptions, generate
from lab.lvis_api import lvis_api_precision

pytestmark = pytest.mark.e2e

TOOLS = Path(__file__).resolve().parents[1] / "tools"
KEYS = {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}
TINY = [
    "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "SOLVER.CHECKPOINT_PERIOD", "2",
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


def run(tool, *args, check=True):
    """Run a tool as a user would; with `check`, it must succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(TOOLS / tool), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def error_of(done):
    """The one sentence that a tool ended with."""
    assert done.returncode == 2, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), done.stderr[-3000:]
    return last


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    generate(
        folder, GlyphOptions(classes=10, train_images=24, val_images=6, size=64, min_scale=0.2)
    )
    return folder


def datasets(folder):
    return [
        "--dataset", "glyphs_train", folder / "glyphs_train.json", folder,
        "--dataset", "glyphs_val", folder / "glyphs_val.json", folder,
    ]  # fmt: skip


def train_net(folder, output, *args, opts=(), **kwargs):
    quickstart = ["--config-file", config_file("glyphs_quickstart.yaml")]
    options = [*TINY, "SOLVER.MAX_ITER", "3", "OUTPUT_DIR", output, *opts]
    return run("train_net.py", *quickstart, *datasets(folder), *args, *options, **kwargs)


def results(output):
    return json.loads((output / "inference" / "lvis_results.json").read_text())


@pytest.fixture
def val(glyphs):
    """The validation set, registered in this process."""
    register_dataset("tools_val", str(glyphs / "glyphs_val.json"), str(glyphs))
    yield "tools_val"
    DatasetCatalog.remove("tools_val")
    MetadataCatalog.remove("tools_val")


@pytest.fixture(scope="module")
def trained(glyphs, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    train_net(glyphs, output)
    return output


def test_training_leaves_checkpoint_statistics_metrics_and_predictions(trained):
    assert (trained / "model_final.pth").is_file()
    assert (trained / "class_stats.json").is_file()
    assert {task: set(values) for task, values in results(trained).items()} == {
        "bbox": KEYS,
        "segm": KEYS,
    }
    per_class = json.loads((trained / "inference" / "lvis_per_class.json").read_text())
    assert len(per_class) == 10
    assert (trained / "inference" / "lvis_instances_results.json").is_file()


def test_evaluating_the_checkpoint_repeats_the_results(trained, glyphs, val, tmp_path):
    output = tmp_path / "evaluated"
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    done = train_net(glyphs, output, "--eval-only", opts=weights)
    assert results(output) == results(trained)
    assert "APr" in done.stdout + done.stderr
    evaluator = LVISEvaluator(val, distributed=False, precision_of=lvis_api_precision)
    stored = read_predictions(output / "inference" / "lvis_instances_results.json")
    assert evaluator.score(stored) == results(trained)


def test_resuming_continues_where_training_stopped(trained, glyphs, tmp_path):
    output = tmp_path / "resumed"
    shutil.copytree(trained, output)
    train_net(glyphs, output, "--resume", opts=["SOLVER.MAX_ITER", "5"])
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 4
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 3" in log


@pytest.mark.usefixtures("two_devices")
def test_two_processes_train_and_evaluate_as_one_does(trained, glyphs, tmp_path):
    output = tmp_path / "two"
    url = ["--num-gpus", "2", "--dist-url", "auto"]
    train_net(glyphs, output, *url)
    assert set(results(output)) == {"bbox", "segm"}
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    evaluated = tmp_path / "evaluated"
    train_net(glyphs, evaluated, *url, "--eval-only", opts=weights)
    assert results(evaluated) == results(trained)


DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("kind", ["cached features", "frozen late"])
def test_two_processes_train_the_classifier_alone(trained, glyphs, tmp_path, kind):
    """Each computes a part of the features and trains on all; or both freeze in the one run."""
    opts = [f"{DECOUPLE}.ENABLED", "True", "MODEL.WEIGHTS", trained / "model_final.pth"]
    opts += {
        "cached features": [f"{DECOUPLE}.FEATURE_CACHE", tmp_path / "features"],
        "frozen late": [f"{DECOUPLE}.START_ITER", "1"],
    }[kind]
    output = tmp_path / "second"
    train_net(glyphs, output, "--num-gpus", "2", "--dist-url", "auto", opts=opts)
    if kind == "cached features":
        (num_rows,) = (tmp_path / "features").glob("*/num_rows.npy")
        assert len(np.load(num_rows)) == 24 and (np.load(num_rows) > 0).all()
        before, after = (
            torch.load(folder / "model_final.pth", weights_only=True)["model"]
            for folder in (trained, output)
        )
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {f"roi_heads.box_predictor.cls_score.{n}" for n in ("weight", "bias")}
    assert set(results(output)) == {"bbox", "segm"}


CALIBRATED = [
    "MODEL.LONG_TAIL.CALIBRATION.NAME", "norcal", "MODEL.LONG_TAIL.CALIBRATION.STRENGTH", "0.5",
]  # fmt: skip


def predictions_of(output):
    path = output / "inference" / "lvis_instances_results.json"
    return sorted(json.loads(path.read_text()), key=lambda p: (p["image_id"], -p["score"]))


def test_evaluation_calibrates_with_the_statistics_of_the_checkpoint(trained, glyphs, tmp_path):
    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    weights = shutil.copy(trained / "model_final.pth", tmp_path)
    every = ["MODEL.WEIGHTS", weights, "TEST.DETECTIONS_PER_IMAGE", "1000"]
    train_net(glyphs, plain, "--eval-only", opts=every)
    train_net(glyphs, calibrated, "--eval-only", opts=[*every, *CALIBRATED])
    stats = torch.load(weights, weights_only=True)["class_stats"]["classes"]
    counts = {record["category_id"]: record["instance_count"] for record in stats}
    expected = sorted(
        (p["image_id"], p["category_id"], p["score"] / max(counts[p["category_id"]], 1) ** 0.5)
        for p in predictions_of(plain)
    )
    actual = sorted(
        (p["image_id"], p["category_id"], p["score"]) for p in predictions_of(calibrated)
    )
    assert [a[:2] for a in actual] == [e[:2] for e in expected]
    np.testing.assert_allclose([a[2] for a in actual], [e[2] for e in expected], rtol=1e-5)


def test_calibrate_sweeps_stored_predictions(trained, glyphs, tmp_path):
    output = tmp_path / "loose"
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    train_net(glyphs, output, "--eval-only", opts=[*weights, "TEST.DETECTIONS_PER_IMAGE", "1000"])
    config = ["--config-file", output / "config.yaml", *datasets(glyphs)]
    done = run("calibrate.py", *config, "--method", "norcal", "--strengths", "0,0.5")
    assert "MODEL.LONG_TAIL.CALIBRATION.NAME norcal" in done.stdout
    assert "warning" not in done.stderr
    content = json.loads((output / "calibration_norcal.json").read_text())
    assert content["exact"]
    zero, half = content["records"]
    assert {task: zero[task] for task in ("bbox", "segm")} == results(output)
    assert half["strength"] == 0.5 and set(half["segm"]) == KEYS
    assert Image.open(output / "calibration_norcal.png").size[0] > 100
    capped = run("calibrate.py", *config, "--strengths", "1", "TEST.DETECTIONS_PER_IMAGE", "3")
    assert "warning" in capped.stderr
    again = run("calibrate.py", *config, *CALIBRATED, check=False)
    assert "calibrated already" in error_of(again)


def test_demo_calibrates_with_the_checkpoint_alone(trained, glyphs, tmp_path):
    config = tmp_path / "config.yaml"
    text = (trained / "config.yaml").read_text()
    config.write_text(text.replace(str(trained / "class_stats.json"), str(tmp_path / "gone.json")))
    scores = {}
    for name, opts in (("plain", []), ("calibrated", CALIBRATED)):
        run(
            "demo.py", "--config-file", config, "--weights", trained / "model_final.pth",
            "--input", glyphs / "val" / "000000000001.jpg", "--output", tmp_path / name,
            "--confidence-threshold", "0.0", *opts,
        )  # fmt: skip
        predictions = json.loads((tmp_path / name / "predictions.json").read_text())
        scores[name] = [instance["score"] for instance in predictions[0]["instances"]]
    assert max(scores["calibrated"]) < max(scores["plain"])


def test_demo_draws_and_writes_predictions_without_the_training_data(trained, glyphs, tmp_path):
    output = tmp_path / "pictures"
    run(
        "demo.py", "--config-file", trained / "config.yaml",
        "--weights", shutil.copy(trained / "model_final.pth", tmp_path),
        "--input", glyphs / "val" / "*1.jpg", glyphs / "val" / "000000000002.jpg",
        "--output", output, "--confidence-threshold", "0.0",
    )  # fmt: skip
    predictions = json.loads((output / "predictions.json").read_text())
    names = ["000000000001.jpg", "000000000002.jpg"]
    assert [Path(p["file_name"]).name for p in predictions] == names
    categories = json.loads((glyphs / "glyphs_train.json").read_text())["categories"]
    for prediction, name in zip(predictions, names, strict=True):
        assert np.asarray(Image.open(output / name)).ndim == 3
        assert prediction["instances"]
        for instance in prediction["instances"]:
            category = categories[instance["category_id"] - 1]
            assert instance["category_name"] == category["name"]
            assert instance["frequency"] == category["frequency"]
            assert mask_util.decode(instance["segmentation"]).shape == (64, 64)


def test_demo_continues_after_an_unreadable_picture_and_then_says_so(trained, glyphs, tmp_path):
    (tmp_path / "in").mkdir()
    picture = (glyphs / "val" / "000000000001.jpg").read_bytes()
    (tmp_path / "in" / "a.jpg").write_bytes(picture[: len(picture) // 2])
    (tmp_path / "in" / "b.jpg").write_bytes(picture)
    arguments = ["--config-file", trained / "config.yaml", "--output", tmp_path / "out"]
    weights = ["--weights", trained / "model_final.pth"]
    done = run("demo.py", *arguments, *weights, "--input", tmp_path / "in", check=False)
    assert "1 of 2 images" in error_of(done)
    assert "a.jpg: the image cannot be read" in done.stderr
    assert (tmp_path / "out" / "b.jpg").is_file()
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1
    nothing = run("demo.py", *arguments, *weights, "--input", tmp_path / "no*.jpg", check=False)
    assert "no image is found" in error_of(nothing)


def test_a_coco_format_file_trains_and_is_scored_by_frequency_too(glyphs, tmp_path):
    for split in ("train", "val"):
        content = json.loads((glyphs / f"glyphs_{split}.json").read_text())
        for image in content["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
            image["file_name"] = "/".join(image.pop("coco_url").split("/")[-2:])
        for category in content["categories"]:
            del category["frequency"]
            category["id"] *= 3
        for annotation in content["annotations"]:
            annotation["category_id"] *= 3
            annotation["iscrowd"] = 0
        (tmp_path / f"glyphs_{split}.json").write_text(json.dumps(content))
        shutil.copytree(glyphs / split, tmp_path / split)
    output = tmp_path / "output"
    done = train_net(tmp_path, output)
    predictions = json.loads((output / "inference" / "lvis_instances_results.json").read_text())
    assert {p["category_id"] for p in predictions} <= set(range(3, 31, 3))
    assert "copypaste: AP,AP50,AP75,APs,APm,APl,APr,APc,APf" in done.stdout + done.stderr
    per_class = json.loads((output / "inference" / "lvis_per_class.json").read_text())
    counted = json.loads((output / "class_stats.json").read_text())["classes"]
    assert [r["image_count"] for r in per_class] == [c["image_count"] for c in counted]
    assert [r["frequency"] for r in per_class] == [c["group"] for c in counted]


def test_a_picture_that_breaks_off_ends_training_with_one_sentence_and_loses_nothing(
    glyphs, tmp_path
):
    data, output = tmp_path / "data", tmp_path / "output"
    shutil.copytree(glyphs, data)
    train_net(data, output)
    earlier = (output / "model_final.pth").read_bytes()
    for picture in (data / "train").iterdir():
        picture.write_bytes(picture.read_bytes()[:400])
    more = ["SOLVER.MAX_ITER", "5", "DATALOADER.NUM_WORKERS", "1"]
    done = train_net(data, output, "--resume", opts=more, check=False)
    assert ".jpg: the image cannot be read" in error_of(done)
    assert "Traceback" not in done.stderr
    assert (output / "model_final.pth").read_bytes() == earlier


@pytest.mark.usefixtures("two_devices")
def test_a_second_stage_trains_the_classifier_alone_in_two_processes(trained, glyphs, tmp_path):
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    opts = [*weights, "MODEL.LONG_TAIL.DECOUPLE.ENABLED", "True"]
    train_net(glyphs, tmp_path, "--num-gpus", "2", "--dist-url", "auto", opts=opts)
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (trained, tmp_path)
    )
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    classifier = "roi_heads.box_predictor.cls_score"
    assert changed == {f"{classifier}.weight", f"{classifier}.bias"}


def test_weights_of_another_class_count_are_refused_or_started_afresh(trained, tmp_path):
    generate(
        tmp_path, GlyphOptions(classes=12, train_images=24, val_images=4, size=64, min_scale=0.2)
    )
    twelve = ["MODEL.ROI_HEADS.NUM_CLASSES", "12", "MODEL.WEIGHTS", trained / "model_final.pth"]
    done = train_net(tmp_path, tmp_path / "refused", opts=twelve, check=False)
    error = error_of(done)
    assert "model_final.pth" in error and "cls_score.weight is [10, 256], the model's [12" in error
    afresh = ["MODEL.LONG_TAIL.REINIT_MISMATCHED", "True"]
    train_net(tmp_path, tmp_path / "afresh", opts=[*twelve, *afresh])
    log = (tmp_path / "afresh" / "log.txt").read_text()
    assert (
        "started afresh, for their shapes differ: roi_heads.box_predictor.cls_score.weight" in log
    )


def test_what_a_user_can_get_wrong_at_the_start_is_one_sentence(glyphs, tmp_path):
    """The sentences themselves are tested with the modules; here, that the tool ends with them."""
    (tmp_path / "notes.json").write_text('{"notes": []}')
    shutil.copytree(glyphs / "train", tmp_path / "train")
    not_annotations = ["--dataset", "notes", tmp_path / "notes.json", tmp_path]
    for args, opts, expected in [
        (not_annotations, [], "notes.json"),
        ([], ["SOLVER.MAX_ITR", "3"], "SOLVER.MAX_ITER?"),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", "12"], "has 10 classes"),
        ([], ["MODEL.WEIGHTS", tmp_path / "none.pth"], "none.pth: there is no such checkpoint"),
    ]:
        done = train_net(glyphs, tmp_path / "output", *args, opts=opts, check=False)
        assert expected in error_of(done)
        assert "Traceback" not in done.stderr


def test_a_training_and_a_demo_print_no_warning(glyphs, tmp_path):
    """Run as a user does, with Python's own filters."""

    def plain(tool, *args):
        done = subprocess.run(
            [sys.executable, str(TOOLS / tool), *map(str, args)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (done.stdout + done.stderr).splitlines()
        return [line for line in lines if re.search(r"Warning\b|^W\d{4} ", line)]

    config = ["--config-file", "glyphs_quickstart.yaml"]
    options = [*TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", tmp_path / "run"]
    assert plain("train_net.py", *config, *datasets(glyphs), *options) == []
    weights = ["--weights", tmp_path / "run" / "model_final.pth"]
    drawn = ["--input", glyphs / "val", "--output", tmp_path / "drawn"]
    assert plain("demo.py", *config, *weights, *drawn) == []
