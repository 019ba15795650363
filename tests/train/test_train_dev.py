from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import CPU
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.config.train import Selection
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.dev import DevClips, DevGroup, group_sizes
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances, waveform_of
from askd_ray.models.engine import Engine
from askd_ray.models.generate import greedy
from askd_ray.models.load import load_whisper
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind
from askd_ray.runs import Run
from askd_ray.text.error_rate import ErrorCounts
from askd_ray.text.normalize import normalizer
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import dev_errors, dev_metrics, dev_score, in_precision


def whole(clips: Sequence[Utterance]) -> DevClips:
    """Return clips as all of dev."""
    return DevClips(clips, group_sizes([(DevGroup.of(u), u.duration_s) for u in clips]))


CALLS, TONES = DevGroup("", "calls"), DevGroup("", "tones")


def test_dev_uses_the_prompt_of_the_targets(labelled: Recipe):
    targets = {"kind": "pseudo", "prompt": "as before", "timestamps": True}
    recipe = Recipe.model_validate({**labelled.model_dump(mode="json"), "targets": targets})
    kind = WhisperStudentKind(recipe)
    student, tokens = kind.build(0), load_whisper(recipe.teacher.model)[1]
    asked: list[list[int]] = []

    def listen(_: torch.nn.Module, __: Any, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            asked.extend(kwargs["input_ids"].tolist())

    student.whisper.model.decoder.register_forward_pre_hook(listen, with_kwargs=True)
    utterances = read_utterances(Run(labelled).shards, "dev")
    errors = dev_errors(student, kind, whole(utterances), DecodingWindow.of(recipe.window), PlainContext(CPU))
    assert asked == [list(tokens.prompt("en", "as before", timestamps=True))] * len(utterances)
    assert errors[TONES].n_reference > 0


@pytest.mark.slow
def test_dev_decoding_equals_the_engine(weights: Path, tiny_en: Model, speech: Path):
    # A torch batch padded to the window of its longest clip would hide how the engine decodes short clips.
    model, tokens = tiny_en
    clips = utterances(speech, 12)
    window = DecodingWindow(silence_s=0.3, min_s=1.4)
    engine = Engine(weights, compute_type="float32", window=window)
    transcripts = engine.transcribe([waveform_of(u) for u in clips])
    expected = {u.id: list(t.token_ids) for u, t in zip(clips, transcripts, strict=True)}
    written: dict[str, list[int]] = {}
    for batch, log_mel in evaluation_windows(clips, window, 80, batch_size=4):
        written |= zip([u.id for u in batch], greedy(model, tokens, log_mel, tokens.prompt()), strict=True)
    assert written == expected
    assert len({engine.window_samples(waveform_of(u)) for u in clips}) > 3


def test_errors_are_counted_by_domain(labelled: Recipe):
    kind = WhisperStudentKind(labelled)
    student, window = kind.build(0), DecodingWindow.of(labelled.window)
    first, *others = read_utterances(Run(labelled).shards, "dev")
    mixed = [replace(first, domain="calls"), *others]
    context = PlainContext(CPU)
    errors = dev_errors(student, kind, whole(mixed), window, context)
    assert list(errors) == [CALLS, TONES]
    unmixed = dev_errors(student, kind, whole([first, *others]), window, context)
    assert sum(errors.values(), ErrorCounts()) == unmixed[TONES]
    assert errors[CALLS].n_reference == len(normalizer("en")(first.text).split())


def test_dev_is_decoded_in_float16_by_a_copy(labelled: Recipe, monkeypatch: pytest.MonkeyPatch):
    kind = WhisperStudentKind(labelled)
    student, clips = kind.build(0).train(), whole(read_utterances(Run(labelled).shards, "dev"))
    types: set[torch.dtype] = set()
    transcribe = kind.transcribe

    def listen(student: WhisperStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        types.update({log_mel.dtype, student.projection.dtype})
        assert not student.training
        return transcribe(student, log_mel, language)

    monkeypatch.setattr(kind, "transcribe", listen)
    monkeypatch.setattr("askd_ray.train.dev.inference_dtype", lambda _: torch.float16)  # as on a GPU
    errors = dev_errors(student, kind, clips, DecodingWindow.of(labelled.window), PlainContext(CPU))
    assert types == {torch.float16} and errors[TONES].n_reference > 0
    assert student.training and student.projection.dtype == torch.float32
    assert in_precision(student, torch.float32) is student


def test_dev_metrics_weigh_words_and_separate_domains():
    errors = {
        DevGroup("", "a"): ErrorCounts(1, 0, 0, 10),
        DevGroup("", "b"): ErrorCounts(0, 2, 1, 30),
        DevGroup("", "c"): ErrorCounts(0, 0, 5, 10),
    }
    assert dev_metrics(errors, 0.0, ()) == {"dev_wer": 9 / 50}
    assert dev_metrics(errors, 0.0, ("c",)) == {
        "dev_wer": 9 / 50,
        "dev_wer/in_domain": 4 / 40,
        "dev_wer/ood": 5 / 10,
        "dev_wer/domain/a": 1 / 10,
        "dev_wer/domain/b": 3 / 30,
        "dev_wer/domain/c": 5 / 10,
    }


def test_derived_clips_have_scores_of_their_kind(labelled: Recipe):
    kind = WhisperStudentKind(labelled)
    first, second, third = read_utterances(Run(labelled).shards, "dev")
    clips = [first, replace(second, derived="crop"), replace(third, derived="non_speech", text="", domain="non_speech")]
    errors = dev_errors(kind.build(0), kind, whole(clips), DecodingWindow.of(labelled.window), PlainContext(CPU))
    assert set(errors) == {TONES, DevGroup("crop", ""), DevGroup("non_speech", "")}
    assert errors[DevGroup("non_speech", "")].n_reference == 0
    assert whole(clips).silent_min == third.duration_s / 60
    metrics = dev_metrics(errors, whole(clips).silent_min, ())
    assert metrics["dev_wer"] == errors[TONES].rate
    assert metrics["dev_wer/short"] == errors[DevGroup("crop", "")].rate
    words = errors[DevGroup("non_speech", "")].insertions
    assert metrics["dev_words_per_min"] == words / (third.duration_s / 60)


def test_score_is_the_stated_sum():
    metrics = {"dev_wer": 0.1, "dev_wer/short": 0.4, "dev_wer/stitched": 0.2, "dev_words_per_min": 3.0}
    selection = Selection(short=0.5, stitched=0.25, words_per_min=0.01)
    assert dev_score(metrics, selection) == pytest.approx(0.1 + 0.2 + 0.05 + 0.03)
    assert dev_score({"dev_wer": 0.1, "dev_wer/ood": 0.9}, selection) == 0.1
    assert dev_score(metrics, Selection(short=0, stitched=0, words_per_min=0)) == 0.1
