"""Real speech for benchmarks: clips from Parquet files in the Hugging Face convention, or the IVR prompts."""

import json
from pathlib import Path

import numpy as np

from askd_ray.audio.decode import AudioError, decode, duration_s
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table
from askd_ray.errors import AskdError
from askd_ray.fetch.speech import fetch_speech


def clips(data: Path | None, n_clips: int, split: str = "train") -> list[Utterance]:
    """Return clips spread evenly over all of ``data`` (every *-SPLIT*.parquet in it) or over the IVR prompts."""
    rows = _ivr() if data is None else _parquet(data, split)
    picked = np.linspace(0, len(rows) - 1, min(n_clips, len(rows))).round().astype(int)
    utterances = [_utterance(*rows[i]) for i in picked]
    return [u for u in utterances if u is not None]


def _ivr() -> list[tuple[str, bytes, str]]:
    folder = fetch_speech("ivr")
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = [json.loads(line) for line in lines]
    return [(row["audio"], (folder / row["audio"]).read_bytes(), row["text"]) for row in manifest]


def _parquet(folder: Path, split: str) -> list[tuple[str, bytes, str]]:
    files = sorted(folder.glob(f"*-{split}*.parquet"))
    if not files:
        raise AskdError(f"--data {folder}: no *-{split}*.parquet there")
    rows: list[tuple[str, bytes, str]] = []
    for file in files:
        table = read_table(file, ["id", "audio", "text"]).to_pylist()
        rows += [(row["id"], row["audio"]["bytes"], row["text"]) for row in table]
    return rows


def _utterance(name: str, audio: bytes, text: str) -> Utterance | None:
    """Decode once, for the duration; None for clips that `askd prepare` would set aside."""
    try:
        seconds = duration_s(decode(audio))
    except AudioError:
        return None
    if seconds > 30.0 or not text.strip():
        return None
    return Utterance(name, audio, name, text.capitalize(), seconds, "", "en", "benchmark", "train", "")
