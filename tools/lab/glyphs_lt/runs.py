"""From a method of a suite to its stored result, doing only what is not done already.

Every run is one command of tools/train_net.py, in a folder of its own below the workspace. A run
starts from others (the pretrained detector, the base of a second stage), which are run first. A run
is known, and its folder named, by a digest of everything that was asked of it, its predecessors
included: what is asked for twice is done once, and what was done for another question is not read.
Several may be performed at the same time, by threads or by processes that share a workspace.
"""

import dataclasses
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import read_annotation_file
from balms_det.annotations.repeat_factors import (
    ClassImages,
    class_repeat_factors,
    expected_counts,
    image_frequency,
    image_repeat_factors,
)
from balms_det.config import config_file
from balms_det.data import load_dataset_dicts, register_dataset
from balms_det.runtime.atomic_file import atomic_file
from lab.glyphs_lt import record
from lab.glyphs_lt.data import Files, Photographs, alone, data_files, digest, pooled_annotations
from lab.glyphs_lt.plan import (
    Run,
    Workspace,
    configured,
    files_of,
    is_stored,
    output_dir,
    predictions_file,
    read,
)
from lab.glyphs_lt.suites import Suite
from lab.provenance import commit, environment

_PRETRAINING_SEED = 0
# A detector's state during training, which is not needed once training is over.
_INTERMEDIATE = "model_[0-9]*.pth"
# Detectron2's catalog of data sets, which scoring enters validation sets into, is one for all.
_scoring = threading.Lock()


def perform(run: Run, workspace: Workspace, runs_dir: Path, *, root: Path) -> dict[str, Any]:
    """Train, predict, score and store `run`, and whatever it starts from.

    Args:
        run: what to do; done already, it is left as it is.
        workspace: where to work.
        runs_dir: folder of the stored results.
        root: of the repository, for its commit.

    Returns:
        The stored result.
    """
    path = run.stored(runs_dir)
    if is_stored(run, runs_dir):
        return read(path)
    outputs = [_trained(part, workspace) for part in run.parts]
    with _scoring:
        result = _result(run, workspace, outputs, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return result


def registered_data(run: Run, workspace: Workspace) -> tuple[str, Path]:
    """Register the validation set of a run, of all folds; return its name and annotation file."""
    files = [files_of(part, workspace) for part in run.parts]
    path = files[0].val
    if isinstance(run.data, Photographs):
        folder = workspace.root / "data" / run.suite.name
        with alone(folder):
            path = pooled_annotations(files, folder / "val.json")
    name = str(path)  # two workspaces may hold the same data
    register_dataset(name, str(path), str(files[0].images))
    return name, path


def _trained(run: Run, workspace: Workspace) -> Path:
    """Return the folder of the finished run, whose predictions are there."""
    output = output_dir(run, workspace)
    with alone(output):
        if not (output / "inference" / "lvis_results.json").is_file():
            _train(run, workspace, output)
    return output


def _train(run: Run, workspace: Workspace, output: Path) -> None:
    weights = _starting_weights(run, workspace)
    output.mkdir(parents=True, exist_ok=True)
    options = {
        **run.options(),
        "SEED": run.seed,
        "OUTPUT_DIR": output,
        "MODEL.WEIGHTS": weights,
        "TEST.DETECTIONS_PER_IMAGE": run.suite.stored,
    }
    mode = "--resume"
    if run.stage == "test":
        mode = "--eval-only"
    elif run.is_cached:
        options["MODEL.LONG_TAIL.DECOUPLE.FEATURE_CACHE"] = (
            workspace.root / run.suite.name / "features"
        )
    files = files_of(run, workspace)
    if run.method.sampled_counts:
        options["MODEL.LONG_TAIL.STATS_FILE"] = _sampled_stats(run, files, output)
    _train_net(mode, run.suite, files, options, workspace)


def _starting_weights(run: Run, workspace: Workspace) -> Path | str:
    if run.base is not None:
        return _trained(run.base, workspace) / "model_final.pth"
    if run.suite.pretraining is None:
        return str(configured(run.suite).MODEL.WEIGHTS)
    return _pretrained(run.suite, workspace)


def _pretrained(suite: Suite, workspace: Workspace) -> Path:
    """Return the checkpoint of the detector that was trained on the other classes."""
    assert suite.pretraining is not None
    options: dict[str, Any] = {
        "MODEL.LONG_TAIL.LOSS.NAME": "softmax",
        "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
        "MODEL.ROI_HEADS.NUM_CLASSES": suite.pretraining.classes,
        "SOLVER.MAX_ITER": suite.pretraining_iters,
        "SEED": _PRETRAINING_SEED,
    }
    key = digest([suite.name, suite.version, options, dataclasses.asdict(suite.pretraining)])
    output = workspace.root / suite.name / f"pretraining-{key}"
    checkpoint = output / "model_final.pth"
    with alone(output):
        if not checkpoint.is_file():
            root, workers = workspace.root / "data", workspace.workers
            files = data_files(suite.pretraining, None, root, None, workers)
            options |= {"OUTPUT_DIR": output, "MODEL.WEIGHTS": ""}
            _train_net("--resume", suite, files, options, workspace)
    return checkpoint


def _train_net(
    mode: str, suite: Suite, files: Files, options: Mapping[str, Any], workspace: Workspace
) -> None:
    """Run tools/train_net.py on a data set."""
    output: Path = options["OUTPUT_DIR"]
    names = configured(suite).DATASETS
    datasets = []
    for name, path in ((names.TRAIN[0], files.train), (names.TEST[0], files.val)):
        datasets += ["--dataset", name, str(path), str(files.images)]
    pairs = [str(word) for pair in options.items() for word in pair]
    arguments = [mode, "--config-file", config_file(suite.config), *datasets, *pairs]
    workspace.run(arguments, output / "stdout.txt", suite.threads)
    _remove_intermediate(output)


def _sampled_stats(run: Run, files: Files, output: Path) -> Path:
    """Class statistics with the counts that repeat factor sampling is expected to show."""
    file = read_annotation_file(files.train)
    stats = ClassStats.from_annotation_file(file)
    images = ClassImages.from_dataset_dicts(
        load_dataset_dicts(file, str(files.images)), stats.num_classes
    )
    threshold = configured(run.suite).DATALOADER.REPEAT_THRESHOLD
    factors = class_repeat_factors(image_frequency(images), threshold)
    weights = image_repeat_factors(images, factors)
    counts = {
        f"{by[:-1]}_counts": np.maximum(expected_counts(images, weights, by).round(), 1)
        for by in ("images", "instances")
    }
    path = output / "sampled_class_stats.json"
    dataclasses.replace(stats, **{n: c.astype(np.int64) for n, c in counts.items()}).save(path)
    return path


def _pool_predictions(run: Run, workspace: Workspace) -> None:
    """Write the predictions of all folds, whose images differ, as those of the run."""
    if run.parts == [run]:
        return
    records: list[Any] = []
    for part in run.parts:
        records += orjson.loads(predictions_file(part, workspace).read_bytes())
    path = predictions_file(run, workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(orjson.dumps(records))


def _result(run: Run, workspace: Workspace, outputs: list[Path], root: Path) -> dict[str, Any]:
    _pool_predictions(run, workspace)
    name, annotations = registered_data(run, workspace)
    categories = json.loads(annotations.read_bytes())["categories"]
    cfg = configured(run.suite)
    trained = run.stage != "test"
    histories = [record.training_history(output) if trained else [] for output in outputs]
    history = histories[0]
    seconds = sum(map(record.training_seconds, histories)) / len(histories)
    scores = record.scores(
        name,
        predictions_file(run, workspace),
        cap=cfg.TEST.DETECTIONS_PER_IMAGE,
        caps=run.suite.caps,
        class_budget=run.suite.class_budget,
        category_ids=[category["id"] for category in categories],
    )
    result = {
        "key": run.key(),
        "suite": run.suite.name,
        "suite_version": run.suite.version,
        "method": run.method.name,
        "title": run.method.title,
        "ablation": run.ablation,
        "stage": run.stage,
        "base": run.base.method.name if run.base else None,
        "seed": run.seed,
        "options": run.options(),
        "data": dict(run.method.data),
        "commit": commit(root),
        **environment(threads=run.suite.threads),
        "iterations": 1 + history[-1]["iteration"] if history else 0,
        "minutes_of_training": round(seconds / 60, 2),
        "cap": cfg.TEST.DETECTIONS_PER_IMAGE,
        **scores,
        "classes": {
            key: [category[key] for category in categories]
            for key in ("image_count", "instance_count", "frequency")
        },
    }
    if not run.ablation:  # no image is drawn of it
        result["learning_curve"] = record.learning_curve(history)
    return result


def _remove_intermediate(output: Path) -> None:
    for path in output.glob(_INTERMEDIATE):
        path.unlink()
