"""Stored runs of classifiers: one JSON file for each.

A run is known by its suite (``digits_lt``), method (``balms``), imbalance and seed.
"""

from pathlib import Path
from typing import Any

import orjson
import torch

from balms_det.classification.config import default_config
from balms_det.classification.evaluate import Evaluation
from balms_det.classification.trainer import Trainer
from balms_det.runtime.atomic_file import atomic_file
from lab.provenance import environment


def run_file(folder: Path, suite: str, method: str, imbalance: int, seed: int) -> Path:
    """Where a run is stored below `folder`."""
    return folder / suite / f"{method}_if{imbalance}_seed{seed}.json"


def store_run(path: Path, suite: str, method: str, trainer: Trainer, results: Evaluation) -> None:
    """Write what a finished run has shown, and how it was made."""
    cfg = trainer.cfg
    record = {
        "suite": suite,
        "method": method,
        "imbalance": cfg.IMBALANCE,
        "seed": cfg.SEED,
        "class_counts": trainer.stats.image_counts.tolist(),
        "results": results.to_dict(),
        "rates": trainer.rates(),
        "iterations": trainer.iteration,
        "seconds_of_training": round(trainer.seconds, 1),
        "settings": changed_settings(cfg),
        **environment(cfg.DEVICE, torch.get_num_threads()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))


def changed_settings(cfg: Any) -> dict[str, Any]:
    """Return the settings that differ from their defaults, without those that name files or
    machines."""
    local = ("OUTPUT_DIR", "DEVICE", "DATA.ROOT", "DATA.NUM_WORKERS")

    def flat(node: Any, prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in node.items():
            name = prefix + key
            items |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
        return items

    defaults = flat(default_config())
    return {
        name: value
        for name, value in flat(cfg).items()
        if value != defaults[name] and name not in local
    }


def load_runs(folder: Path, suite: str) -> list[dict[str, Any]]:
    """Return the stored runs of a suite, none if there are none."""
    return [orjson.loads(path.read_bytes()) for path in sorted((folder / suite).glob("*.json"))]
