"""The pieces of HTML that sections are made of; all text is escaped here."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balms_det.evaluation.visualize import GROUP_COLORS

GROUP_TITLES = {"all": "all", "r": "rare", "c": "common", "f": "frequent"}
COLORS = {group: "rgb({},{},{})".format(*rgb) for group, rgb in GROUP_COLORS.items()}
COLORS["all"] = "rgb(128,128,128)"
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id in the page.
        title: plain text.
        body: HTML.
        figures: name of a :func:`figure` in `body` -> what Plotly draws there ("data", "layout").
    """

    anchor: str
    title: str
    body: str
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


def escaped(text: Any) -> str:
    return html.escape(str(text))


def paragraph(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def number(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """Return a value as text; "–" for None, and for the negative that stands for no value."""
    if value is None or (value < 0 and not signed):
        return "–"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def with_interval(value: float | None, half_width: float | None, *, signed: bool = False) -> str:
    """Return a value in percent with its interval, where both are known."""
    text = number(value, signed=signed)
    return text if text == "–" or half_width is None else f"{text} ± {half_width:.1f}"


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> str:
    """Return a table whose first `left` columns are text, and the others numbers."""
    text = "".join(f"<th>{escaped(header)}</th>" for header in headers[:left])
    numbers = "".join(f'<th class="n">{escaped(header)}</th>' for header in headers[left:])
    body = "".join(f"<tr>{cells(row, left)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{text}{numbers}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def cells(row: Sequence[Any], left: int) -> str:
    return "".join(
        f"<td>{escaped(cell)}</td>" if position < left else f'<td class="n">{escaped(cell)}</td>'
        for position, cell in enumerate(row)
    )


def figure(name: str, *, tall: bool = False) -> str:
    """Return the element that Plotly draws the figure `name` into."""
    return f'<div class="figure{" tall" if tall else ""}" id="figure-{escaped(name)}"></div>'


def axis(title: str, **others: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, **others}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    return {"xaxis": dict(x), "yaxis": dict(y), **others}
