"""Stored runs of classifiers, the tables and plots made of them, and what they show."""

import importlib.util
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from balms_det.runtime.errors import InputError
from balms_det.runtime.figures import save_figure
from lab.classification import report
from lab.classification.results import changed_settings, load_runs, run_file

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "runs" / "classification"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compare_classifiers = load_tool("compare_classifiers")
train_classifier = load_tool("train_classifier")
classifier_throughput = load_tool("classifier_throughput")


def run(method, seed, accuracy, marginal=(0.4, 0.3, 0.2, 0.1), imbalance=100):
    return {
        "method": method,
        "imbalance": imbalance,
        "seed": seed,
        "results": {"accuracy": accuracy, "marginal": list(marginal)},
        "class_counts": [100, 20, 5, 1],
        "seconds_of_training": 30.0,
        "machine": "2 cores",
        "versions": {"torch": "2"},
    }


MADE_UP = [
    *(run("softmax", seed, 0.5 + 0.1 * seed) for seed in range(3)),
    *(run("balms", seed, 0.6 + 0.1 * seed + 0.01 * (seed == 1)) for seed in range(3)),
    *(run("cbs", seed, 0.6 - 0.1 * seed) for seed in range(3)),
]


# ---- statistics and tables


def test_the_interval_is_students():
    sample = report.Sample.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (sample.mean, sample.deviation) == (3.0, pytest.approx(math.sqrt(2.5)))
    assert sample.interval == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert report.Sample.of([7.0]) == report.Sample(7.0, None, None)


def test_methods_are_compared_seed_by_seed():
    gain = report.gain(MADE_UP, "balms", 100)
    assert gain.mean == pytest.approx(10 + 1 / 3)
    assert gain.interval < 2 < report.accuracy(MADE_UP, "balms", 100).deviation
    assert report.gain(MADE_UP[:3] + MADE_UP[4:6], "balms", 100).mean == pytest.approx(10.5)


def cells(table, method):
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    return next(row[1:] for row in rows if row[0] == f"`{method}`")


def test_a_table_has_what_was_run_and_published_and_marks_what_is_certain():
    published = {"100": {"softmax": 77.4, "lws": 80.0}}
    methods = ("softmax", "cbs", "balms", "lws", "focal")
    table = report.comparison_table(MADE_UP, methods, (100,), published)
    header = "| method | IF 100 | − softmax | tail | published, IF 100 |"
    assert table.splitlines()[0] == header
    assert cells(table, "softmax") == ["60.0 ± 10.0", "", "30", "77.4"]
    difference = cells(table, "balms")[1]
    assert difference.startswith("**+10.3 [+8.9, +11.8]") and difference.endswith("**")
    assert "**" not in cells(table, "cbs")[1]
    assert "`lws` |  |  |  | 80.0 |" in table
    assert "focal" not in table


def test_without_runs_a_table_has_what_was_published():
    table = report.comparison_table([], ("softmax", "cbs"), (200,), {"200": {"softmax": 71.2}})
    assert table.splitlines()[-1] == "| `softmax` | 71.2 |"


def test_one_seed_has_no_spread():
    table = report.comparison_table(MADE_UP[::3], ("softmax", "balms"), (100,), {})
    assert cells(table, "softmax")[0] == "50.0" and cells(table, "balms")[1] == "+10.0"
    assert report.provenance(MADE_UP[::3]).startswith("3 runs, 1 seed. IF 100: 126 training images")


def test_a_plot_has_a_panel_for_each_method_that_was_run(tmp_path, monkeypatch):
    shown = []

    def save(figure, path):
        shown.append(figure)
        save_figure(figure, path)

    monkeypatch.setattr(report, "save_figure", save)
    path = tmp_path / "plot.png"
    report.plot_marginals(MADE_UP, ("softmax", "lws", "balms", "cbs"), (100, 10), path)
    assert path.stat().st_size > 0
    panels = [axes for axes in shown[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["softmax", "balms", "cbs"]
    assert panels[0].lines[0].get_ydata().tolist() == pytest.approx([40, 30, 20, 10])


# ---- the tools


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = ["SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "0", "DEVICE", "cpu"]


def test_a_classifier_is_trained_and_its_results_written(in_folder, caplog):
    caplog.set_level("INFO", logger="balms_det")
    arguments = ["--config-file", "digits_lt+softmax"]
    train_classifier.main([*arguments, "IMBALANCE", "50", *SHORT])
    assert "the largest class has 124, the smallest 2" in caplog.text
    results = Path("output/digits_lt_softmax_if50_seed0/results.json")
    first = json.loads(results.read_text())
    assert len(first["marginal"]) == 10 and 0 <= first["accuracy"] <= 1
    train_classifier.main([*arguments, "--resume", "IMBALANCE", "50", *SHORT])
    assert json.loads(results.read_text()) == first


def compare(folder, *args):
    runs = ["--runs", str(folder / "runs")]
    compare_classifiers.main(["digits_lt", "--imbalances", "50", *runs, *args, "--opts", *SHORT])


def test_a_comparison_trains_first_stages_once_and_skips_what_is_stored(in_folder, monkeypatch):
    trained = []
    original = compare_classifiers.Trainer.train

    def train(self):
        trained.append((Path(self.cfg.OUTPUT_DIR).name, self.iteration))
        original(self)

    monkeypatch.setattr(compare_classifiers.Trainer, "train", train)
    compare(in_folder, "--methods", "crt", "softmax", "balms")
    place = "if50_seed0"
    assert trained == [
        (f"digits_lt_softmax_{place}", 0),  # what cRT needs
        (f"digits_lt_crt_{place}", 0),
        (f"digits_lt_softmax_{place}", 3),  # already trained, only tested
        (f"digits_lt_balms_{place}", 0),
    ]
    stored = load_runs(in_folder / "runs", "digits_lt")
    assert {run["method"] for run in stored} == {"crt", "softmax", "balms"}
    for run in stored:
        assert run["class_counts"][-1] == 2 and run["iterations"] == 3
        assert (run["rates"] is not None) == (run["method"] == "balms")
        assert not any(str(in_folder) in str(value) for value in run.values())
    del trained[:]
    compare(in_folder, "--methods", "softmax", "balms", "--seeds", "2")
    assert [name for name, _ in trained] == [
        "digits_lt_softmax_if50_seed1",
        "digits_lt_balms_if50_seed1",
    ]


def test_the_settings_of_a_run_are_those_that_differ_from_the_defaults():
    from balms_det.classification import load_config

    settings = changed_settings(
        load_config("cifar10_lt+balms", ["DATA.ROOT", "/home/me", "SEED", "3"])
    )
    assert settings["SAMPLER"] == "meta" and settings["SEED"] == 3
    assert "DATA.ROOT" not in settings and "SOLVER.BATCH_SIZE" not in settings


def test_nothing_to_do_is_an_error():
    with pytest.raises(InputError, match="neither a suite nor --report"):
        compare_classifiers.main([])


@pytest.mark.e2e
def test_throughput_is_measured_and_tabulated(tmp_path):
    path = tmp_path / "throughput.json"
    classifier_throughput.main(
        ["--json", str(path), "--workers", "0", "--repeat", "1", "--batch", "4"]
    )
    records = json.loads(path.read_text())
    assert [record["work"] for record in records] == ["batches alone", "training"]
    for record in records:
        assert record["ratio"] == record["peer_s"] / record["ours_s"] > 0
    assert report.throughput_table(records).count("\n") == 5


# ---- what is committed


def stored(suite):
    return load_runs(RUNS, suite)


def test_the_documents_tables_are_those_of_the_stored_runs(tmp_path):
    (tmp_path / "images").mkdir()
    document = ROOT / "docs" / "CLASSIFICATION.md"
    copy = tmp_path / "CLASSIFICATION.md"
    shutil.copy(document, copy)
    compare_classifiers.main(["--report", str(copy)])
    assert copy.read_text(encoding="utf-8") == document.read_text(encoding="utf-8")
    for plot in (tmp_path / "images").iterdir():
        assert (ROOT / "docs" / "images" / plot.name).is_file()


@pytest.mark.parametrize("suite", ["digits_lt", "cifar10_lt_cpu", "cifar10_lt_cpu_long"])
def test_the_stored_runs_are_complete_and_in_their_places(suite):
    methods, imbalances = compare_classifiers.SUITES[suite]
    runs = stored(suite)
    seeds = {run["seed"] for run in runs}
    assert len(runs) == len(methods) * len(imbalances) * len(seeds)
    assert suite != "digits_lt" or seeds == set(range(5))
    for run in runs:
        path = run_file(RUNS, suite, run["method"], run["imbalance"], run["seed"])
        assert path.is_file()
        assert sum(run["results"]["marginal"]) == pytest.approx(1)


@pytest.mark.parametrize("imbalance", [100, 50])
def test_on_digits_balanced_softmax_beats_softmax(imbalance):
    gain = report.gain(stored("digits_lt"), "balanced_softmax", imbalance)
    assert gain.mean - gain.interval > 0


def test_on_digits_class_balanced_batches_over_balance_and_the_meta_sampler_does_not():
    runs = stored("digits_lt")
    over = report.tail(runs, "balanced_softmax_cbs", 100)
    learned = report.tail(runs, "balms", 100)
    assert over.mean - over.interval > 50
    assert learned.mean + learned.interval < over.mean - over.interval
    assert abs(learned.mean - 50) < abs(report.tail(runs, "softmax", 100).mean - 50)
    assert np.isfinite(learned.mean)
