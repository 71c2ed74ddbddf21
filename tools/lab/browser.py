"""Chromium without a screen, for the tests and screenshots of pages.

Needs the package playwright and a Chromium of the system; neither is a dependency.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

SCREENS = {"desktop": (1200, 900), "phone": (390, 844)}


def chromium() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def opened_page(
    path: Path, screen: str = "desktop", scheme: Literal["light", "dark"] = "light"
) -> Iterator[tuple[Any, list[str]]]:
    """Open a page of this machine.

    Args:
        path: of the HTML file.
        screen: of :data:`SCREENS`.
        scheme: "light" or "dark".

    Yields:
        Playwright's page, and a list that gets every error, warning and request to elsewhere.
    """
    from playwright.sync_api import sync_playwright

    width, height = SCREENS[screen]
    faults: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda message: (
                faults.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("data:", "blob:", path.resolve().as_uri()))
                else faults.append(request.url)
            ),
        )
        page.goto(path.resolve().as_uri())
        yield page, faults
        browser.close()


def scroll_through(page: Any) -> None:
    """Bring every part of a page near the screen, so that all of its figures are drawn."""
    for figure in page.query_selector_all(".figure"):
        figure.scroll_into_view_if_needed()
        figure.wait_for_selector(".main-svg")
    page.evaluate("scrollTo(0, 0)")
