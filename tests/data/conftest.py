import io
import json

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def sound():
    """Encode noise of a loudness and length: sound(seconds) is a wav file's bytes."""

    def _sound(seconds=0.5, peak=0.5, container="WAV", subtype="PCM_16", seed=0):
        noise = np.random.default_rng(seed).uniform(-peak, peak, int(seconds * 16_000)).astype(np.float32)
        buffer = io.BytesIO()
        soundfile.write(buffer, noise, 16_000, format=container, subtype=subtype)
        return buffer.getvalue()

    return _sound


@pytest.fixture
def manifest(tmp_path, sound):
    """Write a folder with a manifest.jsonl: a dict a row; ``bytes`` is its audio (default: half a second of noise)."""

    def _manifest(rows, name="clips"):
        folder = tmp_path / name
        folder.mkdir()
        lines = []
        for number, row in enumerate(rows):
            row = {"audio": f"{number}.wav", "text": f"text {number}", **row}
            audio = row.pop("bytes", sound(seed=number))
            if audio is not None:
                (folder / row["audio"]).write_bytes(audio)
            lines.append(json.dumps(row) + "\n")
        (folder / "manifest.jsonl").write_text("".join(lines))
        return folder

    return _manifest


@pytest.fixture(scope="session")
def stereo():
    """Encode two channels of noise, each of its own seed: stereo(seconds) is a wav file's bytes."""

    def _stereo(seconds=1.0, container="WAV"):
        noise = [np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * 16_000)) for seed in (0, 1)]
        buffer = io.BytesIO()
        soundfile.write(buffer, np.stack(noise, axis=1).astype(np.float32), 16_000, format=container)
        return buffer.getvalue()

    return _stereo
