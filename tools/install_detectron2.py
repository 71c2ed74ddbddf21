"""Install Detectron2 where there is none: `balms-det install-detectron2`."""

from balms_det.commands.install_detectron2 import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
