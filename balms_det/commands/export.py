"""Write a trained detector for another engine: OpenVINO, ONNX Runtime or TorchScript.

balms-det export --weights RUN/model_final.pth --format openvino --output DIR [KEY VALUE ...]

Writes the graphs of the network and model.json (names and counts of the classes, thresholds,
preprocessing) to --output. `balms_det.deploy.Predictor.from_exported(DIR)` predicts with them and
needs neither PyTorch nor Detectron2. The calibration of MODEL.LONG_TAIL.CALIBRATION is part of the
graphs, and thresholds are those of the configuration. docs/DEPLOY.md explains the formats.
"""

import argparse
import logging
from pathlib import Path

from balms_det.commands.demo import find_images
from balms_det.data import read_image
from balms_det.deploy.description import Classes
from balms_det.engine import (
    LongTailCheckpointer,
    build_long_tail_model,
    inference_class_stats,
    load_config,
)
from balms_det.engine.predict import resolve_classes
from balms_det.export import (
    FORMATS,
    MOST_IMAGES,
    PRECISIONS,
    check_precision,
    export_model,
    image_input,
    with_counts,
)
from balms_det.runtime.arguments import add_dataset_argument, add_overrides
from balms_det.runtime.errors import InputError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument(
        "--config-file", metavar="FILE", help="default: config.yaml beside the checkpoint"
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="of the engine's arithmetic; other than float32 for openvino; default float32",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="FILE|DIR|GLOB",
        help="images of the training set, a few hundred, for --precision int8",
    )
    parser.add_argument("--license", metavar="TEXT", help="licence of the weights, for model.json")
    add_dataset_argument(parser)
    add_overrides(parser)
    args = parser.parse_args(argv)
    args.config_file = args.config_file or _config_beside(args.weights)
    return args


def _config_beside(weights: str) -> str:
    """Return the path of the configuration that training wrote beside its checkpoints.

    Raises:
        InputError: there is none.
    """
    path = Path(weights).parent / "config.yaml"
    if not path.is_file():
        raise InputError(
            f"{path}: there is no configuration beside the checkpoint; name the one that it was "
            "trained with in --config-file"
        )
    return str(path)


def _calibration_images(args: argparse.Namespace) -> list[str]:
    paths = list(find_images(args.calibration))
    check_precision(args.format, args.precision, len(paths))
    return paths[:: max(1, len(paths) // MOST_IMAGES)][:MOST_IMAGES]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    images = [read_image(path, "RGB") for path in _calibration_images(args)]
    cfg = load_config(args)
    stats = inference_class_stats(cfg, args.weights)
    known = resolve_classes(cfg, args.weights, stats)
    classes = Classes(
        names=tuple(known.names),
        category_ids=tuple(map(int, known.category_ids)),
        groups=tuple(known.groups) if known.groups else None,
    )
    model = build_long_tail_model(cfg, stats).eval()
    LongTailCheckpointer(model, class_stats=stats).load(args.weights)
    description = export_model(
        model,
        args.output,
        form=args.format,
        precision=args.precision,
        image=image_input(cfg, model),
        classes=with_counts(classes, stats),
        license=args.license,
        calibration_images=images,
    )
    sizes = [path.stat().st_size for path in Path(args.output).iterdir()]
    print(
        f"Wrote {len(description.graphs())} graphs and model.json to {args.output}, "
        f"{sum(sizes) / 2**20:.0f} MB."
    )
