"""Running a command-line tool in this process."""

import runpy

from balms_det.runtime import command_line


def exit_status(tool, *arguments):
    """The status that the tool at the path `tool` ends with."""
    main = runpy.run_path(str(tool))["main"]
    try:
        command_line.run_tool(lambda: main([str(argument) for argument in arguments]))
    except SystemExit as end:
        return end.code
    return 0
