from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import spoken
from silero_vad import get_speech_timestamps, load_silero_vad

from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import FRAME_SAMPLES, Span, Vad, VadOptions, VadStream


@pytest.fixture(scope="module")
def recording(speech: Path) -> np.ndarray:
    """Two prompts with a pause between them."""
    pause = np.random.default_rng(0).normal(0.0, 1e-4, samples_of(2.0)).astype(np.float32)
    (first, _), (second, _) = spoken(speech, 2)
    return np.concatenate([pause, first, pause, second, pause])


def test_speech_is_detected_without_pauses(vad: Vad, recording: np.ndarray):
    spans = vad.speech(recording, VadOptions(silence_s=1.0))
    assert len(spans) == 2
    in_speech = sum(span.n_samples for span in spans)
    assert 0.5 < in_speech / (len(recording) - samples_of(6.0)) <= 1.1
    assert vad.speech(np.zeros(samples_of(5.0), np.float32)) == []
    assert vad.speech(np.zeros(0, np.float32)) == []


def test_probabilities_equal_silero(vad: Vad, recording: np.ndarray):
    """The same spans as silero's own function with its model for one frame at a time."""
    import torch

    expected = get_speech_timestamps(
        torch.from_numpy(recording),
        load_silero_vad(onnx=True),
        threshold=0.5,
        min_speech_duration_ms=100,
        min_silence_duration_ms=300,
        speech_pad_ms=200,
    )
    ours = vad.speech(recording, VadOptions(threshold=0.5, silence_s=0.3, padding_s=0.2))
    assert ours == [Span(int(s["start"]), int(s["end"])) for s in expected]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 9000), min_size=1, max_size=60))
def test_stream_equals_whole_recording_for_any_piece_size(vad: Vad, recording: np.ndarray, cuts: list[int]):
    waveform = recording[: samples_of(6.0) + 100]
    stream, found, start = VadStream(vad), [], 0
    for cut in cuts:
        found.append(stream.push(waveform[start : start + cut]))
        start += cut
    found.append(stream.push(waveform[start:], last=True))
    whole = vad.probs(waveform)
    assert len(whole) == -(-len(waveform) // FRAME_SAMPLES)
    assert np.allclose(np.concatenate(found), whole, atol=1e-5)
