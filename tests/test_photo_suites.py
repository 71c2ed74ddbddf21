"""Suites of photographs in folds: each fold is trained, and all are scored together."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from balms_det.evaluation import read_predictions, score_with_caps
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, annotation_path, generate
from lab.glyphs_lt import data, plan, runs
from lab.glyphs_lt.data import Files, Photographs
from lab.glyphs_lt.methods import METHODS
from lab.glyphs_lt.suites import CCP_LT_CPU, GLYPHS_LT_CPU

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 2
# A stand-in for the training tool, which predicts most objects of the validation set.
TRAIN_NET = """
import json, pathlib, random, sys
words = sys.argv[1:]
value = {a: b for a, b in zip(words, words[1:])}
output = pathlib.Path(value["OUTPUT_DIR"])
with open(pathlib.Path(__file__).parent / "calls", "a") as calls:
    print(json.dumps(words), file=calls)
(output / "inference").mkdir(parents=True, exist_ok=True)
random.seed(value["SEED"] + value["MODEL.WEIGHTS"][:4])
datasets = [words[i + 2] for i, word in enumerate(words) if word == "--dataset"]
content = json.loads(pathlib.Path(datasets[1]).read_text())
predictions = [
    {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
    | {"score": random.random()} for a in content["annotations"] if random.random() < 0.7
]
(output / "inference" / "lvis_instances_results.json").write_text(json.dumps(predictions))
(output / "inference" / "lvis_results.json").write_text("{}")
(output / "model_final.pth").write_text("")
with open(output / "metrics.json", "w") as metrics:
    print(json.dumps({"iteration": 29, "time": 2.0 + int("fold1" in datasets[1])}), file=metrics)
"""


@pytest.fixture
def suite():
    return dataclasses.replace(CCP_LT_CPU, data=Photographs(classes=6, folds=FOLDS))


@pytest.fixture
def workspace(tmp_path):
    script = tmp_path / "train_net.py"
    script.write_text(TRAIN_NET)
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    for fold in range(FOLDS):
        options = GlyphOptions(
            classes=6, train_images=5, val_images=3, size=64, min_scale=0.2, seed=fold
        )
        generate(tmp_path / f"glyphs{fold}", options, workers=1, progress=False)
        for split in ("train", "val"):
            path = annotation_path(tmp_path / f"glyphs{fold}", split)
            content = json.loads(path.read_text())
            for image in content["images"]:
                image["id"] += 1000 * fold
            for annotation in content["annotations"]:
                annotation["image_id"] += 1000 * fold
            (photos / f"fold{fold}_{split}.json").write_text(json.dumps(content))
    return plan.Workspace(tmp_path / "work", script, photos=photos)


def calls(workspace):
    path = workspace.train_net.parent / "calls"
    words = [json.loads(line) for line in path.read_text().splitlines()]
    return [dict(zip(line, line[1:], strict=False)) | {"all": line} for line in words]


def perform(suite, workspace, name, seed=1):
    run = plan.Run(suite, METHODS[name], seed)
    return run, runs.perform(run, workspace, workspace.root / "runs", root=ROOT)


def test_every_fold_is_trained_once_and_from_the_weights_of_the_configuration(suite, workspace):
    _, result = perform(suite, workspace, "rfs")
    made = calls(workspace)
    assert len(made) == FOLDS
    assert {call["MODEL.WEIGHTS"] for call in made} == {"efficientnet-lite://lite0"}
    for fold, call in enumerate(made):
        paths = [word for word in call["all"] if word.endswith(".json")]
        assert [Path(path).name for path in paths] == [f"fold{fold}_train.json",
                                                       f"fold{fold}_val.json"]  # fmt: skip
    assert perform(suite, workspace, "rfs")[1] == result
    assert len(calls(workspace)) == FOLDS
    assert result["iterations"] == 30 and result["minutes_of_training"] == 1.25


def test_a_second_stage_starts_from_the_base_of_its_own_fold(suite, workspace):
    run, _ = perform(suite, workspace, "decoupled_balsig")
    made = calls(workspace)
    assert len(made) == 2 * FOLDS
    for fold, part in enumerate(run.parts):
        base = plan.output_dir(part.base, workspace)
        second = next(c for c in made if c["OUTPUT_DIR"] == str(plan.output_dir(part, workspace)))
        assert second["MODEL.WEIGHTS"] == str(base / "model_final.pth")
        first = next(call for call in made if call["OUTPUT_DIR"] == str(base))
        assert any(word.endswith(f"fold{fold}_train.json") for word in first["all"])


def test_the_scores_are_of_all_folds_together(suite, workspace):
    run, result = perform(suite, workspace, "rfs")
    name, path = runs.registered_data(run, workspace)
    content = json.loads(path.read_text())
    folds = [json.loads((workspace.photos / f"fold{k}_val.json").read_text()) for k in range(FOLDS)]
    assert [image["id"] for image in content["images"]] == [
        image["id"] for fold in folds for image in fold["images"]
    ]
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, 1 + sum(len(fold["annotations"]) for fold in folds)))
    records = [
        record
        for part in run.parts
        for record in json.loads(plan.predictions_file(part, workspace).read_text())
    ]
    pooled = plan.predictions_file(run, workspace)
    assert json.loads(pooled.read_text()) == records
    expected = score_with_caps(name, read_predictions(pooled), [20])[20]["segm"]
    stored = result["caps"]["20"]["segm"]
    for metric, value in stored.items():
        assert value == pytest.approx(expected[metric], abs=1e-3)
    assert 0 < stored["AP"] < 100


def test_a_class_is_in_the_group_of_its_mean_training_images(tmp_path):
    counts = [(10, 9, 11), (10, 10, 12), (100, 100, 100), (100, 101, 102)]
    files = []
    for fold in range(3):
        categories = [
            {"id": i, "name": str(i), "image_count": row[fold], "instance_count": 2 * row[fold]}
            for i, row in enumerate(counts)
        ]
        for split in ("train", "val"):
            content = {"images": [], "annotations": [], "categories": categories}
            (tmp_path / f"{fold}{split}.json").write_text(json.dumps(content))
        files.append(Files(tmp_path / f"{fold}train.json", tmp_path / f"{fold}val.json", tmp_path))
    path = data.pooled_annotations(files, tmp_path / "pooled" / "val.json")
    categories = json.loads(path.read_text())["categories"]
    assert [category["frequency"] for category in categories] == ["r", "c", "c", "f"]
    assert [category["image_count"] for category in categories] == [10, 11, 100, 101]
    assert [category["instance_count"] for category in categories] == [20, 21, 200, 202]


def test_folds_differ_and_glyphs_have_none(suite):
    run = plan.Run(suite, METHODS["balsig"], 1)
    assert len({part.key() for part in [run, *run.parts]}) == FOLDS + 1
    assert all(part.parts == [part] for part in run.parts)
    glyphs = plan.Run(GLYPHS_LT_CPU, METHODS["balsig"], 1)
    assert glyphs.parts == [glyphs]


def test_photographs_that_are_not_there_are_refused(suite, workspace, tmp_path):
    with pytest.raises(InputError, match="--photos is not given"):
        perform(suite, dataclasses.replace(workspace, photos=None), "rfs")
    (workspace.photos / "fold1_val.json").unlink()
    with pytest.raises(InputError, match="fold1_val.json: it does not exist; set --photos"):
        perform(suite, workspace, "rfs")


@pytest.mark.e2e
def test_the_tool_refuses_ablations_of_photographs(tmp_path):
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "compare.py"]
    command += ["--suite", "ccp_lt_cpu", "--ablation", "margin", "--page", tmp_path / "page.md"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "choose a suite of glyphs" in done.stderr
