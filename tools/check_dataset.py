"""List every fault of a data set: `balms-det check`."""

from balms_det.commands.check import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
