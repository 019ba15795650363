"""The page in headless Chromium, against the real service (without Ray), with a microphone that plays real speech."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium, page_with_microphone
from playwright.sync_api import Page, expect
from serving import InProcessDecoder, recording_of, served, spoken, wav

from askd_ray.serve.engine import ServedModels, load
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.transcription_service import TranscriptionService

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def url(weights: Path) -> Iterator[str]:
    models = ServedModels()
    models.put(load(weights, "tiny.en"))
    with served(build_app(TranscriptionService(models, InProcessDecoder()), RequestLimits(), ServiceMetrics())) as url:
        yield url


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    """Two prompts with pauses, which the fake microphone plays in a loop."""
    file = tmp_path_factory.mktemp("page") / "speech.wav"
    file.write_bytes(wav(recording_of([clip for clip, _ in spoken(speech, 2)])))
    return file


@pytest.fixture
def page(recording: Path) -> Iterator[Page]:
    with page_with_microphone(recording) as page:
        yield page


def test_file_shows_words_with_times_and_subtitles(page: Page, url: str, recording: Path, speech: Path):
    elsewhere: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((url, "blob:", "data:")) else elsewhere.append(r.url))
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(1)
    page.set_input_files("#file", recording)
    expect(page.locator("#result")).to_be_visible(timeout=30_000)
    words = page.locator("#segments .word")
    reference = " ".join(text for _, text in spoken(speech, 2))
    assert abs(words.count() - len(reference.split())) <= 4
    expect(page.locator("#facts")).to_contain_text("Latency")
    for form, mark in (("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n")):
        with page.expect_download() as download:
            page.click(f"#{form}")
        assert download.value.suggested_filename == f"speech.{form}"
        text = Path(download.value.path()).read_text(encoding="utf-8")
        assert text.startswith(mark) and " --> " in text
    assert elsewhere == []


def test_page_works_by_keyboard(page: Page, url: str, recording: Path):
    # Before the page is there: a listener that comes with the key may come too late on a machine with much to do.
    page.on("filechooser", lambda chooser: chooser.set_files(recording))
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(1)
    reached: list[str] = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["model", "record", "choose"]
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_be_visible(timeout=30_000)


@pytest.mark.full
def test_captions_appear_during_recording(page: Page, url: str):
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(1)
    page.click("#record")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#captions p").first).to_be_visible(timeout=20_000)
    expect(page.locator("#captions p:not(.partial)").first).not_to_be_empty(timeout=20_000)
    page.click("#record")
    expect(page.locator("#result")).to_be_visible(timeout=30_000)
    expect(page.locator("#record")).to_have_text("Record")
    assert page.locator("#segments .word").count() > 3


def test_error_is_shown(page: Page, url: str, tmp_path: Path):
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(1)
    (tmp_path / "a.wav").write_bytes(b"these are no sounds")
    with page.expect_response("**/v1/audio/transcriptions") as answer:
        page.set_input_files("#file", tmp_path / "a.wav")
    assert answer.value.status == 400
    expect(page.locator("#error")).to_contain_text("unreadable audio")
