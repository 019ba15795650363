"""The student in headless Chromium, against the real service (without Ray): texts, captions, and no other request."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, page_with_microphone
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from random_student import write_random_student
from serving import BundleEngine, InProcessDecoder, build_test_app, bundle_of, recording_of, served, spoken, wav

from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.logmel import log_mel_windows, mel_filters
from askd_ray.audio.units import DecodingWindow, samples_of
from askd_ray.fetch.weights import fetch_weights
from askd_ray.files import write_json
from askd_ray.models.load import save_whisper
from askd_ray.models.whisper_onnx import write_whisper_onnx
from askd_ray.models.whisper_onnx_engine import OnnxWhisper
from askd_ray.serve.engine import ServedModels, load
from askd_ray.serve.metrics import ServiceMetrics
from askd_ray.serve.openai_api import RequestLimits, build_app
from askd_ray.serve.transcription_service import TranscriptionService
from askd_ray.text.tokens import Tokens

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="needs Chromium")]
WINDOW = DecodingWindow(0.3)
LOADED_MS = 120_000  # on a machine with much to do, WebAssembly is compiled slowly


@contextmanager
def served_models(*bundles: Path) -> Iterator[str]:
    """Serve bundles under the names of their folders; yield the service's address."""
    models = ServedModels()
    for bundle in bundles:
        models.put(load(bundle, bundle.name))
    with served(build_app(TranscriptionService(models, InProcessDecoder()), RequestLimits(), ServiceMetrics())) as url:
        yield url


@pytest.fixture(scope="module")
def bundles(weights: Path, tiny_en: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper tiny.en as two bundles: ``full`` has the onnx format, ``bare`` has not."""
    folder = tmp_path_factory.mktemp("on-device")
    for name in ("full", "bare"):
        (folder / name).mkdir()
        bundle_of(folder / name, weights)
    save_whisper(*tiny_en, folder / "transformers")
    write_whisper_onnx(folder / "transformers", folder / "full" / "onnx")
    shutil.rmtree(folder / "transformers")
    return folder


@pytest.fixture(scope="module")
def url(bundles: Path, runtime: Path) -> Iterator[str]:
    with served_models(bundles / "full", bundles / "bare") as url:
        yield url


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Waveform]:
    return [clip for clip, _ in spoken(speech, 8)]


@pytest.fixture(scope="module")
def engine(bundles: Path) -> OnnxWhisper:
    return OnnxWhisper(bundles / "full" / "onnx", "int8", threads=1, window=WINDOW)


@pytest.fixture
def page(tmp_path: Path, clips: list[Waveform]) -> Iterator[Page]:
    """A page whose microphone plays two prompts with pauses, in a loop."""
    (tmp_path / "speech.wav").write_bytes(wav(recording_of(clips[:2])))
    with page_with_microphone(tmp_path / "speech.wav") as page:
        yield page


def open_on_device(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(2)
    page.check("#on-device")
    expect(page.locator("#status")).to_contain_text("Ready on this device", timeout=LOADED_MS)


def transcribe(page: Page, file: Path) -> list[str]:
    """Return the texts of the transcript's segments."""
    page.set_input_files("#file", file)
    expect(page.locator("#status")).to_have_text("Done.", timeout=LOADED_MS)
    return page.locator("#segments li span").all_inner_texts()


def test_file_and_captions_without_a_network(
    page: Page, url: str, tmp_path: Path, clips: list[Waveform], engine: OnnxWhisper
):
    """The words are those of the same files in Python; the only requests go to the service, and end with the load."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    open_on_device(page, url)
    assert page.evaluate("crossOriginIsolated") is True
    page.context.set_offline(True)
    n_requests = len(requests)
    for number, clip in enumerate(clips[:3]):
        (tmp_path / f"{number}.wav").write_bytes(wav(clip))
        assert transcribe(page, tmp_path / f"{number}.wav") == [engine.transcribe(clip)]
    expect(page.locator("#facts")).to_contain_text("Latency on this device")

    page.click("#record")
    expect(page.locator("#captions p.partial").first).not_to_be_empty(timeout=60_000)
    expect(page.locator("#captions p:not(.partial)").first).not_to_be_empty(timeout=60_000)
    page.click("#record")
    expect(page.locator("#status")).to_have_text("Done.", timeout=60_000)
    words = page.locator("#captions").inner_text().lower()
    assert "agent" in words and len(page.locator("#segments").inner_text().split()) > 5
    sent = [request for request in requests[n_requests:] if not request.startswith("blob:")]
    assert sent == [] and all(request.startswith((url, "blob:", "data:")) for request in requests)
    assert sum("/v1/browser/" in request for request in requests) == 1

    page.context.set_offline(False)
    page.click("#compare")
    expect(page.locator("#facts")).to_contain_text("Latency of the server", timeout=30_000)


def test_long_file_is_cut_and_kept_whole(
    page: Page, url: str, tmp_path: Path, clips: list[Waveform], engine: OnnxWhisper
):
    """A file of two channels at 48 kHz. Digital silence has no text."""
    open_on_device(page, url)
    waveform = np.concatenate([recording_of(clips), np.zeros(samples_of(21.0), np.float32)])
    stereo = np.stack([np.repeat(waveform, 3)] * 2, axis=1)
    (tmp_path / "long.wav").write_bytes(wav(stereo, 48_000))
    texts = transcribe(page, tmp_path / "long.wav")
    expected = " ".join(engine.transcribe(clip) for clip in clips).lower().split()
    found = " ".join(texts).lower().split()
    assert len(texts) >= 2 and len(set(expected) - set(found)) <= 0.2 * len(set(expected))


def error_of_the_switch(page: Page) -> str:
    """Turn the switch on; return the error, after which the page works as before."""
    page.click("#on-device")
    expect(page.locator("#error")).to_be_visible(timeout=30_000)
    expect(page.locator("#on-device")).not_to_be_checked()
    expect(page.locator("#choose")).to_be_enabled()
    return page.locator("#error").inner_text()


def test_what_is_missing_is_named(page: Page, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    page.goto(url)
    expect(page.locator("#model option")).to_have_count(2)
    assert "no runtime for browsers; `askd fetch browser` fetches it" in error_of_the_switch(page)
    monkeypatch.undo()  # the cache is the usual one again
    page.select_option("#model", "bare")
    assert "its bundle has no ONNX files; `askd export --formats onnx` adds them" in error_of_the_switch(page)


def test_switch_survives_a_page_without_https(page: Page, url: str, tmp_path: Path, clips: list[Waveform]):
    """Files work in one thread; the microphone needs HTTPS."""
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false });")
    open_on_device(page, url)
    page.click("#record")
    expect(page.locator("#error")).to_contain_text("only to pages with HTTPS, and to localhost")
    (tmp_path / "a.wav").write_bytes(wav(clips[2]))
    assert len(transcribe(page, tmp_path / "a.wav")) == 1


@pytest.mark.full
def test_multilingual_student_takes_the_chosen_language(page: Page, tiny_model: Path, runtime: Path, tmp_path: Path):
    """Of random weights."""
    write_random_student(
        tmp_path / "student", tiny_model, Tokens(fetch_weights("base")), vocab_size=51865, eos_token_id=50257
    )
    bundle = tmp_path / "bundle"
    write_whisper_onnx(tmp_path / "student", bundle / "onnx")
    description = {"name": "student", "window": {"silence_s": 0.3}, "languages": ["ja", "de"]}
    write_json(bundle / "bundle.json", description)
    noise = np.random.default_rng(3).normal(0, 0.1, samples_of(0.5)).astype(np.float32)
    (tmp_path / "noise.wav").write_bytes(wav(noise))
    engine = OnnxWhisper(bundle / "onnx", "int8", threads=1, window=WINDOW)
    with served(build_test_app(BundleEngine(bundle))) as url:
        page.goto(url)
        page.check("#on-device")
        expect(page.locator("#status")).to_contain_text("Ready on this device", timeout=LOADED_MS)
        assert page.locator("#language option").all_inner_texts() == ["German", "Japanese"]
        found: list[str] = []
        for language in ("de", "ja"):
            page.select_option("#language", language)
            found += transcribe(page, tmp_path / "noise.wav")
        expect(page.locator("#facts")).to_contain_text("japanese")
    expected = [engine.transcribe(decode(wav(noise)), language) for language in ("de", "ja")]
    assert [text[:30] for text in found] == [text[:30] for text in expected]  # later, two tokens may be close


def in_page(page: Page, url: str, script: str, argument: Any = None) -> Any:
    """Return what a script gives for an argument. ``load`` imports a module; ``floats`` reads :func:`floats`."""
    page.goto(url)
    tools = """
        const load = (name) => import(`/page/${name}`);
        const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    """
    return page.evaluate(f"async (given) => {{ {tools} {script} }}", argument)


def floats(values: NDArray[np.float32]) -> str:
    """Return numbers for :func:`in_page`; a list of them takes many seconds."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def test_log_mel_is_that_of_the_training(page: Page, url: str, clips: list[Waveform]):
    script = """
        const { createLogMel } = await load("logmel.js");
        const logMel = createLogMel(floats(given.filters), given.nMels);
        return given.clips.map(([clip, nFrames]) => Array.from(logMel(floats(clip), nFrames)));
    """
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    pairs = [(clips[0], 580), (clips[1][: samples_of(1.0)], 98), (noise[:777], 20), (noise[:1], 100)]
    for n_mels in (80, 128):
        filters = floats(mel_filters(n_mels).numpy())
        given = {"filters": filters, "nMels": n_mels, "clips": [(floats(clip), n) for clip, n in pairs]}
        for found, (clip, n_frames) in zip(in_page(page, url, script, given), pairs, strict=True):
            expected = log_mel_windows([clip], [160 * n_frames], n_mels)[0].numpy()
            np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=2e-4)


def test_windows_are_those_of_the_engine(page: Page, url: str):
    lengths = [0, 1, 159, 160, 161, 20_800, 20_801, 24_000, 25_600, 32_000, 474_999, 475_200, 479_999, 480_000]
    script = """
        const { windowSamples } = await load("whisper.js");
        return given.map(([n, silence_s, min_s, nMels]) => windowSamples(n, { silence_s, min_s }, nMels));
    """
    given = [(n, silence_s, min_s, 80) for n in lengths for silence_s, min_s in ((0.3, 0.0), (0.52, 1.6), (2.0, 30.0))]
    expected = [DecodingWindow(silence_s, min_s).samples(n, n_mels) for n, silence_s, min_s, n_mels in given]
    assert in_page(page, url, script, given) == expected


def test_tokens_are_read_as_in_python(page: Page, url: str, weights: Path):
    tokens = Tokens(weights)
    texts = [tokens.bytes_of(token) for token in range(tokens.end)]
    ids = [tokens.encode(text) for text in ("Press 1 now.", "Grüße — 你好, мир 🎉", "a\ufeffb", "")] + [
        [0, 255, 7, 4000]
    ]
    script = """
        const { createTokenReader } = await load("model_file.js");
        const read = createTokenReader(Uint8Array.from(given.bytes), Uint32Array.from(given.ends));
        return given.ids.map(read);
    """
    given = {"bytes": list(b"".join(texts)), "ends": np.cumsum([*map(len, texts)]).tolist(), "ids": ids}
    assert in_page(page, url, script, given) == [tokens.decode(of_text) for of_text in ids]


def test_chunks_have_every_sample_and_end_at_quiet_points(page: Page, url: str):
    """61 s of noise with three quiet gaps."""
    noise = np.random.default_rng(0).normal(0, 0.1, samples_of(61.0)).astype(np.float32)
    for gap_s in (17.0, 33.0, 50.0):
        noise[samples_of(gap_s) : samples_of(gap_s + 0.2)] *= 0.01
    script = 'const { splitIntoChunks } = await load("chunks.js"); return splitIntoChunks(floats(given));'
    chunks = in_page(page, url, script, floats(noise))
    assert [start for start, _ in chunks[1:]] == [end for _, end in chunks[:-1]]
    assert (chunks[0][0], chunks[-1][1]) == (0, len(noise))
    cuts = [end / 16_000 for _, end in chunks[:-1]]
    assert np.allclose(cuts, [17.1, 33.1, 50.1], atol=0.06)
    assert in_page(page, url, script, floats(noise[: samples_of(20.0)])) == [[0, samples_of(20.0)]]


def test_turns_have_the_speech_and_no_pause(page: Page, url: str):
    """Two loud parts in a noisy room, and one of 30 s, which becomes two turns."""
    level = np.full(samples_of(50.0), 0.003, np.float32)
    for start_s, end_s in ((2.0, 4.0), (6.0, 7.0), (10.0, 40.0)):
        level[samples_of(start_s) : samples_of(end_s)] = 0.1
    noise = (np.random.default_rng(0).normal(0, 1, len(level)) * level).astype(np.float32)
    script = """
        const { TurnDetector } = await load("turns.js");
        const [turns, lengths] = [new TurnDetector(), []];
        const waveform = floats(given);
        for (let at = 0; at < waveform.length; at += 1600) {
            const ended = turns.push(waveform.slice(at, at + 1600));
            if (ended) lengths.push(ended.length / 16000);
        }
        return [lengths, turns.end()];
    """
    lengths, rest = in_page(page, url, script, floats(noise))
    assert rest is None
    # 0.3 s before the first loud block, and 0.6 s after the last.
    assert np.allclose(lengths[:2], [2.9, 1.9], atol=0.11)
    assert len(lengths) == 4 and np.isclose(sum(lengths[2:]), 30.9, atol=0.11) and max(lengths) <= 20.0
