"""The page in a real browser."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from browser import chromium, open_browser, open_page
from playwright.sync_api import Browser, Page
from reported import BETTER, NOISY, finish, model_rows, non_speech_rows, time_it, write_run

from askd_ray.evaluation.report.write import report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium"),
]
LONG = "domain-without-any-space-that-goes-on-and-on-and-on-and-on-and-on-and-on"
EVIL = """<script>window.evil = 1</script> <img src="http://example.org/x.png" onerror="window.evil = 2"> <b>bold</b>"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it, long names and hostile texts too."""
    run = write_run(tmp_path_factory.mktemp("runs"), "small", normalizer="none")
    with pytest.MonkeyPatch.context() as patch:
        timed = json.loads(json.dumps(time_it(run, patch)))
    rows = model_rows(run, BETTER | {"tiny": 0.5}, NOISY)
    rows = [replace(r, hypothesis=EVIL) if (r.model, r.id) == ("student", "clip-1") else r for r in rows]
    rows += [
        replace(r, set=f"far/{LONG}", hypothesis="" if (r.model, r.id[-6:]) == ("student", "1.flac") else r.hypothesis)
        for r in rows
        if r.set == "far"
    ]
    return report([str(finish(run, [*rows, *non_speech_rows(["teacher", "tiny", "student"])], timed).path)])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as started:
        yield started


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    opened = open_page(browser, path)
    yield opened
    opened.close()


def test_it_asks_for_nothing_and_runs_nothing(browser: Browser, path: Path):
    page = browser.new_page()
    requests, complaints = list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url[:100]))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.resolve().as_uri(), wait_until="networkidle")
    assert [url for url in requests if not url.startswith("data:audio/")] == [path.resolve().as_uri()]
    assert complaints == []
    assert page.evaluate("window.evil") is None
    assert page.get_by_text('onerror="window.evil').count() > 0
    page.close()


def test_the_sound_plays(page: Page):
    gone = page.locator("article").filter(has_text="no longer available")
    assert gone.count() > 0 and LONG in (gone.first.text_content() or "")
    assert page.locator("audio").count() == page.locator("article").count() - gone.count() > 3
    page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
    durations_s = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    titles = page.locator("article:has(audio) h3").all_inner_texts()
    title_s = [float(title.split("(")[-1].split(" s")[0]) for title in titles]
    assert all(abs(a - b) < 0.2 for a, b in zip(durations_s, title_s, strict=True))  # MP3 pads
    played = "async a => { a.muted = true; await a.play(); await new Promise(r => a.ontimeupdate = r); return a.error }"
    assert page.locator("audio").first.evaluate(played) is None


@pytest.mark.parametrize("width", [390, 1100])
def test_it_fits_the_screen(browser: Browser, path: Path, width: int):
    page = open_page(browser, path, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wider = "[...document.querySelectorAll('main :is(p, h2, h3, figure, audio, dd, .scroll)')]"
    overhang = f"{wider}.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"
    assert page.evaluate(overhang) == []
    page.close()


@pytest.mark.parametrize(("scheme", "paper_is_bright"), [("light", True), ("dark", False)])
def test_text_and_plots_stand_out_in_either_scheme(
    browser: Browser, path: Path, scheme: Literal["light", "dark"], paper_is_bright: bool
):
    page = open_page(browser, path, scheme=scheme)
    paper = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    ink = page.locator("figure svg use").first.evaluate("e => getComputedStyle(e).fill")
    line = page.locator("figure svg path[style*='--model-1']").first.evaluate("e => getComputedStyle(e).stroke")
    bright = [sum(map(int, colour.removeprefix("rgb(")[:-1].split(","))) > 384 for colour in (paper, ink)]
    assert bright == [paper_is_bright, not paper_is_bright]
    assert line.startswith("rgb(") and line not in (paper, ink)
    page.close()


def test_it_is_built_for_every_reader(page: Page):
    assert page.locator("h1").count() == 1
    tables = page.locator("table")
    assert tables.count() == page.locator("table > caption").count() > 10
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert len(links) == page.locator("h2").count() and set(links) <= set(ids)
    missing = "[...document.querySelectorAll('use')].filter(u => !document.querySelector(u.getAttribute('xlink:href')))"
    assert page.evaluate(f"{missing}.length") == 0


def test_errors_can_be_told_apart_without_colours(page: Page):
    style = "e => { const s = getComputedStyle(e); return s.textDecorationLine + ' ' + s.textDecorationStyle }"
    looks = {kind: page.locator(f"article {kind}").first.evaluate(style) for kind in ("del", "ins", ".substituted")}
    assert looks == {"del": "line-through solid", "ins": "underline solid", ".substituted": "underline wavy"}
    assert page.locator("article del").first.inner_text().startswith("-")
    assert page.locator("article ins").first.inner_text().startswith("+")
    assert "→" in page.locator("article .substituted").first.inner_text()


def test_it_prints(page: Page, tmp_path: Path):
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("nav").is_hidden() and page.locator("audio").first.is_hidden()
    assert page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
