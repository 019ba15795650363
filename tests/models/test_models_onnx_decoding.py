"""Several clips in one decoder: each text is that of the clip alone, to the last bit, and that of greedy decoding."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_student import write_random_student

from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.onnx_decoding import ClipText, GreedyDecoder
from askd_ray.models.onnx_folder import FusedModel, open_fused

PROMPT = (50257, 50362)
N_FRAMES = (20, 60, 62, 150, 334, 3000)
END = 50256


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> FusedModel:
    folder = tmp_path_factory.mktemp("onnx_decoding")
    write_random_student(folder / "student", tiny_model, decoder_layers=2)
    write_fused_onnx(str(folder / "student"), folder / "onnx", "int8")
    return open_fused(folder / "onnx", 1, "Whisper")


@pytest.fixture(scope="module")
def windows(model: FusedModel) -> list[list[np.ndarray]]:
    """Keys and values of noise in windows of different lengths."""
    noise = np.random.default_rng(0)
    log_mels = [noise.standard_normal((1, 80, n), np.float32) for n in N_FRAMES]
    return [list(map(np.asarray, model.encoder.run(model.cross, {"log_mel": x}))) for x in log_mels]


def texts(
    model: FusedModel, windows: Sequence[list[np.ndarray]], chosen: Sequence[tuple[int, int]], end: int = END
) -> list[tuple[list[int], float, bool]]:
    """Decode windows, given by their numbers and limits, together."""
    clips = [ClipText(windows[number], N_FRAMES[number] // 2, limit) for number, limit in chosen]
    GreedyDecoder(model, end).write(clips, PROMPT)
    return [(clip.token_ids, clip.log_prob, clip.ended) for clip in clips]


@given(chosen=st.lists(st.tuples(st.integers(0, len(N_FRAMES) - 1), st.integers(0, 9)), max_size=9), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_text_is_that_of_the_clip_alone(
    model: FusedModel, windows: list[list[np.ndarray]], chosen: list[tuple[int, int]], data: st.DataObject
):
    """Whatever the other clips are, and whenever their texts end."""
    written = [ids[-1] for ids, _, _ in texts(model, windows, chosen) if ids]
    end = data.draw(st.sampled_from([END, *written]))
    assert texts(model, windows, chosen, end) == [texts(model, windows, [clip], end)[0] for clip in chosen]


def test_a_text_has_its_limit_or_its_end(model: FusedModel, windows: list[list[np.ndarray]]):
    ((ids, log_prob, ended),) = texts(model, windows, [(3, 6)])
    assert len(ids) == 6 and not ended and log_prob < 0.0
    ((shorter, _, ended),) = texts(model, windows, [(3, 6)], end=ids[2])
    assert (shorter, ended) == (ids[: ids.index(ids[2])], True)
    assert texts(model, windows, [(0, 0)]) == [([], 0.0, False)]


def test_no_text_begins_with_a_forbidden_token(model: FusedModel, windows: list[list[np.ndarray]]):
    """The log-probability of its first token is that among the others."""

    def first_token(forbidden: list[int]) -> tuple[int, float]:
        changed = replace(model, config={**model.config, "begin_suppress_tokens": forbidden})
        (((token,), log_prob, _),) = texts(changed, windows, [(3, 1)])
        return token, log_prob

    best, log_prob = first_token([])
    second, log_prob_of_second = first_token([best])
    assert best != second
    # P(second) among all tokens, then P(best) among all but the second
    p_second = np.exp(log_prob_of_second) * (1 - np.exp(log_prob))
    assert first_token([second]) == (best, pytest.approx(log_prob - np.log1p(-p_second), abs=1e-5))
