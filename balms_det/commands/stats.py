"""Count the classes of a data set: balms-det stats JSON --plot long_tail.png

Instead of a JSON in LVIS or COCO format (or a file that --json wrote) the name of a data set that
is registered with Detectron2 can be given, e.g. lvis_v1_train.
"""

import argparse
import os
from collections.abc import Sequence

import numpy as np

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import are_groups
from balms_det.annotations.repeat_factors import advised_threshold
from balms_det.runtime.errors import InputError

# More names than these would not be readable below the bars.
_MOST_NAMES = 60
GROUPS = {"f": ("frequent", "#0072b2"), "c": ("common", "#e69f00"), "r": ("rare", "#d55e00")}


def load_stats(source: str) -> ClassStats:
    """Return the statistics of a file or, where `source` is none, of a registered data set."""
    if os.path.exists(source) or source.endswith(".json"):
        return ClassStats.load(source)
    from balms_det.data import dataset_class_stats  # Detectron2 takes seconds to import.

    return dataset_class_stats([source])


def summary(stats: ClassStats) -> str:
    """Return a few lines that tell how long the tail is."""
    lines = [
        f"{stats.num_classes} classes, {stats.instance_counts.sum()} instances, "
        f"{stats.num_images} images, {stats.num_annotated_images} of them annotated"
    ]
    groups = np.array(stats.groups)
    for group, (name, _) in reversed(GROUPS.items()):
        members = groups == group
        lines.append(
            f"  {name:<8} {members.sum():>5} classes {stats.instance_counts[members].sum():>9} "
            "instances"
        )
    present = np.flatnonzero(stats.instance_counts)
    lines.append(f"{stats.num_classes - len(present)} classes have no instance")
    if len(present):
        largest, smallest = stats.instance_counts.max(), stats.instance_counts[present].min()
        lines.append(
            f"imbalance {largest / smallest:.4g} (largest to smallest class that has instances)"
        )
        threshold = advised_threshold(stats.image_counts, stats.num_images)
        lines.append(
            f"DATALOADER.REPEAT_THRESHOLD {threshold:.2g} repeats all classes but the "
            "most frequent third, as 0.001 does on LVIS"
        )
        by_count = present[np.argsort(-stats.instance_counts[present], kind="stable")]
        lines += ["most frequent:", *_class_lines(stats, by_count[:5])]
        lines += ["least frequent:", *_class_lines(stats, by_count[::-1][:5])]
    return "\n".join(lines)


def _class_lines(stats: ClassStats, indices: np.ndarray) -> list[str]:
    return [
        f"  {stats.names[i]:<24} {stats.instance_counts[i]:>8} instances in "
        f"{stats.image_counts[i]} images ({stats.groups[i]})"
        for i in indices
    ]


def plot_long_tail(stats: ClassStats, path: str) -> None:
    """Draw image counts as bars and instance counts as dots, the most frequent class first."""
    from matplotlib.figure import Figure

    from balms_det.runtime.figures import save_figure

    order = np.argsort(-stats.image_counts, kind="stable")
    groups = np.array(stats.groups)[order]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for group, (name, color) in GROUPS.items():
        rank = np.flatnonzero(groups == group)
        if len(rank):
            counts = stats.image_counts[order][rank]
            axes.bar(rank, counts, width=1.0, color=color, label=f"{name} ({len(rank)} classes)")
    axes.plot(stats.instance_counts[order], ".", color="0.2", markersize=2.5, label="instances")
    # Logarithmic from 1 up, and linear below, so that classes with no image are seen as zero.
    axes.set_yscale("symlog", linthresh=1, linscale=0.3)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    if len(order) <= _MOST_NAMES:
        names = [stats.names[index] for index in order]
        axes.set_xticks(range(len(order)), names, rotation=60, ha="right", fontsize=8)
    else:
        axes.set_xlabel("class, sorted by the number of images")
    axes.set_ylabel("images with the class (bars)\ninstances of the class (dots)")
    axes.set_title(f"{stats.num_classes} classes in {stats.num_images} images")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", metavar="JSON", help="annotation file, statistics file, or registered data set"
    )
    parser.add_argument(
        "--groups",
        default="lvis",
        metavar="lvis|thirds|A,B",
        help="which classes are rare, common and frequent, as MODEL.LONG_TAIL.GROUPS; default lvis",
    )
    parser.add_argument("--json", metavar="OUT", help="write the statistics of every class here")
    parser.add_argument("--plot", metavar="OUT.png", help="draw the long tail here")
    args = parser.parse_args(argv)
    if not are_groups(args.groups):
        raise InputError(
            f"--groups is {args.groups!r}; give lvis, thirds, or two limits such as 20,200"
        )
    stats = load_stats(args.source).with_groups(args.groups)
    print(summary(stats))
    if args.json:
        stats.save(args.json)
    if args.plot:
        plot_long_tail(stats, args.plot)
