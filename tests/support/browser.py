"""A real Chromium for tests of pages, and its pictures of them.

`python tests/support/browser.py PAGE PICTURE` takes a picture of the upper part of a page, such as
`python tests/support/browser.py runs/demo/evaluate/report.html docs/report.png`. `--whole`, `--dark` and `--width`
change it.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

_QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update", "--disable-sync")


def chromium() -> str | None:
    """Where Chromium is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def open_browser(*options: str) -> Iterator[Browser]:
    """Start a headless Chromium with an empty profile, which talks to nobody of its own accord."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=[*_QUIET, "--disable-background-networking", *options],
            chromium_sandbox=False,
        )
        yield browser
        browser.close()


def open_page(
    browser: Browser, path: Path, width: int = 1100, scheme: Literal["light", "dark"] = "light", height: int = 1400
) -> Page:
    """Open a file in a window of that width, in the reader's preferred colours."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    return page


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    with open_browser() as browser:
        page = open_page(browser, given.page, given.width, "dark" if given.dark else "light")
        page.screenshot(path=given.picture, full_page=given.whole)
