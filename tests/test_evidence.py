"""The benchmark's machinery: what is run, what is run again, and the page made of it."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml
from detectron2.config import get_cfg

from balms_det.config import add_balms_config, config_file
from balms_det.engine import validate_config
from balms_det.evaluation import best_of_each_image, read_predictions
from balms_det.runtime.errors import InputError
from lab.glyphs_lt import intervals, page, plan, runs
from lab.glyphs_lt.ablations import ABLATIONS, methods_named
from lab.glyphs_lt.data import Photographs
from lab.glyphs_lt.methods import METHODS
from lab.glyphs_lt.suites import GLYPHS_LT_CPU, SUITES, suite_named

ROOT = Path(__file__).resolve().parents[1]
EVERY_RUN = [
    plan.Run(suite, method, 1, ablation)
    for suite in SUITES.values()
    for ablation, methods in [
        ("", METHODS.values()),
        *((name, ablation.variants) for name, ablation in ABLATIONS.items()),
    ]
    for method in methods
    if not (ablation and isinstance(suite.data, Photographs))  # the ablations are of glyphs
]


# Plans


def test_every_run_of_every_suite_has_a_valid_configuration():
    for run in EVERY_RUN:
        cfg = get_cfg()
        add_balms_config(cfg)
        cfg.merge_from_file(config_file(run.suite.config))
        options = {**run.options(), "MODEL.WEIGHTS": "base.pth"}
        cfg.merge_from_list([str(word) for pair in options.items() for word in pair])
        if run.is_cached:
            cfg.MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE = "features"
        validate_config(cfg)
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == run.suite.data.classes
        assert cfg.TEST.DETECTIONS_PER_IMAGE in run.suite.caps


def test_runs_have_the_same_budget_and_start_from_what_is_trained():
    for run in EVERY_RUN:
        iterations = run.options().get("SOLVER.MAX_ITER")
        assert iterations == (run.suite.second_stage_iters if run.stage == "second" else None)
        assert (run.base is None) == (run.stage == "joint")
        if run.stage == "second":
            assert run.base.stage == "joint"
        if run.stage == "test":
            assert run.base.stage in ("joint", "second")


def test_runs_differ_by_what_was_asked_and_by_nothing_else():
    main = [run for run in EVERY_RUN if not run.ablation]
    assert len({run.key() for run in main}) == len(main)
    method, suite = METHODS["decoupled_balsig"], GLYPHS_LT_CPU
    run = plan.Run(suite, method, 1)
    paper = next(v for v in ABLATIONS["margin"].variants if v.name == "paper")
    assert plan.Run(suite, paper, 1, "margin").key() == run.key()
    for other in (
        dataclasses.replace(run, seed=2),
        dataclasses.replace(run, suite=dataclasses.replace(suite, version=99)),
        dataclasses.replace(run, suite=dataclasses.replace(suite, base="softmax")),
        dataclasses.replace(run, method=dataclasses.replace(method, sampled_counts=True)),
        dataclasses.replace(run, method=dataclasses.replace(method, data={"seed": 5})),
    ):
        assert other.key() != run.key()


def test_unknown_names_are_refused_with_the_known():
    with pytest.raises(InputError, match="--suite is 'glyphs'; choose one of glyphs_lt_cpu"):
        suite_named("glyphs")
    with pytest.raises(InputError, match="--methods names 'rsf'; choose from softmax"):
        methods_named(["rsf"], "")
    with pytest.raises(InputError, match="--ablation is 'margins'; choose one of margin"):
        methods_named([], "margins")
    with pytest.raises(InputError, match="--methods names 'rfs'; choose from none"):
        methods_named(["rfs"], "margin")


# Runs, with a stand-in for the training tool

TRAIN_NET = """
import json, pathlib, random, sys, time
words = sys.argv[1:]
value = {a: b for a, b in zip(words, words[1:])}
output = pathlib.Path(value["OUTPUT_DIR"])
with open(pathlib.Path(__file__).parent / "calls", "a") as calls:
    print(json.dumps(words), file=calls)
if "slow" in words:
    time.sleep(60)
if "--broken" in words:
    sys.exit(3)
(output / "inference").mkdir(parents=True, exist_ok=True)
random.seed(value["MODEL.LONG_TAIL.LOSS.NAME"] + value["SEED"])
datasets = [words[i + 2] for i, word in enumerate(words) if word == "--dataset"]
content = json.loads(pathlib.Path(datasets[1]).read_text())
predictions = [
    {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"],
     "segmentation": a["segmentation"], "score": random.random()}
    for a in content["annotations"] if random.random() < 0.7
]
(output / "inference" / "lvis_instances_results.json").write_text(json.dumps(predictions))
(output / "inference" / "lvis_results.json").write_text("{}")
for name in ("model_final.pth", "model_0000001.pth"):
    (output / name).write_text("")
with open(output / "metrics.json", "w") as metrics:
    for i in (19, 39):
        print(json.dumps({"iteration": i, "time": 0.5, "total_loss": 1.0,
                          "fast_rcnn/fg_cls_accuracy": 0.5}), file=metrics)
"""


@pytest.fixture
def suite():
    few = {"classes": 6, "train_images": 4, "val_images": 3, "size": 64, "min_scale": 0.2}
    return dataclasses.replace(
        GLYPHS_LT_CPU,
        data=dataclasses.replace(GLYPHS_LT_CPU.data, **few),
        pretraining=dataclasses.replace(GLYPHS_LT_CPU.pretraining, **few, first_class=6),
    )


@pytest.fixture
def workspace(tmp_path):
    script = tmp_path / "train_net.py"
    script.write_text(TRAIN_NET)
    return plan.Workspace(tmp_path / "work", script)


def calls(workspace):
    path = workspace.train_net.parent / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()]


def perform(suite, workspace, name, seed=1):
    run = plan.Run(suite, METHODS[name], seed)
    return run, runs.perform(run, workspace, workspace.root / "runs", root=ROOT)


def test_a_run_makes_what_it_starts_from_and_is_made_once(suite, workspace):
    run, result = perform(suite, workspace, "decoupled_balsig")
    pretraining, base, second = calls(workspace)
    assert "SOLVER.MAX_ITER" in pretraining and "--resume" in pretraining
    assert base[base.index("MODEL.WEIGHTS") + 1].endswith("model_final.pth")
    base_dir = plan.output_dir(run.base, workspace)
    assert second[second.index("MODEL.WEIGHTS") + 1] == str(base_dir / "model_final.pth")
    assert "MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE" in second
    assert not list(base_dir.glob("model_0*.pth"))

    assert perform(suite, workspace, "decoupled_balsig")[1] == result
    perform(suite, workspace, "norcal")
    assert len(calls(workspace)) == 4 and "--eval-only" in calls(workspace)[3]
    # Predictions that are there are scored again without another run.
    run.stored(workspace.root / "runs").unlink()
    assert perform(suite, workspace, "decoupled_balsig")[1] == result
    assert len(calls(workspace)) == 4
    perform(suite, workspace, "decoupled_balsig", seed=2)
    assert len(calls(workspace)) == 6


def test_a_stored_run_tells_how_it_was_made_and_names_no_machine(suite, workspace):
    _, result = perform(suite, workspace, "rfs")
    assert result["iterations"] == 40 and result["minutes_of_training"] == 0.33
    assert result["options"] == {"MODEL.LONG_TAIL.LOSS.NAME": "softmax"}
    assert set(result["versions"]) >= {"torch", "detectron2", "hotcoco"}
    assert set(result["caps"]) == {str(cap) for cap in suite.caps}
    assert len(result["per_class"]["segm_AP"]) == 6
    text = json.dumps(result)
    assert str(workspace.root) not in text and str(Path.home()) not in text


def test_the_counts_as_sampled_are_what_the_run_is_told(suite, workspace):
    method = dataclasses.replace(METHODS["balsig"], name="sampled", sampled_counts=True)
    run = plan.Run(suite, method, 1)
    runs.perform(run, workspace, workspace.root / "runs", root=ROOT)
    words = calls(workspace)[-1]
    path = Path(words[words.index("MODEL.LONG_TAIL.STATS_FILE") + 1])
    sampled = [c["instance_count"] for c in json.loads(path.read_text())["classes"]]
    assert len(sampled) == 6 and min(sampled) >= 1


def test_runs_at_the_same_time_make_what_they_share_once(suite, workspace):
    names = ("decoupled_balsig", "decoupled_balsoftmax", "rfs", "decoupled_balsig")
    with ThreadPoolExecutor(len(names)) as pool:
        results = list(pool.map(lambda name: perform(suite, workspace, name)[1], names))
    assert results[0] == results[3]
    made = [words[words.index("OUTPUT_DIR") + 1] for words in calls(workspace)]
    assert len(made) == len(set(made)) == 4  # the pretrained detector, the base, two second stages


def test_a_training_computes_with_the_threads_of_its_suite(suite, workspace, tmp_path):
    told = tmp_path / "threads"
    workspace.train_net.write_text(
        f"import os, pathlib\npathlib.Path({str(told)!r}).write_text(os.environ['OMP_NUM_THREADS'])"
    )
    workspace.run([], tmp_path / "log", threads=3)
    assert told.read_text() == "3"


def test_a_failed_training_is_reported_with_its_log(suite, workspace):
    broken = dataclasses.replace(workspace, arguments=("--broken",))
    with pytest.raises(InputError, match=r"stdout.txt: training failed with status 3"):
        perform(suite, broken, "rfs")


def test_when_the_time_is_over_a_run_is_stopped_and_goes_on_later(suite, workspace):
    start = time.monotonic()
    slow = dataclasses.replace(workspace, arguments=("slow",), deadline=start + 2)
    with pytest.raises(plan.OutOfTime):
        perform(suite, slow, "rfs")
    assert time.monotonic() - start < 30
    with pytest.raises(plan.OutOfTime):
        perform(suite, slow, "rfs")
    perform(suite, workspace, "rfs")


# Intervals and the page


def test_differences_are_those_of_the_scores_and_of_none_with_itself(suite, workspace):
    stored = {}
    for name in ("rfs", "balsig"):
        for seed in (1, 2):
            run, result = perform(suite, workspace, name, seed)
            path = plan.predictions_file(run, workspace)
            stored.setdefault(name, []).append((result, read_predictions(path)))
    _, annotations = runs.registered_data(run, workspace)
    (a, a_predictions), (b, b_predictions) = (stored[name][0] for name in ("rfs", "balsig"))
    cap = a["cap"]
    compared = intervals.differences(
        annotations, [a_predictions], [b_predictions], cap=cap, draws=50
    )
    for metric in ("AP", "APf"):
        one, other = (result["caps"][str(cap)]["segm"][metric] for result in (a, b))
        assert compared[metric]["difference"] == pytest.approx(other - one, abs=2e-3)
        assert compared[metric]["lower"] <= compared[metric]["upper"]
    both = [predictions for _, predictions in stored["rfs"]]
    same = intervals.differences(annotations, both, both, cap=cap, draws=50)
    assert same["AP"] == {"difference": 0, "lower": 0, "upper": 0}
    less = intervals.differences(annotations, both, [best_of_each_image(each, 1) for each in both],
                                 cap=cap, draws=50)  # fmt: skip
    assert less["AP"]["upper"] < 0


def compare(workspace, *arguments):
    command = [sys.executable, "-W", "ignore", ROOT / "tools" / "compare.py"]
    command += ["--runs", workspace.root / "runs", "--page", workspace.root / "RESULTS.md"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_the_page_holds_every_stored_run_and_the_same_runs_give_the_same_page(
    suite, workspace, tmp_path
):
    for name in ("rfs", "balsig", "crt", "norcal"):
        for seed in (1, 2):
            perform(suite, workspace, name, seed)
    variant = ABLATIONS["margin"].variants[0]
    runs_dir = workspace.root / "runs"
    runs.perform(plan.Run(suite, variant, 1, "margin"), workspace, runs_dir, root=ROOT)
    assert page.load_runs(runs_dir / suite.name, list(METHODS)).keys() == {
        "rfs", "crt", "norcal", "balsig",
    }  # fmt: skip
    path = workspace.root / "RESULTS.md"
    page.write_page(runs_dir, path)
    text = path.read_text()
    for words in ("| softmax, RFS | joint |", "second stage on rfs", "test time, on rfs", "±",
                  ABLATIONS["margin"].question, "not run yet"):  # fmt: skip
        assert words in text
    for picture in path.parent.glob("images/*.png"):
        assert f"](images/{picture.name})" in text
    run = orjson.loads((runs_dir / suite.name / "rfs-s1.json").read_bytes())
    run["caps"][str(run["cap"])]["segm"]["AP"] += 10
    (runs_dir / suite.name / "rfs-s1.json").write_bytes(orjson.dumps(run))
    page.write_page(runs_dir, path)
    assert path.read_text() != text


def test_an_ablation_has_the_rarest_third_and_the_base_of_a_correction(suite, workspace):
    base, _ = [perform(suite, workspace, "rfs", seed)[1] for seed in (1, 2)]
    variant = next(v for v in ABLATIONS["posthoc"].variants if v.base == "rfs")
    runs_dir, path = workspace.root / "runs", workspace.root / "RESULTS.md"
    run = runs.perform(plan.Run(suite, variant, 1, "posthoc"), workspace, runs_dir, root=ROOT)
    page.write_page(runs_dir, path)
    section = path.read_text().split(ABLATIONS["posthoc"].question)[1]
    header, _, *rows = [line for line in section.splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in header.split("|")].index("rarest third")
    for row, stored in zip(rows, (base, run), strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[1] == stored["title"] and cells[-2] == "1"
        in_order = np.argsort(stored["classes"]["image_count"], kind="stable")[:2]
        expected = np.array(stored["per_class"]["segm_AP"])[in_order].mean()
        assert cells[column] == f"{expected:.1f}"


@pytest.mark.e2e
def test_the_tool_refuses_what_it_does_not_know(workspace):
    assert compare(workspace, "--report").returncode == 0
    assert "not run yet" in (workspace.root / "RESULTS.md").read_text()
    done = compare(workspace, "--suite", "glyphs")
    assert done.returncode == 2 and "choose one of glyphs_lt_cpu" in done.stderr


@pytest.mark.e2e
def test_a_method_is_trained_cached_and_calibrated(suite, tmp_path):
    """A joint run, a second stage on cached features, and a test on it, a few iterations each."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"_BASE_: {config_file('glyphs_lt_cpu.yaml')}\n"
        "MODEL: {DEVICE: cpu, ROI_HEADS: {NUM_CLASSES: 6}}\n"
        "INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}\n"
        "DATALOADER: {NUM_WORKERS: 0}\n"
        "SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1}\n"
    )
    suite = dataclasses.replace(
        suite, config=str(config), pretraining_iters=2, second_stage_iters=20
    )
    workspace = plan.Workspace(tmp_path / "work", ROOT / "tools" / "train_net.py")
    for name in ("decoupled_balsig", "lws", "norcal"):
        _, result = perform(suite, workspace, name)
        assert result["caps"]["20"]["segm"]["AP"] >= 0
    assert result["stage"] == "test"
    features = (workspace.root / suite.name / "features").iterdir()
    assert (
        len([path for path in features if path.is_dir()]) == 1
    )  # both second stages train on the same


# A suite is frozen: whoever changes one raises its version, and adds a line here. (The digests
# changed once with the names of keys and files; the merged configurations stayed equal.)
FROZEN = {
    ("glyphs_lt_cpu", 1): "1bc4f2d3c7c2a070",
    ("glyphs_lt_gpu", 1): "5bb6145d2a6c9418",
    ("ccp_lt_cpu", 1): "f8d124691d488d74",
}


def files_of(path):
    """The content of a configuration file and of those that it is based on."""
    content = yaml.safe_load(path.read_text())
    base = content.pop("_BASE_", None)
    return [content, *(files_of(path.parent / base) if base else [])]


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_a_suite_changes_only_with_its_version(suite):
    fields = {
        name: value for name, value in vars(suite).items() if name not in ("version", "seeds")
    }
    content = json.dumps(
        [fields, files_of(Path(config_file(suite.config)))],
        sort_keys=True,
        default=dataclasses.asdict,
    )
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert FROZEN[suite.name, suite.version] == digest


def test_the_page_of_results_is_that_of_the_stored_runs(tmp_path):
    page.write_page(ROOT / "docs" / "runs" / "glyphs_lt", tmp_path / "RESULTS.md")
    written = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == written


def test_the_readmes_table_is_that_of_the_stored_runs():
    table = page.short_table(GLYPHS_LT_CPU, ROOT / "docs" / "runs" / "glyphs_lt")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- report: glyphs_lt_cpu -->\n\n{table}\n\n<!-- /report -->" in readme


def test_without_stored_runs_there_is_no_short_table(tmp_path):
    with pytest.raises(InputError, match="holds no runs"):
        page.short_table(GLYPHS_LT_CPU, tmp_path)
