"""The sections of a report, in the order of the page."""

from collections.abc import Callable

from balms_det.report.data import ReportData
from balms_det.report.html import Section
from balms_det.report.sections import (
    calibration,
    caps,
    classes,
    confusion,
    crops,
    headline,
    setup,
    tide,
    training,
)

# Each returns None where its data are absent.
SECTIONS: tuple[Callable[[ReportData], Section | None], ...] = (
    headline.section,
    classes.section,
    tide.section,
    confusion.section,
    crops.section,
    calibration.section,
    caps.section,
    training.section,
    setup.section,
)
