"""Score exported models beside their checkpoint: python tools/exported_accuracy.py DIR ... --json F

Every DIR was written by `balms-det export` from MODEL.WEIGHTS. Each model predicts the images of
the first data set of DATASETS.TEST; the file has the AP of each, and how many detections are the
same. tools/report.py makes the table of docs/DEPLOY.md of it.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import orjson

from balms_det.engine import load_config
from balms_det.runtime.arguments import add_dataset_argument
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from lab.exported import compare, table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, required=True, help="where the run is written")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE")
    add_dataset_argument(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    run = {"name": args.json.stem, **compare(load_config(args), args.directories)}
    print(table(run))
    with atomic_file(args.json) as file:
        file.write(orjson.dumps(run, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    run_tool(main)
