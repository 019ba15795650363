import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluate.latency import Answers
from askd_ray.evaluate.scores import score, score_speed, table

CLIP = Utterance("a", b"", "a.wav", "", 1.0, "", "en", "d", "test", "cc0")
CLIPS = [
    replace(CLIP, text="The colour, please!", duration_s=2.0),
    replace(CLIP, text="press pound", duration_s=4.0),
    replace(CLIP, text="goodbye", duration_s=6.0),
]


def answers(*texts: str, took: float) -> Answers:
    return Answers(texts, took * np.asarray([1.0, 2.0, 10.0]))


ALL = {
    "student": answers("the color please", "press pound", "goodbye", took=0.01),
    "teacher": answers("the colour please", "press", "goodbye goodbye", took=0.05),
    "teacher_stock": answers("the color", "press pound", "goodbye", took=0.1),
}


def test_scores_of_hand_made_answers():
    scores = score(CLIPS, ALL, short_s=5.0)
    student, teacher = scores["systems"]["student"], scores["systems"]["teacher"]
    assert (scores["n_eval"], scores["audio_min"]) == (3, 0.2)
    assert student["wer"] == student["cer"] == 0.0
    # Case, punctuation and spelling are normalised away; a word is missing, a word is too many.
    assert (teacher["substitutions"], teacher["deletions"], teacher["insertions"], teacher["n_words"]) == (0, 1, 1, 6)
    assert teacher["wer"] == pytest.approx(2 / 6)
    assert student["rtfx"] == round(12.0 / 0.13, 2)
    assert (student["p50_ms"], student["p50_short_ms"]) == (20.0, 15.0)
    assert scores["difference"]["teacher"]["value"] == pytest.approx(-2 / 6)
    assert scores["difference"]["teacher_stock"]["value"] == pytest.approx(-1 / 6)
    json.dumps(scores, allow_nan=False)


def test_the_speed_up_is_that_of_the_medians():
    speed = score_speed(ALL, "teacher_stock")
    assert (speed["speedup_baseline"], speed["speedup_p50_short"], speed["speedup_clips"]) == ("teacher_stock", 10.0, 3)
    assert speed["speedup_p50_short_ci95"] == [10.0, 10.0]
    assert speed["p50_short_ms"] == {"student": 20.0, "teacher_stock": 200.0}
    json.dumps(speed, allow_nan=False)


def test_without_short_clips_there_is_no_speed_up():
    speed = score_speed({name: a.only([]) for name, a in ALL.items()}, "teacher")
    assert speed["speedup_p50_short"] is speed["speedup_p50_short_ci95"] is None
    scores = {**score(CLIPS, ALL, short_s=1.0), **speed}
    assert scores["systems"]["student"]["p50_short_ms"] is None
    console = Console(width=160, record=True)
    console.print(table(scores))
    assert "as fast as" not in console.export_text()


def test_the_table_says_it_all():
    console = Console(width=100, record=True)
    console.print(table({**score(CLIPS, ALL, short_s=5.0), **score_speed(ALL, "teacher_stock")}))
    text = console.export_text()
    for part in (
        "0.3333",
        "0 / 1 / 1",
        "teacher, stock",
        "10.0x as fast as teacher, stock",
        "-33.33 points",
        "-16.67 points",
    ):
        assert part in text


def test_references_without_words():
    with pytest.raises(AskdError, match="no reference"):
        score([replace(CLIP, text="(!)")], {n: Answers(("x",), np.asarray([0.1])) for n in ALL}, short_s=5.0)
