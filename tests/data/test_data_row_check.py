import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_files import noise_file

from askd_ray.data.row_check import Rejected, RowLimits, check_row, clean_row
from askd_ray.data.schema import Utterance
from askd_ray.data.sources import SourceRow

Sound = Callable[..., bytes]
LIMITS = RowLimits(0.1, 30.0, (0.2, 30.0))


def row(**changes: Any) -> SourceRow:
    values = {"id": "0", "audio": b"", "path": "0.wav", "text": "words", "speaker": "", "language": "en"}
    return SourceRow(**{**values, "domain": "d", "licence": "", "split": "", "where": "here:1", **changes})


@pytest.mark.parametrize("spelling", ["en", "EN", "English", "english", " ENGLISH ", "en-US", "en_GB", "eng"])
def test_language_spellings_are_normalised(spelling: str):
    cleaned = clean_row(row(language=spelling))
    assert isinstance(cleaned, SourceRow) and cleaned.language == "en"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"language": "klingon"}, "unknown language"),
        ({"problem": "unknown split: 'ood' is none of them"}, "unknown split"),
        ({"text": "..."}, "text without words"),
        ({"text": "say <unk>"}, "markup in the text"),
        ({"text": "caf\ufffd"}, "damaged text"),
        ({"id": "a\nb"}, "unusable id"),
    ],
)
def test_rows_quarantined_without_decoding(changes: dict[str, str], reason: str):
    rejected = clean_row(row(**changes))
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.source) == (reason, "here:1")
    assert rejected.detail and "\n" not in rejected.detail


def test_invisible_characters_are_removed():
    cleaned = clean_row(row(text="\ufeffcafe\u0301\x00 noir", speaker=" Al\u200bice ", domain="calls\t1"))
    assert isinstance(cleaned, SourceRow)
    assert (cleaned.text, cleaned.speaker, cleaned.domain) == ("caf\u00e9 noir", "Alice", "calls 1")


@pytest.mark.parametrize(
    ("seconds", "text", "reason"),
    [
        (1.0, "x" * 30, None),
        (1.0, "x" * 31, "too much text for the audio"),
        (10.0, "yes", None),
        (10.0, "y", "too little text for the audio"),
        (10.0, "", None),  # there is no text whose pace could be wrong
        (0.1, "ja", None),
        (0.099, "ja", "shorter than 0.1 s"),
        (1 / 16_000, "ja", "shorter than 0.1 s"),
        (30.1, "words that are said in half a minute", "longer than 30 s"),
    ],
)
def test_audio_duration_must_fit_the_text(seconds: float, text: str, reason: str | None):
    checked = check_row(row(audio=noise_file(seconds), text=text), LIMITS, "train")
    assert (checked.reason if isinstance(checked, Rejected) else None) == reason


def test_truncated_recording_is_quarantined():
    """An Ogg file that ends early decodes without an error: what gives it away is the pace of its text."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4 * 16_000).astype(np.float32)
    soundfile.write(file, noise, 16_000, format="OGG", subtype="OPUS")
    text = "a sentence of four seconds, read as fast as people read aloud on good days"
    whole = check_row(row(audio=file.getvalue(), text=text), LIMITS, "train")
    assert isinstance(whole, Utterance)
    cut = check_row(row(audio=file.getvalue()[: len(file.getvalue()) // 2], text=text), LIMITS, "train")
    assert isinstance(cut, Rejected)
