"""Write a page that shows where a detector fails: balms-det report RUN --annotations GT.json

    balms-det report RUN --annotations GT.json --image-root IMAGES --output report.html
    balms-det report RUN --compare OTHER --annotations GT.json
    balms-det report --predictions RESULTS.json --annotations GT.json

RUN and OTHER are the OUTPUT_DIR of runs that were evaluated, or result files. GT.json is in LVIS or
COCO format, and result files, of any framework, in COCO's. Without --annotations, those of the
first of the run's DATASETS.TEST are used if Detectron2 knows that data set, as lvis_v1_val.

docs/REPORT.md explains the page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from balms_det.annotations.class_stats import ClassStats
from balms_det.report import Options, RunFiles, gather, plotly_script, run_files, write_page
from balms_det.runtime.errors import InputError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="OUTPUT_DIR of a run")
    parser.add_argument(
        "--predictions", metavar="RESULTS.json", help="a result file, instead of RUN"
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="OTHER", help="runs or result files"
    )
    parser.add_argument("--annotations", metavar="GT.json")
    parser.add_argument(
        "--image-root", metavar="DIR", help="draw the errors of the worst rare classes from here"
    )
    parser.add_argument(
        "--class-stats",
        metavar="JSON",
        help="training annotations, or what `balms-det stats --json` wrote: the classes' training "
        "counts, and the groups of a set in COCO format; default: those that RUN has left, or "
        "the counts in GT.json",
    )
    parser.add_argument(
        "--task",
        choices=("bbox", "segm"),
        help="default: AP of masks where there are any, and the causes of errors on boxes",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=100,
        metavar="N",
        help="samples for each interval, default 100; 0 for no intervals",
    )
    parser.add_argument("--output", default="report.html", metavar="HTML")
    return parser.parse_args(argv)


def registered_annotations(run: RunFiles) -> tuple[str, str | None]:
    """Return the annotation file of the data set that a run was evaluated on, and its image root.

    The root is None where there is no such directory.

    Raises:
        InputError: neither the run's configuration nor Detectron2 knows it, or its annotations are
            not there.
    """
    datasets = (yaml.safe_load(run.configuration) or {}).get("DATASETS") or {}
    names = datasets.get("TEST") or [""]
    kept = {name: (path, root) for name, path, root in datasets.get("REGISTER") or ()}
    path, root = kept.get(names[0]) or _known_to_detectron2(names[0])
    if path is None or not Path(path).is_file():
        raise InputError(
            f"{run.name}: the annotations of its data set {names[0]!r} are not known; give them "
            "with --annotations"
        )
    return path, root if root and Path(root).is_dir() else None


def _known_to_detectron2(name: str) -> tuple[str | None, str | None]:
    from detectron2.data import MetadataCatalog

    known = vars(MetadataCatalog.get(name)) if name in MetadataCatalog.list() else {}
    return known.get("json_file"), known.get("image_root")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if (args.run is None) == (args.predictions is None):
        raise InputError("give either RUN or --predictions, the subject of the report")
    if args.bootstrap < 0:
        raise InputError(f"--bootstrap is {args.bootstrap}; give 0 or more")
    plotly_script()  # Its absence shows before anything is measured.
    runs = [run_files(run) for run in (args.run or args.predictions, *args.compare)]
    annotations, image_root = args.annotations, args.image_root
    if annotations is None:
        annotations, known_root = registered_annotations(runs[0])
        image_root = image_root or known_root
    if image_root is not None and not Path(image_root).is_dir():
        raise InputError(f"{image_root}: the image root is not a directory; check the path")
    stats = ClassStats.load(args.class_stats) if args.class_stats else None
    options = Options(args.task, args.bootstrap, image_root)
    data = gather(annotations, runs, options, stats)
    write_page(data, args.output)
    scores = data.runs[0].scores[data.task]
    figures = ", ".join(
        f"{m} {scores[m]:.1f}" for m in ("AP", "APr", "APc", "APf") if scores[m] >= 0
    )
    print(f"{data.runs[0].files.name}: {figures} ({data.task}). The report is {args.output}.")
