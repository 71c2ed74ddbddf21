"""List every fault of a data set: balms-det check JSON IMAGE_ROOT

JSON is in LVIS or COCO format. Without IMAGE_ROOT only the annotations are checked; with it every
image is decoded, which takes minutes for 100,000 of them. Exit status: 0 without faults (warnings
do not count), 1 with faults, 2 when the file cannot be read at all.
"""

import argparse
from collections.abc import Sequence

from balms_det.annotations.check import check_dataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", metavar="JSON", help="annotations in LVIS or COCO format")
    parser.add_argument(
        "image_root", metavar="IMAGE_ROOT", nargs="?", help="folder that file names start from"
    )
    args = parser.parse_args(argv)
    faults = check_dataset(args.json, args.image_root, progress=True)
    for fault in faults:
        print(fault)
    num_errors = sum(fault.severity == "error" for fault in faults)
    scope = (
        "" if args.image_root else "; the images were not checked, because no IMAGE_ROOT is given"
    )
    print(f"{args.json}: faults: {num_errors}, warnings: {len(faults) - num_errors}{scope}")
    return 1 if num_errors else 0
