"""Configuration keys, their checks, and the shipped configuration files."""

from balms_det.config.files import config_file, config_files, merge_config_files, run_name
from balms_det.config.keys import add_balms_config

__all__ = ["add_balms_config", "config_file", "config_files", "merge_config_files", "run_name"]
