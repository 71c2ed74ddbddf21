"""Train and test a classifier: `balms-det classify`."""

from balms_det.commands.classify import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
