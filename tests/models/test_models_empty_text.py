"""A student that has learnt to be silent may end its text at once, in every engine."""

from pathlib import Path

import numpy as np
import torch
from tiny_run import Model

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.files import read_json
from askd_ray.models.engine import Engine
from askd_ray.models.generate import greedy
from askd_ray.models.load import convert_to_ctranslate2, load_whisper
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind

SILENCE = np.zeros(16_000, np.float32)


def with_end_first(student: WhisperStudent, end: int) -> WhisperStudent:
    """Make the end token the most likely one everywhere: only its embedding is that of all states."""
    decoder = student.whisper.model.decoder
    with torch.no_grad():
        decoder.layer_norm.weight.zero_()
        decoder.layer_norm.bias.fill_(1.0)
        decoder.embed_tokens.weight[end] = 1.0
    return student


def test_student_may_end_at_once(labelled: Recipe, tmp_path: Path):
    kind = WhisperStudentKind(labelled)
    student = kind.build(0)
    _, tokens = load_whisper(labelled.teacher.model)
    with_end_first(student, tokens.end)
    window = log_mel_windows([SILENCE], [len(SILENCE)])
    assert greedy(student.whisper, tokens, window, tokens.prompt()) == [[]]
    kind.save(student, tmp_path / "student")
    convert_to_ctranslate2(tmp_path / "student", tmp_path / "engine", "int8")
    assert tokens.end not in read_json(tmp_path / "engine" / "config.json")["suppress_ids_begin"]
    (transcript,) = Engine(tmp_path / "engine", window=DecodingWindow(0.3)).transcribe([SILENCE])
    assert (transcript.text, transcript.token_ids) == ("", ())
    assert kind.transcribe(kind.load(tmp_path / "student", 0), window, "en") == [""]


def test_other_models_keep_the_rule(labelled: Recipe, tiny_en: Model):
    model, tokens = tiny_en
    assert tokens.end in model.generation_config.begin_suppress_tokens
    data = labelled.data.model_copy(update={"derive": None})
    student = WhisperStudentKind(labelled.model_copy(update={"data": data})).build(0)
    assert tokens.end in student.whisper.generation_config.begin_suppress_tokens
