"""The files that a report is made of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balms_det.annotations.file import read_bytes
from balms_det.runtime.errors import InputError

# Below a run's OUTPUT_DIR: of this package's evaluator, and of Detectron2's.
_RESULT_FILES = ("inference/lvis_instances_results.json", "inference/coco_instances_results.json")


@dataclass(frozen=True)
class RunFiles:
    """What one run left.

    Attributes:
        name: shown on the page.
        predictions: in COCO's result format.
        configuration: the text of its config.yaml; empty where there is none.
        history: the records of its metrics.json, by iteration; empty where there is none.
        class_stats: of its training set; None where there is no such file.
    """

    name: str
    predictions: Path
    configuration: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    class_stats: Path | None = None


def run_files(run: str) -> RunFiles:
    """Return the files of a run: of its OUTPUT_DIR, or of a result file alone.

    Raises:
        InputError: there are no predictions.
    """
    path = Path(run)
    if path.is_file():
        return RunFiles(path.stem, path)
    found = [path / name for name in _RESULT_FILES if (path / name).is_file()]
    if not found:
        raise InputError(
            f"{run}: there are no predictions ({_RESULT_FILES[0]}); give the OUTPUT_DIR of a run "
            "that was evaluated, or a result file"
        )
    configuration = path / "config.yaml"
    metrics = path / "metrics.json"
    class_stats = path / "class_stats.json"
    return RunFiles(
        path.resolve().name,
        found[0],
        configuration.read_text(encoding="utf-8") if configuration.is_file() else "",
        _history(read_bytes(metrics).decode().splitlines()) if metrics.is_file() else [],
        class_stats if class_stats.is_file() else None,
    )


def _history(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the records by iteration.

    A run that was resumed repeats some, of which the last counts; one that was killed may leave
    half of a line.
    """
    by_iteration: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        by_iteration[iteration] = {**by_iteration.get(iteration, {}), **record}
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]
