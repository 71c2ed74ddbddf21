"""The page that shows an evaluation: where the tail fails, and why.

`gathering` measures what `data` describes, by hotcoco. Each module of `sections` turns it into one
section, and `page` writes them into one HTML file, which needs no network.
"""

from balms_det.report.data import Options, ReportData
from balms_det.report.gathering import gather
from balms_det.report.page import plotly_script, write_page
from balms_det.report.sources import RunFiles, run_files

__all__ = [
    "Options",
    "ReportData",
    "RunFiles",
    "gather",
    "plotly_script",
    "run_files",
    "write_page",
]
