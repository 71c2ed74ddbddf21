"""How fast the training loop is fed: python tools/classifier_throughput.py --json FILE

Ours and the one that tutorials show (tools/lab/classification/throughput.py) run in turn. The first
record is of the batches alone, the second of training with the network of
cifar10_lt_cpu+softmax, or on a GPU of cifar10_lt+softmax. The
images are random numbers, which takes as long as photographs.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import orjson
import torch

from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.command_line import run_tool
from lab.classification.throughput import TIMED, Loop
from lab.provenance import environment


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where the records are written")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--batch", type=int, default=512, help="images in one (default: 512)")
    args = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loops = [Loop(side, workers=args.workers, batch=args.batch) for side in ("ours", "peer")]
    records = []
    for work, trains in (("batches alone", False), ("training", True)):
        times = [[loop.seconds(trains=trains) for loop in loops] for _ in range(args.repeat)]
        ours_s, peer_s = map(statistics.median, zip(*times, strict=True))
        records.append(
            {
                "work": work,
                "device": device,
                "images": TIMED * args.batch,
                "peer": f"torchvision transforms in a DataLoader with {args.workers} workers",
                "ours_s": ours_s,
                "peer_s": peer_s,
                "ratio": peer_s / ours_s,
                "repeat": args.repeat,
                "load_average": round(os.getloadavg()[0], 1),
                **environment(device, torch.get_num_threads()),
            }
        )
        print(f"{work}: {records[-1]['ratio']:.1f} times as fast", flush=True)
    for loop in loops:
        loop.close()
    with atomic_file(args.json) as file:
        file.write(orjson.dumps(records, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    run_tool(main)
