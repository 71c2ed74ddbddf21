"""Where the images and annotations of a run are: glyphs that are drawn, or photographs in folds."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from balms_det.annotations.file import read_json
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, annotation_path, generate

# LVIS's groups: a class of at most so many training images is rare, or common.
_RARE_AT_MOST, _COMMON_AT_MOST = 10, 100


@dataclass(frozen=True)
class Photographs:
    """Photographs that are divided into folds; each fold is the validation set of a training.

    The directory with ``foldK_train.json``, ``foldK_val.json`` and ``images/`` is the user's.

    Attributes:
        classes: number of foreground classes.
        folds: number of folds.
    """

    classes: int
    folds: int


@dataclass(frozen=True)
class Files:
    """The annotation files of a run, and the directory that their file names start from."""

    train: Path
    val: Path
    images: Path


def data_files(
    data: GlyphOptions | Photographs,
    fold: int | None,
    root: Path,
    photos: Path | None,
    workers: int,
) -> Files:
    """Return the files of a data set; glyphs are drawn, if need be.

    Args:
        data: of the run.
        fold: in [0, data.folds) of photographs.
        root: directory that glyphs are drawn below.
        photos: directory of the photographs.
        workers: processes that draw.

    Raises:
        InputError: the photographs are not there.
    """
    if isinstance(data, GlyphOptions):
        folder = root / digest(dataclasses.asdict(data))
        with alone(folder):
            generate(folder, data, workers=workers, progress=True)
        return Files(annotation_path(folder, "train"), annotation_path(folder, "val"), folder)
    if photos is None:
        raise InputError(
            "the suite is of photographs, but --photos is not given; set it to the directory that "
            "datasets/prepare_ccp.py wrote (datasets/README.md)"
        )
    files = Files(
        photos / f"fold{fold}_train.json", photos / f"fold{fold}_val.json", photos / "images"
    )
    for path in (files.train, files.val, files.images):
        if not path.exists():
            raise InputError(
                f"{path}: it does not exist; set --photos to the directory that "
                "datasets/prepare_ccp.py wrote (datasets/README.md)"
            )
    return files


def pooled_annotations(files: list[Files], path: Path) -> Path:
    """Write the validation sets of all folds as one file, and return its path.

    A class belongs to the group of LVIS that the mean of its training images in the folds gives.
    """
    validation = [read_json(each.val) for each in files]
    training = [read_json(each.train)["categories"] for each in files]
    annotations = [record for content in validation for record in content["annotations"]]
    content = {
        **validation[0],
        "images": [image for each in validation for image in each["images"]],
        "annotations": [{**record, "id": i + 1} for i, record in enumerate(annotations)],
        "categories": [_pooled_category(categories) for categories in zip(*training, strict=True)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(content).encode())
    return path


def _pooled_category(categories: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    counts = {
        key: round(sum(category[key] for category in categories) / len(categories))
        for key in ("image_count", "instance_count")
    }
    images = counts["image_count"]
    group = "r" if images <= _RARE_AT_MOST else "c" if images <= _COMMON_AT_MOST else "f"
    return {**categories[0], **counts, "frequency": group}


def digest(content: Any) -> str:
    """Return a short hash of JSON content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let nobody else make what goes into `folder` meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield
