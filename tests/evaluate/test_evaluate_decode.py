from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import utterances

from askd_ray.audio.decode import Waveform
from askd_ray.evaluate import decode
from askd_ray.evaluate.decode import collected, decode_part, parts
from askd_ray.evaluate.hypotheses import CLEAN, read_hypotheses
from askd_ray.evaluate.sets import EvalSet
from askd_ray.evaluate.systems import Heard


class Counting:
    """Says the language and the length of each clip, and notes how many it got at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def hear(self, waveforms: Sequence[Waveform], language: str) -> list[Heard]:
        self.calls.append(len(waveforms))
        return [Heard(f"{language} {len(w)}", ("a", "b"), (0.5, 0.25), True) for w in waveforms]


@pytest.fixture
def clips(speech: Path) -> EvalSet:
    rows = utterances(speech, 5)
    return EvalSet("calls", False, tuple(replace(u, language="de" if i == 1 else "en") for i, u in enumerate(rows)))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "PART_CLIPS", 3)
    monkeypatch.setattr(decode, "weights_hash", lambda reference: f"weights of {reference}")


def test_every_utterance_is_in_one_part_of_each_model(clips: EvalSet):
    made = parts({"student": "s", "teacher": "t"}, [clips], [])
    assert [(p.model, p.first, p.last) for p in made] == [
        ("student", 0, 3),
        ("student", 3, 5),
        ("teacher", 0, 3),
        ("teacher", 3, 5),
    ]
    assert len({p.key for p in made}) == 4


def test_keys_follow_what_is_heard_and_not_what_it_is_called(clips: EvalSet):
    (first, _) = parts({"student": "s"}, [clips], [])
    assert parts({"other": "s"}, [replace(clips, name="renamed")], [])[0].key == first.key
    assert parts({"student": "t"}, [clips], [])[0].key != first.key
    changed = replace(clips.utterances[4], text="other")
    assert (
        parts({"student": "s"}, [replace(clips, utterances=(*clips.utterances[:4], changed))], [])[0].key != first.key
    )


def test_rows_come_back_in_order_under_the_names_of_now(clips: EvalSet, tmp_path: Path):
    made, recogniser = parts({"student": "s"}, [clips], []), Counting()
    for part in made:
        decode_part(part, recogniser, clips, tmp_path)
    assert recogniser.calls == [1, 2, 2]  # a language at a time
    assert [r.id for r in read_hypotheses(made[0].file(tmp_path))] == [u.id for u in clips.utterances[:3]]
    renamed = replace(clips, name="lines", in_domain=True)
    rows = list(collected(parts({"mine": "s"}, [renamed], []), [renamed], tmp_path))
    assert [r.id for r in rows] == [u.id for u in clips.utterances]
    assert {(r.model, r.set, r.in_domain, r.condition) for r in rows} == {("mine", "lines", True, CLEAN)}
    assert [r.hypothesis.split()[0] for r in rows] == ["en", "de", "en", "en", "en"]
    assert rows[0].token_texts == ("a", "b") and rows[0].token_probs == (0.5, 0.25) and rows[0].ended is True
    assert rows[0].reference == clips.utterances[0].text
