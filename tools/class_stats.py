"""Count the classes of a data set: `balms-det stats`."""

from balms_det.commands.stats import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
