"""Train or evaluate a detector: `balms-det train`."""

from balms_det.commands.train import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
