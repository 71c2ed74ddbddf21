"""The plan of a run: its options, its base, and its directory.

A run is known, and its directory named, by a digest of everything that was asked of it, its
predecessors included.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from detectron2.config import get_cfg

from balms_det.config import add_balms_config, config_file
from balms_det.engine.feature_cache.extraction import VERSION as CACHE_VERSION
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions
from lab.glyphs_lt.data import Files, Photographs, data_files, digest
from lab.glyphs_lt.methods import METHODS, Method, Share
from lab.glyphs_lt.suites import Suite

_CLASSIFIER = "roi_heads.box_predictor.cls_score"
_DECOUPLE = "MODEL.LONG_TAIL.DECOUPLE"
# As little as a test-time correction needs that makes scores small.
_TEST_THRESHOLD = 1e-6


class OutOfTime(Exception):
    """The time that was given is over; what was done is kept."""


@dataclass(frozen=True)
class Workspace:
    """Where runs are made, how, and until when.

    Attributes:
        root: folder for data sets, checkpoints and predictions.
        train_net: path of tools/train_net.py.
        workers: processes that draw data sets.
        arguments: further ones of its command line, such as ``--num-gpus 8``.
        deadline: of time.monotonic(), at which a run is stopped; it can be continued later.
        photos: directory of the photographs, for suites of them.
    """

    root: Path
    train_net: Path
    workers: int = 1
    arguments: tuple[str, ...] = ()
    deadline: float = float("inf")
    photos: Path | None = None

    def run(self, arguments: Sequence[str], log: Path, threads: int | None) -> None:
        """One run of tools/train_net.py.

        Args:
            arguments: of its command line.
            log: what it prints is appended here.
            threads: that it computes with; None for its own choice.

        Raises:
            OutOfTime: it was stopped.
            InputError: it failed.
        """
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        command = [sys.executable, str(self.train_net), *self.arguments, *arguments]
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("ab") as file,
            subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process,
        ):
            try:
                remaining = self.deadline - time.monotonic()
                process.wait(None if remaining == float("inf") else max(remaining, 0))
            except subprocess.TimeoutExpired as error:
                raise OutOfTime from error
            finally:
                process.terminate()
        if process.returncode:
            raise InputError(
                f"{log}: training failed with status {process.returncode}; its last lines tell why"
            )


@dataclass(frozen=True)
class Run:
    """One training or test of a suite, with one seed.

    Attributes:
        suite, method: what.
        seed: of everything random but the data.
        ablation: "" for the main comparison.
        fold: that is validated on; None for glyphs, and for all folds of photographs together.
    """

    suite: Suite
    method: Method
    seed: int
    ablation: str = ""
    fold: int | None = None

    @property
    def stage(self) -> str:
        if self.method.stage != "suite":
            return self.method.stage
        return "joint" if self.method.name in self.suite.joint else "second"

    @property
    def is_cached(self) -> bool:
        """Whether the run trains on cached features."""
        return self.stage == "second" and self.method.cached

    @property
    def base(self) -> "Run | None":
        """The run whose detector this one starts from; None for joint training."""
        if self.stage == "joint":
            return None
        method = METHODS[self.method.base or self.suite.base]
        return Run(self.suite, method, self.seed, fold=self.fold)

    @property
    def data(self) -> GlyphOptions | Photographs:
        return dataclasses.replace(self.suite.data, **self.method.data)

    @property
    def parts(self) -> list["Run"]:
        """The trainings that the run consists of: one of each fold, or itself."""
        if not isinstance(self.suite.data, Photographs) or self.fold is not None:
            return [self]
        return [dataclasses.replace(self, fold=fold) for fold in range(self.suite.data.folds)]

    def stored(self, runs_dir: Path) -> Path:
        """Where the result is stored."""
        return runs_dir / self.suite.name / self.ablation / f"{self.method.name}-s{self.seed}.json"

    def options(self) -> dict[str, Any]:
        """Return the keys that the method adds to the suite's configuration."""
        iterations = configured(self.suite).SOLVER.MAX_ITER
        options = dict(self.method.lines())
        if self.stage == "test":
            options["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] = _TEST_THRESHOLD
        if self.stage == "second":
            options[f"{_DECOUPLE}.ENABLED"] = True
            iterations = self.suite.second_stage_iters
            options["SOLVER.MAX_ITER"] = iterations
            if options.get("MODEL.LONG_TAIL.CLASSIFIER") != "lws":
                # Sigmoid, softmax and cosine classifiers cannot continue one another.
                options[f"{_DECOUPLE}.REINIT"] = [_CLASSIFIER]
        return {
            key: int(value * iterations) if isinstance(value, Share) else value
            for key, value in options.items()
        }

    def key(self) -> str:
        """Return a digest of all that decides the result but versions and machine."""
        base, pretraining = self.base, self.suite.pretraining
        content = {
            "suite": [self.suite.name, self.suite.version],
            "stage": self.stage,
            "seed": self.seed,
            "options": self.options(),
            # The content of the cache decides a second stage on cached features.
            "cached": CACHE_VERSION if self.is_cached else self.method.cached,
            "sampled_counts": self.method.sampled_counts,
            "data": dataclasses.asdict(self.data),
            "base": base.key() if base else None,
            "pretraining": [pretraining and dataclasses.asdict(pretraining)],
            "pretraining_iters": self.suite.pretraining_iters,
            "stored": self.suite.stored,
        }
        if self.fold is not None:
            content["fold"] = self.fold
        return digest(content)


def is_stored(run: Run, runs_dir: Path) -> bool:
    """Return whether the result of exactly this run is among the stored ones."""
    path = run.stored(runs_dir)
    return path.is_file() and bool(read(path)["key"] == run.key())


def files_of(run: Run, workspace: Workspace) -> Files:
    """Return the annotation files of a training."""
    root = workspace.root / "data"
    return data_files(run.data, run.fold, root, workspace.photos, workspace.workers)


def output_dir(run: Run, workspace: Workspace) -> Path:
    """Where the run works: checkpoints, log and predictions."""
    return workspace.root / run.suite.name / run.key()


def predictions_file(run: Run, workspace: Workspace) -> Path:
    """Return the stored detections of a finished run."""
    return output_dir(run, workspace) / "inference" / "lvis_instances_results.json"


def configured(suite: Suite) -> Any:
    """Return the suite's configuration, to read and not to change."""
    return _configuration(suite.config)


@lru_cache
def _configuration(name: str) -> Any:
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_file(config_file(name))
    cfg.freeze()
    return cfg


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    return content
