"""Take pictures of a report in Chromium: python tools/screenshots.py report.html --output DIR

Writes DIR/report_light.png, DIR/report_dark.png and DIR/report_phone.png. Needs the package
playwright and a Chromium of the system.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from balms_det.runtime.command_line import run_tool
from balms_det.runtime.errors import InputError
from lab.browser import chromium, opened_page, scroll_through

SHOTS = {
    "light": ("desktop", "light"),
    "dark": ("desktop", "dark"),
    "phone": ("phone", "light"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="HTML")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    if not args.report.is_file():
        raise InputError(f"{args.report}: there is no such file; write it with `balms-det report`")
    if chromium() is None:
        raise InputError("there is no Chromium; install it with the system's package manager")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, (screen, scheme) in SHOTS.items():
        with opened_page(args.report, screen, scheme) as (page, faults):
            scroll_through(page)
            page.wait_for_timeout(500)
            page.screenshot(path=args.output / f"report_{name}.png", full_page=True)
            for fault in faults:
                print(f"report_{name}: {fault}")


if __name__ == "__main__":
    run_tool(main)
