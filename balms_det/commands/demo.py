"""Draw a model's predictions on images, and write them as JSON.

balms-det demo --config-file C --weights W --input FILE|DIR|GLOB --output DIR [KEY VALUE ...]

Writes an image of the same name for every input, and predictions.json: a list with, for each
image, file_name, drawing, height, width and instances (bbox as x, y, width, height in pixels;
score; category_id; category_name; frequency; segmentation as COCO RLE). Directories are searched
with all that they contain. Class names come from the checkpoint, else from
MODEL.LONG_TAIL.STATS_FILE, else from the data sets that the configuration names; none of their
files needs to be present.
"""

import argparse
import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from balms_det.runtime.arguments import add_dataset_argument, add_overrides
from balms_det.runtime.errors import InputError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_JSON = "predictions.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="the config.yaml of a run, or any configuration with its keys",
    )
    parser.add_argument("--weights", default="", help="checkpoint; default: MODEL.WEIGHTS")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE|DIR|GLOB")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="lowest score, from 0 to 1, of what is drawn and written; default 0.5",
    )
    parser.add_argument(
        "--enlarge",
        action="store_true",
        help="draw small images larger, so that labels can be read; coordinates stay the image's",
    )
    add_dataset_argument(parser)
    add_overrides(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        raise InputError(
            f"--confidence-threshold is {args.confidence_threshold:g}; give a score from 0 to 1"
        )
    return args


def find_images(patterns: Sequence[str]) -> dict[str, str]:
    """Return the files that `patterns` (files, directories, globs) name, in order, each once.

    Returns:
        From the path of a file to its place in the output directory: its name, below a directory
        that was named its path from there.

    Raises:
        InputError: a pattern names nothing, a directory holds no images, or two files would have
            one place.
    """
    places: dict[str, str] = {}
    for pattern in patterns:
        if os.path.isdir(pattern):
            root = Path(pattern)
            matches = {
                str(path): str(path.relative_to(root))
                for path in sorted(root.rglob("*"))
                if path.suffix.lower() in SUFFIXES and path.is_file()
            }
        else:
            named = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
            matches = {path: Path(path).name for path in named if os.path.isfile(path)}
        if not matches:
            raise InputError(
                f"{pattern}: no image is found there; give a file, a folder or a quoted glob"
            )
        places.update(matches)
    taken: dict[str, str] = {}
    for path, place in places.items():
        other = taken.setdefault(place, path)
        if other != path:
            raise InputError(
                f"{other} and {path} have the same name, and their drawings would overwrite one "
                "another; run them with an --output of their own"
            )
    return places


def refuse_to_overwrite(places: dict[str, str], output: Path) -> None:
    """Refuse an output directory in which a drawing would replace an input.

    Raises:
        InputError: names the input.
    """
    for path, place in places.items():
        target = output / place
        if target.exists() and os.path.samefile(path, target):
            raise InputError(
                f"{target}: this input would be overwritten by its drawing; give another --output"
            )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Seconds to import, which help does not need.
    import orjson
    from PIL import Image

    from balms_det.data import read_image
    from balms_det.engine import inference_class_stats, load_config
    from balms_det.engine.predict import ImagePredictor, resolve_classes, to_records
    from balms_det.evaluation.visualize import draw_predictions
    from balms_det.runtime.progress import progress_bar

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args)
    weights = args.weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise InputError("there is no checkpoint; give one with --weights")
    places, output = find_images(args.input), Path(args.output)
    refuse_to_overwrite(places, output)
    stats = inference_class_stats(cfg, weights)
    classes = resolve_classes(cfg, weights, stats)
    predictor = ImagePredictor(cfg, weights, stats)
    output.mkdir(parents=True, exist_ok=True)
    predictions, unreadable = [], []
    for path, place in progress_bar(places.items(), "Predicting"):
        try:
            image = read_image(path, "RGB")
        except InputError as error:
            unreadable.append(str(error))
            continue
        instances = predictor(image)
        instances = instances[instances.scores >= args.confidence_threshold]
        drawn = draw_predictions(
            image, instances, classes.names, classes.groups, enlarge=args.enlarge
        )
        target = output / place
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target)
        height, width = image.shape[:2]
        predictions.append(
            {
                "file_name": path,
                "drawing": place,
                "height": height,
                "width": width,
                "instances": to_records(instances, classes),
            }
        )
    (output / _JSON).write_bytes(orjson.dumps(predictions))
    print(f"Wrote {len(predictions)} images and {_JSON} to {output}.")
    if unreadable:
        for line in unreadable:
            print(line, file=sys.stderr)
        raise InputError(
            f"{len(unreadable)} of {len(places)} images could not be read (listed above); "
            "the others are done"
        )
