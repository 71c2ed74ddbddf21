"""A folder of images, and annotation files in LVIS v1 format."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson

from balms_det.runtime.errors import InputError
from balms_det.runtime.progress import progress_bar
from balms_det.synthetic.class_counts import balanced_counts, long_tail_counts
from balms_det.synthetic.glyphs import class_name, glyph_characters
from balms_det.synthetic.images import (
    SPLIT_SEEDS,
    ImageLabels,
    ImageTask,
    draw_image,
    relative_path,
)
from balms_det.synthetic.options import GlyphOptions

# Part of what decides whether a folder is up to date: raise it when the images change.
_GENERATOR_VERSION = "1.0"
_DATE = "2000-01-01 00:00:00"  # fixed, because the same options must give the same bytes


def annotation_path(out_dir: str | os.PathLike[str], split: str) -> Path:
    """Return the path of the annotations of `split`, "train" or "val".

    The image root of both is `out_dir` itself.
    """
    return Path(out_dir) / f"glyphs_{split}.json"


def generate(
    out_dir: str | os.PathLike[str],
    options: GlyphOptions,
    *,
    workers: int = 1,
    progress: bool = False,
) -> bool:
    """Write ``glyphs_train.json``, ``glyphs_val.json``, ``train/*.jpg`` and ``val/*.jpg``.

    The annotation files come last and whole, so a folder that has both is finished. They hold the
    options; a folder finished with the same ones is left as it is, and one with others is replaced.

    Args:
        out_dir: made if need be.
        options: what to draw.
        workers: processes that draw; has no influence on the result. With more than one, the
            calling script needs Python's usual ``if __name__ == "__main__":`` guard.
        progress: show a progress bar on standard error.

    Returns:
        Whether anything was drawn; False when the data set was already there.

    Raises:
        InputError: there are too few images for the classes, or the folder cannot be written or
            holds images of another kind.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; choose 1 or more")
    out_dir = Path(out_dir)
    if _is_finished(out_dir, options):
        return False
    tasks = _plan(options, "train") + _plan(options, "val")
    characters = glyph_characters(options.first_class + options.classes)[options.first_class :]
    try:
        _clear(out_dir)
        draw = partial(draw_image, options=options, characters=characters, out_dir=out_dir)
        with _parallel_map(workers) as parallel_map:
            drawn = list(
                progress_bar(
                    parallel_map(draw, tasks), "Drawing glyphs", total=len(tasks), show=progress
                )
            )
        labels = {split: [each for each in drawn if each.task.split == split]
                  for split in SPLIT_SEEDS}  # fmt: skip
        categories = _categories(options, characters, labels["train"])
        for split, labels_of_split in labels.items():
            content = _lvis_content(options, categories, labels_of_split)
            unfinished = _unfinished_path(out_dir, split)
            unfinished.write_bytes(orjson.dumps(content))
            os.replace(unfinished, annotation_path(out_dir, split))
    except OSError as error:
        raise InputError(
            f"{error.filename or out_dir}: the data set cannot be written there "
            f"({error.strerror}); choose another folder or make room"
        ) from error
    return True


def _plan(options: GlyphOptions, split: str) -> list[ImageTask]:
    """Deal the objects of all classes out to the images of a split."""
    rng = np.random.default_rng([options.seed, SPLIT_SEEDS[split], 0])  # image ids start at 1
    num_images = options.train_images if split == "train" else options.val_images
    num_objects = rng.integers(options.min_objects, options.max_objects + 1, num_images)
    total = int(num_objects.sum())
    curve = options.curve()
    if split == "train":
        if total < options.classes:
            raise InputError(
                f"{num_images} training images hold {total} objects, too few for one of each of "
                f"the {options.classes} classes; choose train_images of "
                f"{math.ceil(options.classes / options.min_objects)} or more"
            )
        counts = long_tail_counts(curve, total)
    elif options.val_tail == "long_tailed":
        counts = long_tail_counts(curve, total, at_least=0)
    else:
        counts = balanced_counts(options.classes, total)

    # Any class may be rare: the rare ones should not all be the exotic characters. The same
    # shuffle for both splits.
    class_of_rank = np.random.default_rng([options.seed, 0]).permutation(options.classes)
    ranks = rng.permutation(np.repeat(np.arange(options.classes), counts))
    tasks = []
    for position, ranks_of_image in enumerate(np.split(ranks, np.cumsum(num_objects)[:-1])):
        # The rarest first, while there is most room, so that no class loses its only object.
        classes = class_of_rank[np.sort(ranks_of_image)[::-1]]
        tasks.append(ImageTask(split, position + 1, tuple(classes.tolist())))
    return tasks


def _categories(
    options: GlyphOptions, characters: Sequence[str], train: Sequence[ImageLabels]
) -> list[dict[str, Any]]:
    """Return LVIS's categories with the counts of the training split, which LVIS has in both
    files."""
    category_ids_by_image = [[o["category_id"] for o in labels.objects] for labels in train]
    num_ids = options.classes + 1
    instance_counts = np.bincount(np.concatenate(category_ids_by_image), minlength=num_ids)
    image_counts = np.bincount(
        np.concatenate([np.unique(ids) for ids in category_ids_by_image]), minlength=num_ids
    )
    without_instance = int((instance_counts[1:] == 0).sum())
    if without_instance:
        raise InputError(
            f"{without_instance} of {options.classes} classes found no place in images of up to "
            f"{options.max_objects} objects; choose a smaller max_objects or min_scale, or more "
            "train_images"
        )
    categories = []
    for category_id, character in enumerate(characters, start=1):
        name = class_name(character)
        image_count = int(image_counts[category_id])
        if image_count <= options.rare_at_most:
            frequency = "r"
        else:
            frequency = "c" if image_count <= options.common_at_most else "f"
        categories.append(
            {
                "id": category_id,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": f"the character {character} (U+{ord(character):04X})",
                "image_count": image_count,
                "instance_count": int(instance_counts[category_id]),
                "frequency": frequency,
            }
        )
    return categories


def _lvis_content(
    options: GlyphOptions, categories: list[dict[str, Any]], labels: Iterable[ImageLabels]
) -> dict[str, Any]:
    images = []
    annotations: list[dict[str, Any]] = []
    for each in labels:
        image_id = each.task.image_id
        images.append(
            {
                "id": image_id,
                "width": options.size,
                "height": options.size,
                "license": 1,
                # LVIS v1 has no file_name; readers take the last two parts of this address.
                "coco_url": f"http://glyphs.invalid/{relative_path(each.task)}",
                "flickr_url": "",
                "date_captured": _DATE,
                "neg_category_ids": each.negatives,
                "not_exhaustive_category_ids": each.not_exhaustive,
            }
        )
        for annotation in each.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "info": _info(options),
        "licenses": [
            {
                "id": 1,
                "name": "Bitstream Vera and DejaVu fonts",
                "url": "https://dejavu-fonts.github.io/License.html",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _info(options: GlyphOptions) -> dict[str, Any]:
    return {
        "description": "Long-tailed instance segmentation of glyphs, generated by balms_det",
        "url": "",
        "version": _GENERATOR_VERSION,
        "year": int(_DATE[:4]),
        "contributor": "",
        "date_created": _DATE,
        "options": asdict(options),
    }


def _is_finished(out_dir: Path, options: GlyphOptions) -> bool:
    for split, num_images in (("train", options.train_images), ("val", options.val_images)):
        try:
            content = orjson.loads(annotation_path(out_dir, split).read_bytes())
            names = set(os.listdir(out_dir / split))
        except (OSError, orjson.JSONDecodeError):
            return False
        if not isinstance(content, dict) or content.get("info") != _info(options):
            return False
        expected = (relative_path(ImageTask(split, i, ())) for i in range(1, num_images + 1))
        if not names.issuperset(os.path.basename(path) for path in expected):
            return False
    return True


def _clear(out_dir: Path) -> None:
    """Make the folders, without annotation files and without images of an earlier run.

    Nothing is removed from a folder that has images but no trace of this generator.
    """
    ours = [path for split in SPLIT_SEEDS for path in (
        annotation_path(out_dir, split), _unfinished_path(out_dir, split))]  # fmt: skip
    is_ours = any(path.exists() for path in ours)
    for split in SPLIT_SEEDS:
        folder = out_dir / split
        folder.mkdir(parents=True, exist_ok=True)
        if not is_ours and any(folder.iterdir()):
            raise InputError(
                f"{folder}: there are files that are not of a glyph data set; choose another folder"
            )
    for split in SPLIT_SEEDS:
        _unfinished_path(out_dir, split).touch()
        annotation_path(out_dir, split).unlink(missing_ok=True)
        for picture in (out_dir / split).glob("[0-9]" * 12 + ".jpg"):
            picture.unlink()


def _unfinished_path(out_dir: Path, split: str) -> Path:
    return annotation_path(out_dir, split).with_suffix(".json.part")


@contextmanager
def _parallel_map(workers: int) -> Iterator[Callable[..., Iterable[ImageLabels]]]:
    if workers == 1:
        yield map
        return
    # A fork would copy the threads' locks of whatever library the caller has running.
    context = get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield partial(pool.map, chunksize=16)
