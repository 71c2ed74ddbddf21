"""Tables and plots of stored runs, see :mod:`lab.classification.results`.

Accuracies are in percent. Methods are compared seed by seed: a method and softmax see the same
images with a seed, so that the interval of their difference is that of its mean over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from balms_det.classification.evaluate import tail_share
from balms_det.runtime.figures import save_figure
from lab import markdown
from lab.provenance import describe

Run = dict[str, Any]
# Published accuracies by imbalance (as in JSON, a string) and method.
Published = Mapping[str, Mapping[str, float]]
BASELINE = "softmax"


@dataclass(frozen=True)
class Sample:
    """Values of several seeds.

    Attributes:
        mean: of the values.
        deviation: of the values (n - 1); None for a single one.
        interval: half width of the 95 % confidence interval of the mean, by Student's t; None for
            a single value.
    """

    mean: float
    deviation: float | None
    interval: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return the summary of one value or more."""
        n = len(values)
        if n == 1:
            return cls(float(values[0]), None, None)
        deviation = float(np.std(values, ddof=1))
        t = float(stats.t.ppf(0.975, n - 1))
        return cls(float(np.mean(values)), deviation, t * deviation / n**0.5)


def results_by_seed(runs: Sequence[Run], method: str, imbalance: int) -> dict[int, Any]:
    """Return the results of one method at one imbalance, by seed."""
    return {
        run["seed"]: run["results"]
        for run in runs
        if (run["method"], run["imbalance"]) == (method, imbalance)
    }


def accuracy(runs: Sequence[Run], method: str, imbalance: int) -> Sample:
    """Return accuracy over the seeds."""
    by_seed = results_by_seed(runs, method, imbalance)
    return Sample.of([100 * results["accuracy"] for results in by_seed.values()])


def gain(runs: Sequence[Run], method: str, imbalance: int, over: str = BASELINE) -> Sample:
    """Difference of the accuracies of two methods, over the seeds that both have."""
    ours = results_by_seed(runs, method, imbalance)
    theirs = results_by_seed(runs, over, imbalance)
    both = ours.keys() & theirs.keys()
    return Sample.of([100 * (ours[s]["accuracy"] - theirs[s]["accuracy"]) for s in both])


def tail(runs: Sequence[Run], method: str, imbalance: int) -> Sample:
    """Part of the marginal likelihood that the rarer half of the classes gets, in percent."""
    by_seed = results_by_seed(runs, method, imbalance)
    return Sample.of([100 * tail_share(results["marginal"]) for results in by_seed.values()])


def comparison_table(
    runs: Sequence[Run], methods: Sequence[str], imbalances: Sequence[int], published: Published
) -> str:
    """Markdown: a row for each method that was run or published, columns for each imbalance."""
    headers = ["method"]
    for imbalance in imbalances:
        columns = [f"IF {imbalance}", "− softmax", "tail"] if runs else []
        columns += [f"published, IF {imbalance}"] if published else []
        headers += columns
    rows = []
    for method in methods:
        cells = [f"`{method}`"]
        for imbalance in imbalances:
            if runs:
                cells += _measured(runs, method, imbalance)
            if published:
                value = published.get(str(imbalance), {}).get(method)
                cells.append("" if value is None else f"{value:.1f}")
        if any(cells[1:]):
            rows.append(cells)
    return markdown.table(headers, rows)


def _measured(runs: Sequence[Run], method: str, imbalance: int) -> list[str]:
    if not results_by_seed(runs, method, imbalance):
        return ["", "", ""]
    score, share = accuracy(runs, method, imbalance), tail(runs, method, imbalance)
    difference = "" if method == BASELINE else _signed(gain(runs, method, imbalance))
    return [_with(score.mean, score.deviation), difference, f"{share.mean:.0f}"]


def _with(mean: float, spread: float | None) -> str:
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def _signed(sample: Sample) -> str:
    if sample.interval is None:
        return f"{sample.mean:+.1f}"
    low, high = sample.mean - sample.interval, sample.mean + sample.interval
    text = f"{sample.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def provenance(runs: Sequence[Run]) -> str:
    """Return a sentence on how many runs there are, their class counts, and how they were made."""
    seeds = len({run["seed"] for run in runs})
    minutes = sum(run["seconds_of_training"] for run in runs) / 60
    counts = {run["imbalance"]: run["class_counts"] for run in runs}
    classes = "; ".join(
        f"IF {imbalance}: {sum(n)} training images, {n[0]} in the largest class and {n[-1]} in "
        "the smallest"
        for imbalance, n in sorted(counts.items(), reverse=True)
    )
    return (
        f"{len(runs)} runs, {seeds} seed{'s' if seeds > 1 else ''}. {classes}. {minutes:.0f} "
        f"minutes of training in total; {describe(runs[0])}."
    )


def throughput_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of the records that tools/classifier_throughput.py writes."""
    rows = []
    for record in records:
        images = record["images"]
        ours, peer = images / record["ours_s"], images / record["peer_s"]
        rows.append([record["work"], f"{ours:.0f}", f"{peer:.0f}", f"{record['ratio']:.1f}"])
    first = records[0]
    made = (
        f"medians of {first['repeat']} alternating repetitions; {first['peer']}; "
        f"load average {first['load_average']}; {describe(first)}."
    )
    headers = ["loop", "ours, images/s", "torchvision's, images/s", "ratio"]
    return "\n\n".join([markdown.table(headers, rows), made])


def plot_marginals(
    runs: Sequence[Run], methods: Sequence[str], imbalances: Sequence[int], path: Path
) -> None:
    """Marginal likelihood of the predicted labels against the classes' rank, for every method.

    The line is the mean over seeds, the band their range; a balanced test set has the dashed line.
    """
    shown = [m for m in methods if any(run["method"] == m for run in runs)]
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.6, 1.9 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    colors = ("#08519c", "#3182bd", "#9ecae1")  # the darker the longer the tail
    for axes, method in zip(grid.flat, shown, strict=False):
        for color, imbalance in zip(colors, sorted(imbalances, reverse=True), strict=False):
            by_seed = results_by_seed(runs, method, imbalance)
            if not by_seed:
                continue
            marginals = 100 * np.array([results["marginal"] for results in by_seed.values()])
            rank = np.arange(1, marginals.shape[1] + 1)
            axes.fill_between(
                rank, marginals.min(0), marginals.max(0), color=color, alpha=0.25, linewidth=0
            )
            axes.plot(rank, marginals.mean(0), color=color, linewidth=1.6, label=f"IF {imbalance}")
        axes.axhline(100 / len(rank), color="0.3", linewidth=0.8, linestyle="--")
        axes.set_title(method.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].set_ylim(bottom=0)  # last, because it fixes the upper limit
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("class, the most frequent first", fontsize=8)
    figure.supylabel("marginal likelihood of the label, %", fontsize=8)
    save_figure(figure, path)
