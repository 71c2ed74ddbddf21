"""Arguments that several commands share. Nothing heavy is imported: help appears at once."""

import argparse


def add_dataset_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset NAME JSON IMAGE_ROOT``, which registers an annotation file."""
    parser.add_argument(
        "--dataset",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "JSON", "IMAGE_ROOT"),
        help="register an annotation file in LVIS or COCO format under a name of your own, which "
        "DATASETS.TRAIN and DATASETS.TEST then name; file names in JSON start from IMAGE_ROOT; "
        "repeatable; a run's config.yaml keeps it",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``KEY VALUE ...``, the last arguments of a command line."""
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="configuration keys that go before those of the file, after all flags; "
        "`balms-det keys` explains them",
    )


def training_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return the command line of Detectron2's training scripts, with ``--dataset``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="a file, or a base and a method such as lvis_r50+seesaw; default: Detectron2's keys",
    )
    add_dataset_argument(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, if there is one",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the checkpoints and metrics of an earlier run in OUTPUT_DIR",
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="score MODEL.WEIGHTS on DATASETS.TEST"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, a GPU each; default 1"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="default 1")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine; default 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where processes meet, such as tcp://HOST:PORT; default: a free port of one machine",
    )
    add_overrides(parser)
    return parser
