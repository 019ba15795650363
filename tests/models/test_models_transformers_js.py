"""The ONNX folder in transformers.js: the programs of docs/formats.md, in Node.js and in Chromium, on real speech."""

import functools
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import chromium, open_browser
from extending import PAGE
from playwright.sync_api import expect
from serving import spoken, wav
from tiny_run import Model
from transformers_js import VERSION

from askd_ray.audio.decode import decode
from askd_ray.audio.units import DecodingWindow
from askd_ray.models.load import save_whisper
from askd_ray.models.onnx_export import Quantization
from askd_ray.models.whisper_onnx import write_whisper_onnx
from askd_ray.models.whisper_onnx_engine import OnnxWhisper

pytestmark = pytest.mark.slow
TEXT = PAGE.with_name("formats.md").read_text(encoding="utf-8")
CLIPS = 3
DURATION_MS = 120_000  # at most, on a machine with much to do
Texts = Callable[[Quantization, bool], list[str]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def program(language: str, dtype: str, trimmed: bool) -> str:
    """Return the page's program for Node.js (``js``) or a browser (``html``), as the page says how to change it."""
    (code,) = [block for block in blocks(language) if "await pipeline(" in block]
    if trimmed:
        (replacement,) = [block for block in blocks("js") if block.startswith('import { openStudent } from "./st')]
        code, n_replaced = re.subn(r"^.*await pipeline\(.*$", replacement, code, flags=re.M)
        assert n_replaced == 1
    assert code.count('dtype: "q8"') == 1
    return code.replace('dtype: "q8"', f'dtype: "{dtype}"')


@pytest.fixture(scope="module")
def folder(
    tiny_en: Model, speech: Path, transformers_js: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder where `npm install` ran: tiny.en as the student of runs/mine, clips as .f32 and .wav."""
    folder = tmp_path_factory.mktemp("transformers_js")
    save_whisper(*tiny_en, folder / "student")
    write_whisper_onnx(folder / "student", folder / "runs" / "mine" / "bundle" / "onnx")
    (folder / "node_modules").symlink_to(transformers_js)
    (student,) = [block for block in blocks("js") if block.startswith("// student.mjs")]
    (folder / "student.mjs").write_text(student, encoding="utf-8")
    for number, (clip, _) in enumerate(spoken(speech, CLIPS)):
        (folder / f"{number}.wav").write_bytes(wav(clip))
        decode(wav(clip)).tofile(folder / f"{number}.f32")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def texts(folder: Path) -> Texts:
    """Return the clips' texts of our own engine, by quantization and window."""

    @functools.cache
    def transcribe(quantization: Quantization, trimmed: bool) -> list[str]:
        window = DecodingWindow(0.3, 1.0) if trimmed else DecodingWindow(30.0)  # the pipeline pads the waveform
        engine = OnnxWhisper(folder / "runs" / "mine" / "bundle" / "onnx", quantization, threads=1, window=window)
        return [engine.transcribe(decode((folder / f"{number}.wav").read_bytes())) for number in range(CLIPS)]

    return transcribe


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folder that the page's lines make, and the address of its server."""
    (lines,) = [block for block in blocks("sh") if block.startswith("mkdir site")]
    copies, server = lines.split("python -m http.server")
    assert server.startswith(" --directory site ")
    subprocess.run(["bash", "-ec", copies], cwd=folder, check=True)
    shutil.copy(folder / "student.mjs", folder / "site")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder / "site", f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_page_names_the_tested_version():
    assert f"@huggingface/transformers@{VERSION}\n" in TEXT and f"version {VERSION}" in TEXT


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize(
    ("dtype", "quantization", "trimmed"), [("q8", "int8", False), ("q8", "int8", True), ("fp32", "float32", True)]
)
def test_words_in_node(folder: Path, texts: Texts, dtype: str, quantization: Quantization, trimmed: bool):
    (folder / "transcribe.mjs").write_text(program("js", dtype, trimmed), encoding="utf-8")
    command = ["node", "transcribe.mjs", *(f"{number}.f32" for number in range(CLIPS))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == texts(quantization, trimmed)
    assert all(len(text.split()) >= 8 for text in texts(quantization, trimmed))


@pytest.mark.skipif(chromium() is None, reason="needs Chromium")
@pytest.mark.parametrize("trimmed", [False, pytest.param(True, marks=pytest.mark.full)])
def test_words_in_chromium(folder: Path, site: tuple[Path, str], texts: Texts, trimmed: bool):
    """The page asks no other server, which Chromium could not find either."""
    (site[0] / "index.html").write_text(program("html", "q8", trimmed), encoding="utf-8")
    requests, problems = list[str](), list[str]()

    def note(problem: object) -> None:
        print(problem)  # pytest shows it when the page does not come so far
        problems.append(str(problem))

    with open_browser("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") as browser:
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("requestfailed", lambda request: note(f"{request.failure}: {request.url}"))
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.on("pageerror", note)
        page.goto(site[1])
        expect(page.locator("p")).to_have_text("Choose a file", timeout=DURATION_MS)
        for number, text in enumerate(texts("int8", trimmed)):
            page.set_input_files("input", folder / f"{number}.wav")
            expect(page.locator("p")).to_have_text(text, timeout=DURATION_MS)
    assert problems == [] and all(request.startswith((site[1], "blob:", "data:")) for request in requests)
    paths = {request.removeprefix(site[1]) for request in requests}
    assert {"onnx/onnx/encoder_model_quantized.onnx", "ort-wasm-simd-threaded.asyncify.wasm"} <= paths
