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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from filelock import FileLock

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
from balms_det.synthetic import GlyphOptions, annotation_path, generate
from lab.glyphs_lt import record
from lab.glyphs_lt.plan import (
    Run,
    Workspace,
    configured,
    digest,
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
    output = _trained(run, workspace)
    with _scoring:
        result = _result(run, workspace, output, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return result


def registered_data(run: Run, workspace: Workspace) -> tuple[str, Path]:
    """Generate and register the validation set of a run; its name and annotation file."""
    folder = _generated(run.data, workspace)
    path = annotation_path(folder, "val")
    name = str(path)  # two workspaces may hold the same data
    register_dataset(name, str(path), str(folder))
    return name, path


def _trained(run: Run, workspace: Workspace) -> Path:
    """Return the folder of the finished run, whose predictions are there."""
    output = output_dir(run, workspace)
    with _alone(output):
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
    folder = _generated(run.data, workspace)
    if run.method.sampled_counts:
        options["MODEL.LONG_TAIL.STATS_FILE"] = _sampled_stats(run, folder, output)
    _train_net(mode, run.suite, folder, options, workspace)


def _starting_weights(run: Run, workspace: Workspace) -> Path | str:
    if run.base is not None:
        return _trained(run.base, workspace) / "model_final.pth"
    if run.suite.pretraining is None:
        return ""
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
    with _alone(output):
        if not checkpoint.is_file():
            folder = _generated(suite.pretraining, workspace)
            options |= {"OUTPUT_DIR": output, "MODEL.WEIGHTS": ""}
            _train_net("--resume", suite, folder, options, workspace)
    return checkpoint


def _train_net(
    mode: str, suite: Suite, folder: Path, options: Mapping[str, Any], workspace: Workspace
) -> None:
    """Run tools/train_net.py on the data set in `folder`."""
    output: Path = options["OUTPUT_DIR"]
    datasets = []
    for split in ("train", "val"):
        path = annotation_path(folder, split)
        datasets += ["--dataset", f"glyphs_lt_{split}", str(path), str(folder)]
    pairs = [str(word) for pair in options.items() for word in pair]
    arguments = [mode, "--config-file", config_file(suite.config), *datasets, *pairs]
    workspace.run(arguments, output / "stdout.txt", suite.threads)
    _remove_intermediate(output)


def _generated(data: GlyphOptions, workspace: Workspace) -> Path:
    """Return the folder of a data set, made if need be."""
    folder = workspace.root / "data" / digest(dataclasses.asdict(data))
    with _alone(folder):
        generate(folder, data, workers=workspace.workers, progress=True)
    return folder


def _sampled_stats(run: Run, folder: Path, output: Path) -> Path:
    """Class statistics with the counts that repeat factor sampling is expected to show."""
    file = read_annotation_file(annotation_path(folder, "train"))
    stats = ClassStats.from_annotation_file(file)
    images = ClassImages.from_dataset_dicts(
        load_dataset_dicts(file, str(folder)), stats.num_classes
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


def _result(run: Run, workspace: Workspace, output: Path, root: Path) -> dict[str, Any]:
    name, annotations = registered_data(run, workspace)
    categories = json.loads(annotations.read_bytes())["categories"]
    cfg = configured(run.suite)
    trained = run.stage != "test"
    history = record.training_history(output) if trained else []
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
        "minutes_of_training": round(record.training_seconds(history) / 60, 2),
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else makes what goes into `folder` meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield


def _remove_intermediate(output: Path) -> None:
    for path in output.glob(_INTERMEDIATE):
        path.unlink()
