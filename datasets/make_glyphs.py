"""Generate a long-tailed data set: `balms-det make-glyphs`."""

from balms_det.commands.make_glyphs import main
from balms_det.runtime.command_line import run_tool

if __name__ == "__main__":
    run_tool(main)
