"""Measure this package beside its peers: python tools/benchmark.py WORK ... | all [--json FILE]

Ours and the peer run alternately in the same process. The output gives the median time and the peak
memory of both, and the largest difference of their outputs.

    python tools/benchmark.py box_selection
    python tools/benchmark.py image --classes 80 1203 5000 --repeat 3 --json image.json
    python tools/benchmark.py all --device cuda

tools/report.py turns stored measurements into the tables of docs/performance/.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from lab.benchmark import WORKS, records, sizes_of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("works", nargs="+", metavar="WORK", help=f"all, or {', '.join(WORKS)}")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--repeat", type=int, default=5, help="times that each side is timed")
    parser.add_argument(
        "--operations",
        action="store_true",
        help="time PyTorch's operations, or else Python's functions, one by one, too",
    )
    parser.add_argument("--without-peer", action="store_true", help="where the peer takes too long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records here")
    for size in sorted({size for work in WORKS for size in sizes_of(work)}):
        having = [work for work in WORKS if size in sizes_of(work)]
        help_ = f"one or several, of {', '.join(having)}"
        parser.add_argument(f"--{size}", type=int, nargs="+", metavar="N", help=help_)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured, before anything is.

    Raises:
        InputError: a work, device or number that does not exist or make sense.
    """
    if args.works == ["all"]:
        args.works = list(WORKS)
    for work in args.works:
        if work not in WORKS:
            raise InputError(f"there is no work {work!r}; choose all, or of {', '.join(WORKS)}")
    if args.device not in ("cpu", "cuda"):
        raise InputError(f"--device is {args.device!r}; choose cpu or cuda")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is 'cuda', but PyTorch finds no GPU here; choose cpu")
    if args.repeat < 1:
        raise InputError(f"--repeat is {args.repeat}; set it to 1 or more")
    for size, values in chosen_sizes(args).items():
        if not any(size in sizes_of(work) for work in args.works):
            raise InputError(f"--{size} is given, but {', '.join(args.works)} has no such size")
        if min(values) < 1:
            raise InputError(f"--{size} is {min(values)}; set it to 1 or more")


def chosen_sizes(args: argparse.Namespace) -> dict[str, list[int]]:
    names = {size for work in WORKS for size in sizes_of(work)}
    return {size: values for size, values in vars(args).items() if size in names and values}


def combinations(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, int]]]:
    """Every work with every combination of the sizes asked for that it has."""
    for work in args.works:
        sizes = {k: v for k, v in chosen_sizes(args).items() if k in sizes_of(work)}
        for values in itertools.product(*sizes.values()):
            yield work, dict(zip(sizes, values, strict=True))


def line(record: dict[str, Any]) -> str:
    """One record in a line of text."""
    sizes = ", ".join(f"{n} {name}" for name, n in record["sizes"].items())
    name = " ".join(part for part in (record["work"], record["variant"]) if part)
    parts = [f"{name} ({sizes}): ours {record['ours_s']:.4g} s"]
    if record["peer_s"] is not None:
        parts.append(f"{record['peer']} {record['peer_s']:.4g} s, {record['ratio']:.3g} times")
    elif "peer_error" in record:
        parts.append(f"{record['peer']}: {record['peer_error']}")
    if record["ours_peak_mb"] is not None:
        peer_mb = record["peer_peak_mb"]
        against = "" if peer_mb is None else f" against {peer_mb:.0f}"
        parts.append(f"peak {record['ours_peak_mb']:.0f}{against} MB")
    if record["max_abs_diff"] is not None:
        parts.append(f"largest difference {record['max_abs_diff']:.3g}")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    check(args)
    shown = sys.argv[1:] if argv is None else list(argv)
    command = " ".join(["python tools/benchmark.py", *_without_json(shown)])
    measured = []
    for work, sizes in combinations(args):
        options = {
            "repeat": args.repeat,
            "sizes": sizes,
            "operations": args.operations,
            "with_peer": not args.without_peer,
        }
        for record in records(work, device=args.device, **options):
            print(line(record), flush=True)
            measured.append({**record, "command": command})
            if args.json:  # after every one, for they may take hours together
                with atomic_file(args.json) as file:
                    file.write(orjson.dumps(measured, option=orjson.OPT_INDENT_2))


def _without_json(arguments: Sequence[str]) -> list[str]:
    """Return a command line without the name of the file that it writes."""
    kept = list(arguments)
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return kept


if __name__ == "__main__":
    run_tool(main)
