"""The documented address of :class:`ClassStats`."""

from balms_det.annotations.class_stats import ClassStats

__all__ = ["ClassStats"]
