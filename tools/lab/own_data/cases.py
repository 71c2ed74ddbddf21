"""The cases: what is done to a sound data set or command line, and what must follow."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lab.own_data.data import NAMES, SIZE, change, read, write

TRAINED = "trained"  # directory of a complete training on the sound set
_TINY = (
    "MODEL.ROI_HEADS.NUM_CLASSES", str(len(NAMES)), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2",
    "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64", "DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST",
    "('own_val',)",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status.
        output: stdout and stderr, one after the other.
        folder: that it ran in.
    """

    status: int
    output: str
    folder: Path


@dataclass(frozen=True)
class Case:
    """One thing that a new user runs into.

    Attributes:
        group: what it belongs to.
        name: what is done.
        prepare: changes the folder, which holds train.json, val.json, images/ and trained/.
        command: arguments of `balms-det`, or of Python where the first is "-c".
        expected: what must follow, in words.
        holds: whether it does.
    """

    group: str
    name: str
    prepare: Callable[[Path], object]
    command: Sequence[str]
    expected: str
    holds: Callable[[Outcome], object]


def train(*more: str, val: str = "val.json", flags: Sequence[str] = ()) -> list[str]:
    """Return the command line of a short training in run/."""
    return [
        "train", "--config-file", "glyphs_quickstart", "--dataset", "own_train", "train.json",
        "images", "--dataset", "own_val", val, "images", *flags, *_TINY, "OUTPUT_DIR", "run", *more,
    ]  # fmt: skip


def demo(*more: str, inputs: str = "images") -> list[str]:
    """Return the command line of a demo with the trained model."""
    return [
        "demo", "--config-file", f"{TRAINED}/config.yaml", "--weights",
        f"{TRAINED}/model_final.pth", "--input", inputs, "--output", "out",
        "--confidence-threshold", "0.0", *more,
    ]  # fmt: skip


def refused(*words: str) -> dict[str, Any]:
    """Return what must follow: one sentence with these words, before the first iteration."""

    def holds(outcome: Outcome) -> bool:
        started = "Starting training" in outcome.output
        one_sentence = "Traceback" not in outcome.output and "error: " in outcome.output
        return (
            outcome.status == 2
            and one_sentence
            and not started
            and all(word in outcome.output for word in words)
        )

    return {"expected": "refused before iteration 0", "holds": holds}


def works(*words: str, without: Sequence[str] = (), file: str = "") -> dict[str, Any]:
    """Return what must follow: success, with these words in the output and this file."""

    def holds(outcome: Outcome) -> bool:
        return (
            outcome.status == 0
            and all(word in outcome.output for word in words)
            and not any(word in outcome.output for word in without)
            and (not file or (outcome.folder / file).is_file())
        )

    said = f", saying {words[0]!r}" if words else ""
    return {"expected": f"works{said}", "holds": holds}


def nothing(folder: Path) -> None:
    """Change nothing."""


def used(folder: Path) -> None:
    shutil.copytree(folder / TRAINED, folder / "run")


def edit(split: str, change_content: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        content = read(folder, split)
        change_content(content)
        write(folder, split, content)

    return prepare


def permuted(content: dict[str, Any]) -> None:
    """Give the categories each other's ids; names and annotations stay together."""
    ids = [category["id"] for category in content["categories"]]
    new = dict(zip(ids, ids[1:] + ids[:1], strict=True))
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def same_classes(outcome: Outcome) -> bool:
    """Whether the detections of an evaluation on the permuted set are of the classes by name."""
    if outcome.status != 0:
        return False
    per_class = json.loads((outcome.folder / "run/inference/lvis_per_class.json").read_text())
    trained = json.loads((outcome.folder / TRAINED / "class_stats.json").read_text())["classes"]
    counts = {entry["name"]: entry["image_count"] for entry in trained}
    return all(entry["image_count"] == counts[entry["name"]] for entry in per_class)


def scale(factor: float) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        change(
            folder,
            bbox=lambda a: [value * factor for value in a["bbox"]],
            segmentation=lambda a: [[v * factor for v in p] for p in a["segmentation"]],
        )

    return prepare


def corners(annotation: dict[str, Any]) -> list[int]:
    x, y, w, h = annotation["bbox"]
    return [x, y, x + w, y + h]


def deep(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 256).save(path)


def deep_demo(folder: Path) -> None:
    deep(folder)
    (folder / "deep").mkdir()
    shutil.move(folder / "images" / "0100.png", folder / "deep" / "grey.png")


def not_white(outcome: Outcome) -> bool:
    path = outcome.folder / "out" / "grey.png"
    return outcome.status == 0 and np.asarray(Image.open(path))[:SIZE, :SIZE].mean() < 200


def large(folder: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(folder / "images" / "large.png")


def kept_others(outcome: Outcome) -> bool:
    drawn = list((outcome.folder / "out").glob("0*.png"))
    return "Traceback" not in outcome.output and "large.png" in outcome.output and len(drawn) == 16


def below(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "deep" / name).mkdir(parents=True)
        shutil.copy(folder / "images" / "0100.png", folder / "deep" / name / "same.png")


def originals_stay(outcome: Outcome) -> bool:
    sizes = {Image.open(path).size for path in (outcome.folder / "images").glob("*.png")}
    return outcome.status == 2 and sizes == {(SIZE, SIZE)}


def same_size(outcome: Outcome) -> bool:
    width, height = Image.open(outcome.folder / "out" / "0100.png").size
    return outcome.status == 0 and width == SIZE and height >= SIZE


def short_screen(outcome: Outcome) -> bool:
    lines = outcome.output.splitlines()
    first = next((i for i, line in enumerate(lines) if "total_loss" in line), len(lines))
    return outcome.status == 0 and first <= 30


def plain_log(outcome: Outcome) -> bool:
    return outcome.status == 0 and "\x1b" not in (outcome.folder / "run/log.txt").read_text()


def raises(*words: str) -> dict[str, Any]:
    def holds(outcome: Outcome) -> bool:
        return "InputError" in outcome.output and all(word in outcome.output for word in words)

    return {"expected": "refused, naming the argument", "holds": holds}
