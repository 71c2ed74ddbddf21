"""Measure `balms-det report` on a generated set of LVIS's validation size; --help has the options.

    python tools/measure_report.py --save docs/runs/report_lvis.json
    python tools/measure_report.py --from docs/runs/report_lvis.json --into docs/REPORT.md

Two runs of 300 boxes and masks per image are generated (4.4 GB of result files in a temporary
directory). Each report is made in a process of its own. --save stores what was measured; --into
writes it between <!-- report: report_lvis --> and <!-- /report --> of a document; --from takes a
stored measurement in place of a new one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from balms_det.annotations.file import read_annotation_file
from balms_det.evaluation.predictions import write_predictions
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from lab import markdown
from lab.benchmark.lvis_like import LVIS_V1, lvis_like_predictions, write_lvis_like
from lab.provenance import describe, environment

NAME = "report_lvis"
DETECTIONS = 300
IMAGES, ANNOTATIONS = LVIS_V1["val"]


def generate(folder: Path, images: int, classes: int) -> None:
    """Write gt.json, first.json and second.json."""
    annotations = max(ANNOTATIONS * images // IMAGES, 1)
    write_lvis_like(folder / "gt.json", images=images, annotations=annotations, classes=classes)
    file = read_annotation_file(folder / "gt.json")
    for seed, name in enumerate(("first", "second")):
        predictions = lvis_like_predictions(file, detections=DETECTIONS, seed=seed)
        write_predictions(folder / f"{name}.json", predictions)


def measured(folder: Path, compare: bool, task: str | None) -> dict[str, Any]:
    """Return the time, memory and size of one report."""
    page = folder / "report.html"
    command = [
        sys.executable, "-W", "ignore", "-m", "balms_det", "report",
        "--predictions", str(folder / "first.json"), "--annotations", str(folder / "gt.json"),
        "--output", str(page),
    ]  # fmt: skip
    command += ["--compare", str(folder / "second.json")] if compare else []
    command += ["--task", task] if task else []
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {
        "runs": 1 + compare,
        "task": task or "masks, causes on boxes",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": usage.ru_maxrss >> 10,
        "page_mb": round(page.stat().st_size / 1e6, 1),
    }


def measurement(folder: Path, images: int, classes: int) -> dict[str, Any]:
    """Return the record of reports of one run and of two, on the set in `folder`."""
    if not (folder / "second.json").exists():
        # In another process, whose memory does not count.
        if os.fork() == 0:
            generate(folder, images, classes)
            os._exit(0)
        if os.wait()[1]:
            raise RuntimeError("the set was not generated")
    load = os.getloadavg()[0]
    return {
        "images": images,
        "classes": classes,
        "detections": DETECTIONS,
        "reports": [measured(folder, False, "bbox"), measured(folder, True, None)],
        "load_before": round(load, 1),
        **environment(),
    }


def table(record: dict[str, Any]) -> str:
    """Return the table of a record, and a sentence on how it was measured."""
    rows = [
        [
            str(report["runs"]),
            {"bbox": "boxes"}.get(report["task"], report["task"]),
            f"{report['seconds']:.0f}",
            f"{report['cpu_seconds']:.0f}",
            f"{report['peak_mb'] / 1024:.1f}",
            f"{report['page_mb']:.1f}",
        ]
        for report in record["reports"]
    ]
    headers = ["runs", "AP of", "seconds", "CPU seconds", "peak GiB", "page MB"]
    return "\n".join(
        [
            markdown.table(headers, rows, left=(1,)),
            "",
            f"{record['images']} images, {record['classes']} classes, {record['detections']} boxes "
            f"and masks per image and run; a load of {record['load_before']} on the machine "
            f"before; {describe(record)}.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N")
    parser.add_argument("--classes", type=int, default=1203, metavar="K")
    parser.add_argument("--folder", metavar="DIR", help="generate here, or use what is there")
    parser.add_argument("--from", dest="stored", metavar="JSON", help="a stored measurement")
    parser.add_argument("--save", metavar="JSON")
    parser.add_argument("--into", metavar="DOCUMENT")
    args = parser.parse_args(argv)
    if args.stored:
        record = orjson.loads(Path(args.stored).read_bytes())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.folder or temporary)
            folder.mkdir(parents=True, exist_ok=True)
            record = measurement(folder, args.images, args.classes)
    if args.save:
        with atomic_file(args.save) as file:
            file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))
    print(table(record))
    if args.into:
        markdown.update_blocks(Path(args.into), {NAME: table(record)})


if __name__ == "__main__":
    run_tool(main)
