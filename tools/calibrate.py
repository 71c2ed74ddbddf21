"""Sweep the strength of a test-time calibration: `balms-det calibrate`."""

from balms_det.commands.calibrate import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
