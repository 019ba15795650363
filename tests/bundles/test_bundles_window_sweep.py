"""The window of a bundle: that of training, or a clearly shorter one if dev allows; never one with more runaways."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_run import utterances

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.bundles import window_sweep
from askd_ray.bundles.window_sweep import chosen_window, sweep_clips, sweep_windows, window_grid
from askd_ray.data.schema import Utterance
from askd_ray.models.engine import Engine
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.transcript import Transcript

WINDOWS = [DecodingWindow(0.2, 1.0), DecodingWindow(0.4, 1.0), DecodingWindow(1.0, 1.0)]


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Utterance]:
    return utterances(speech, 4)


class FakeEngine:
    """Writes a text that depends on the silence after the clip, and runs away without enough of it."""

    def __init__(self, texts: dict[float, str], needed_s: float = 0.0):
        self.window, self.calls = WINDOWS[0], list[int]()
        self.texts, self.needed_s = texts, needed_s

    def window_samples(self, waveform: Waveform) -> int:
        return self.window.samples(len(waveform), 80)

    def transcribe(self, waveforms: list[Waveform], language: str) -> list[Transcript]:
        self.calls.append(self.window_samples(waveforms[0]))
        ended = self.window.silence_s >= self.needed_s
        return [Transcript(self.texts[self.window.silence_s], (), 0.0, ended=ended) for _ in waveforms]


def one_text(clips: list[Utterance]) -> list[Utterance]:
    return [replace(clip, text="red green blue brown") for clip in clips]


def sweep_of(clips: list[Utterance], *texts: str, needed_s: float = 0.0) -> Any:
    engine = FakeEngine(dict(zip((0.2, 0.4, 1.0), texts, strict=True)), needed_s)
    return sweep_windows(engine, one_text(clips), WINDOWS)  # type: ignore[arg-type]


def test_shortest_of_equal_windows_is_chosen(clips: list[Utterance]):
    sweep = sweep_of(clips, *["red green blue brown"] * 3)
    assert chosen_window(sweep) == WINDOWS[0]
    assert [score["wer"] for score in sweep["scores"]] == [0.0] * 3
    assert sweep["clips"] == 4 and sweep["words"] == 16
    lengths = [score["window_s"] for score in sweep["scores"]]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize(("window_s", "chosen"), [((1.0, 0.95, 1.2), 0), ((1.0, 0.95, 0.89), 2), ((1.0, 1.2, 1.3), 0)])
def test_the_window_of_training_stays_unless_another_is_clearly_shorter(window_s: tuple[float, ...], chosen: int):
    same = [[window_sweep._Decoded(0.1, 1, True)]] * 3
    assert window_sweep._compared(WINDOWS, same, np.array(window_s), n_words=10)["chosen"] == chosen


def test_another_window_is_chosen_where_that_of_training_is_worse():
    errors = [[window_sweep._Decoded(0.1, n, True)] * 4 for n in (3, 1, 1)]
    assert window_sweep._compared(WINDOWS, errors, np.array([1.0, 1.3, 1.2]), n_words=40)["chosen"] == 2


def test_window_with_more_errors_is_not_chosen(clips: list[Utterance]):
    sweep = sweep_of(clips, "red green blue", "red green blue brown", "red green blue brown")
    assert chosen_window(sweep) == WINDOWS[1]
    first = sweep["scores"][0]
    assert (first["wer"], first["above_best"], first["standard_error"]) == (0.25, 0.25, 0.0)  # each clip has one error


def test_window_with_runaways_is_not_chosen(clips: list[Utterance]):
    sweep = sweep_of(clips, "red green blue brown", "red green", "red green blue", needed_s=0.4)
    assert [score["runaways"] for score in sweep["scores"]] == [4, 0, 0]
    assert chosen_window(sweep) == WINDOWS[2]


def test_standard_error_is_that_of_the_paired_difference():
    errors = np.array([[2, 0, 3, 1], [1, 0, 3, 1]])
    decoded = [[window_sweep._Decoded(0.1, int(n), True) for n in row] for row in errors]
    sweep = window_sweep._compared(WINDOWS[:2], decoded, np.array([1.0, 1.2]), n_words=40)
    worse, best = sweep["scores"]
    assert best["above_best"] == best["standard_error"] == 0.0
    assert worse["above_best"] == pytest.approx(1 / 40)
    assert worse["standard_error"] == pytest.approx(np.std([1, 0, 0, 0]) * 2 / 40)  # sqrt(4) clips
    assert sweep["chosen"] == 1  # one error more in four clips is above one standard error


def test_each_window_length_is_decoded_once(clips: list[Utterance]):
    engine = FakeEngine({0.2: "", 0.21: ""})
    windows = [DecodingWindow(0.2, 5.0), DecodingWindow(0.21, 5.0)]
    sweep_windows(engine, clips, windows)  # type: ignore[arg-type]
    assert engine.calls[1:] == [5 * SAMPLE_RATE_HZ] * 4  # after one call to warm up


def test_sweep_takes_the_shortest_clips_and_an_even_choice_of_others(clips: list[Utterance]):
    many = [replace(clips[0], id=f"{i:03d}", duration_s=1.0 + i / 10) for i in range(290, -1, -1)]
    chosen = [round(10 * (u.duration_s - 1.0)) for u in sweep_clips(many)]
    assert len(chosen) == 120 and chosen[:20] == list(range(20)) and chosen[-1] == 290
    assert set(np.diff(chosen[20:])) <= {2, 3}
    few = sweep_clips(many[:7])
    assert [u.duration_s for u in few] == sorted(u.duration_s for u in many[:7])


def test_grid_holds_the_window_of_the_recipe():
    windows = window_grid(DecodingWindow(0.3, 1.0))
    assert len(windows) == len(set(windows)) == 13 and windows[0] == DecodingWindow(0.3, 1.0)
    assert len(window_grid(windows[5])) == 12 and window_grid(windows[5])[0] == windows[5]


@pytest.mark.slow
def test_untrained_model_needs_a_long_window(weights: Path, clips: list[Utterance]):
    """Whisper itself runs away in short windows, and less so in longer ones."""
    engine = Engine(weights)
    windows = [DecodingWindow(0.2), DecodingWindow(0.4), DecodingWindow(28.0)]
    sweep = sweep_windows(engine, clips, windows)
    assert chosen_window(sweep) == windows[2]
    runaways = [score["runaways"] for score in sweep["scores"]]
    assert runaways[0] > 0 and runaways[2] == 0
    assert all(score["decoding_ms"] > 0.0 for score in sweep["scores"])


def test_tiny_student(tiny_model: Path, clips: list[Utterance]):
    """A real engine with random weights: it never ends, so the shortest window is as good as any."""
    sweep = sweep_windows(Engine(ctranslate2_folder(str(tiny_model))), clips, WINDOWS)
    assert [score["runaways"] for score in sweep["scores"]] == [len(clips)] * 3
    assert all(score["wer"] > 0.0 for score in sweep["scores"])
