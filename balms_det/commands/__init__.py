"""The commands of `balms-det`, one module each; the scripts in tools/ are thin faces of them."""

from balms_det.runtime.dependency_warnings import ignore_known_warnings

# Before a command imports Detectron2, which warns while it is imported.
ignore_known_warnings()
