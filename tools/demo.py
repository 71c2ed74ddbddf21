"""Draw a model's predictions on images: `balms-det demo`."""

from balms_det.commands.demo import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
