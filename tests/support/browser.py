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


@contextmanager
def page_with_microphone(recording: Path) -> Iterator[Page]:
    """Open an empty page whose microphone plays a WAV file in a loop; check that no script fails."""
    fake = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with open_browser(*fake, f"--use-file-for-fake-audio-capture={recording}") as browser:
        context = browser.new_context(permissions=["microphone"], accept_downloads=True)
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        yield page
        assert [problem for problem in problems if "the server responded with a status of 40" not in problem] == []


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
