"""One HTML file that needs no network: style, script, data and Plotly are inside it."""

import os
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import orjson

from balms_det.report.data import ReportData
from balms_det.report.html import Section, escaped
from balms_det.report.sections import SECTIONS
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

# A browser that loads the page refuses every request to elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{title}</h1><nav>{links}</nav></header>
<main>
{sections}
</main>
<script>{plotly}</script>
<script type="application/json" id="figures">{figures}</script>
<script>
{script}</script>
</body>
</html>
"""


def plotly_script() -> str:
    """Return Plotly's JavaScript.

    Raises:
        InputError: the package plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise InputError(
            "a report needs the package plotly, which is not installed; run "
            "`pip install 'balms_det[report]'`"
        ) from error
    return str(get_plotlyjs())


def write_page(data: ReportData, path: str | os.PathLike[str]) -> None:
    """Write the report; what is at `path` is replaced whole or not at all.

    Raises:
        InputError: plotly is not installed, or the file cannot be written.
    """
    content = page(data).encode()
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(
            f"{path}: the report cannot be written ({error.strerror}); check that the directory "
            "exists and has room"
        ) from error


def page(data: ReportData) -> str:
    """Return the HTML of a report."""
    found = [section for make in SECTIONS if (section := make(data)) is not None]
    figures: dict[str, Any] = {}
    for section in found:
        figures |= section.figures
    return _PAGE.format(
        policy=_POLICY,
        title=escaped(f"{data.runs[0].files.name} on {data.annotations}"),
        style=_asset("page.css"),
        links=_links(found),
        sections="\n".join(_section(section) for section in found),
        plotly=_in_script(plotly_script()),
        figures=_in_script(orjson.dumps(figures, option=orjson.OPT_SERIALIZE_NUMPY).decode()),
        script=_asset("page.js"),
    )


def _links(sections: Sequence[Section]) -> str:
    return "".join(f'<a href="#{s.anchor}">{escaped(s.title)}</a>' for s in sections)


def _section(section: Section) -> str:
    return (
        f'<section id="{section.anchor}"><h2>{escaped(section.title)}</h2>{section.body}</section>'
    )


def _asset(name: str) -> str:
    return files("balms_det.report").joinpath(name).read_text(encoding="utf-8")


def _in_script(text: str) -> str:
    """Return text that no end of a script can be in; in JavaScript and JSON it means the same."""
    return text.replace("</", "<\\/")
