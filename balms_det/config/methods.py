"""Describing the shipped methods: what each needs, from its configuration, and its numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from balms_det.calibration import CALIBRATIONS
from balms_det.config.files import config_file
from balms_det.config.method_list import METHODS, SOURCES, Method, Published
from balms_det.losses.registry import loss_named

_NOTHING = "nothing but images and annotations"


def method_needs(method: Method) -> list[str]:
    """Return what a method needs beside images and annotations, from its configuration file."""
    path = Path(config_file(f"methods/{method.name}.yaml"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    long_tail = content["MODEL"]["LONG_TAIL"]
    loss, calibration = long_tail["LOSS"], long_tail.get("CALIBRATION", {}).get("NAME", "none")
    needs = []
    if _needs_stats(loss) or CALIBRATIONS[calibration]:
        needs.append("class statistics" + " with box dimensions" * (calibration == "fracal"))
    if calibration == "logn":
        needs.append("logit statistics of a trained detector (`balms-det logit-stats`)")
    elif calibration != "none":
        needs.append("no training: it corrects a trained detector")
    if long_tail.get("DECOUPLE", {}).get("ENABLED"):
        first = content["MODEL"]["WEIGHTS"].partition("}_")[2].partition("/")[0]
        needs.append(f"a second stage on `{first}`, which a feature cache can serve")
    if (
        loss.get("CLASS_WEIGHTS", {}).get("NAME") == "learned"
        or content.get("DATALOADER", {}).get("SAMPLER_TRAIN") == "MetaTrainingSampler"
    ):
        needs.append("plain SGD in single precision")
    if content.get("INPUT", {}).get("COPY_PASTE", {}).get("PROB"):
        needs.append("bit masks, and a second image to read for each")
    return needs


def _needs_stats(loss: dict[str, Any]) -> bool:
    weighted = loss.get("CLASS_WEIGHTS", {}).get("NAME") in ("inverse", "effective_number")
    federated = loss.get("FEDERATED", {}).get("ENABLED", False)
    return bool(loss_named(loss["NAME"]).needs_stats or weighted or federated)


def describe_methods(methods: Sequence[Method] = METHODS) -> str:
    """Return a paragraph for each method: paper, formula, needs, and its number with source."""
    return "\n\n".join(_paragraph(method) for method in methods)


def _paragraph(method: Method) -> str:
    paper = "Balanced Activation, arXiv:2008.11037 (slides)" if method.paper == "slides" else ""
    paper = paper or (f"arXiv:{method.paper}" if method.paper else "none")
    return "\n".join(
        [
            f"{method.name}: {method.title}",
            f"  paper    {paper}",
            f"  formula  {method.formula}",
            f"  needs    {'; '.join(method_needs(method)) or _NOTHING}",
            f"  number   {_number(method.published)}",
        ]
    )


def _number(published: Published | None) -> str:
    if published is None:
        return "none known for Mask R-CNN on LVIS v1"
    numbers = [
        f"{backbone} mask AP {result[0]}, box AP {result[1]}"
        for backbone, result in (("R-50", published.r50), ("R-101", published.r101))
        if result is not None
    ]
    return f"{'; '.join(numbers)} ({SOURCES[published.source]})"


def method_table() -> str:
    """Return the table of methods, their numbers and the sources, for configs/README.md."""
    header = [
        "| `methods/` | method | paper | R-50 mask AP / r / c / f | box AP "
        "| R-101 mask AP / r / c / f | box AP | source |",
        "| --- " * 8 + "|",
    ]
    sources = [f"- `{name}`: {meaning}." for name, meaning in SOURCES.items()]
    return "\n".join([*header, *map(_row, METHODS), "", *sources])


def _row(method: Method) -> str:
    paper = method.paper
    if paper == "slides":
        paper = "[slides](https://arxiv.org/abs/2008.11037)"
    elif paper:
        paper = f"[{paper}](https://arxiv.org/abs/{paper})"
    published = method.published or Published("")
    r50, r101 = published.r50 or ("", ""), published.r101 or ("", "")
    source = published.source and f"`{published.source}`"
    cells = [f"`{method.name}`", method.title, paper, *r50, *r101, source]
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
