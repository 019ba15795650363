from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from small_run import utterances

from askd_ray.audio.decode import Waveform
from askd_ray.config.evaluate import Evaluate
from askd_ray.evaluation import decode
from askd_ray.evaluation.decode import Material, collect_hypotheses, decode_jobs, run_decode_job
from askd_ray.evaluation.hypotheses import CLEAN, NON_SPEECH, RAW, SERVED, Hypothesis, read_hypotheses
from askd_ray.evaluation.sets import EvalSet
from askd_ray.evaluation.systems import SystemTranscript, SystemTranscripts


class Counting:
    """Returns the language and the length of each clip as its text, and counts the clips of each call.

    Clips in English also have a raw transcript.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []

    def transcribe(self, waveforms: Sequence[Waveform], language: str) -> list[SystemTranscripts]:
        self.calls.append(len(waveforms))
        raw = SystemTranscript("raw", ended=False) if language == "en" else None
        return [
            SystemTranscripts(SystemTranscript(f"{language} {len(w)}", ("a", "b"), (0.5, 0.25), True), raw)
            for w in waveforms
        ]


@pytest.fixture
def clips(speech: Path) -> EvalSet:
    rows = utterances(speech, 5)
    return EvalSet("calls", False, tuple(replace(u, language="de" if i == 1 else "en") for i, u in enumerate(rows)))


def served(rows: Iterable[Hypothesis]) -> list[Hypothesis]:
    return [row for row in rows if row.path == SERVED]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "JOB_CLIPS", 3)
    monkeypatch.setattr(decode, "weights_hash", lambda reference, device: f"weights of {reference}, {device}")


def test_every_utterance_is_in_one_part_of_each_model(clips: EvalSet):
    jobs = decode_jobs({"student": "s", "teacher": "t"}, [clips], Evaluate())
    assert [(p.model, p.numbers) for p in jobs] == [
        ("student", (0, 1, 2)),
        ("student", (3, 4)),
        ("teacher", (0, 1, 2)),
        ("teacher", (3, 4)),
    ]
    assert len({p.key for p in jobs}) == 4


def test_keys_depend_on_content_and_not_on_names(clips: EvalSet):
    (first, _) = decode_jobs({"student": "s"}, [clips], Evaluate())
    assert decode_jobs({"other": "s"}, [replace(clips, name="renamed")], Evaluate())[0].key == first.key
    assert decode_jobs({"student": "t"}, [clips], Evaluate())[0].key != first.key
    changed = replace(clips.utterances[4], text="other")
    assert (
        decode_jobs({"student": "s"}, [replace(clips, utterances=(*clips.utterances[:4], changed))], Evaluate())[0].key
        != first.key
    )


def test_rows_come_back_in_order_under_the_names_of_now(clips: EvalSet, tmp_path: Path):
    jobs, system = decode_jobs({"student": "s"}, [clips], Evaluate()), Counting()
    for job in jobs:
        run_decode_job(job, system, Material.of([clips], Evaluate()), tmp_path)
    assert system.calls == [1, 2, 2]  # a language at a time
    assert [r.id for r in served(read_hypotheses(jobs[0].file(tmp_path)))] == [u.id for u in clips.utterances[:3]]
    renamed = replace(clips, name="lines", in_domain=True)
    rows = list(
        collect_hypotheses(
            decode_jobs({"mine": "s"}, [renamed], Evaluate()), Material.of([renamed], Evaluate()), tmp_path
        )
    )
    raw = [row for row in rows if row.path == RAW]
    assert [r.id for r in raw] == [u.id for u in clips.utterances if u.language == "en"]
    assert {(r.hypothesis, r.ended, r.token_texts) for r in raw} == {("raw", False, None)}
    rows = served(rows)
    assert [r.id for r in rows] == [u.id for u in clips.utterances]
    assert {(r.model, r.set, r.in_domain, r.condition) for r in rows} == {("mine", "lines", True, CLEAN)}
    assert [r.hypothesis.split()[0] for r in rows] == ["en", "de", "en", "en", "en"]
    assert rows[0].token_texts == ("a", "b") and rows[0].token_probs == (0.5, 0.25) and rows[0].ended is True
    assert rows[0].reference == clips.utterances[0].text


def test_conditions_take_the_same_sample_for_every_model(clips: EvalSet, tmp_path: Path):
    settings = Evaluate(conditions=("white@10", "speed@0.9"), condition_clips=2)
    jobs = decode_jobs({"student": "s", "teacher": "t"}, [clips], settings)
    clips_by_job = {(p.model, p.condition): p.numbers for p in jobs if p.condition != CLEAN}
    assert (
        len(clips_by_job) == 4 and len({*clips_by_job.values()}) == 1 and len(clips_by_job["student", "white@10"]) == 2
    )
    (slower,) = (p for p in jobs if (p.model, p.condition) == ("student", "speed@0.9"))
    run_decode_job(slower, Counting(), Material.of([clips], settings), tmp_path)
    for row, number in zip(served(read_hypotheses(slower.file(tmp_path))), slower.numbers, strict=True):
        n_samples = int(row.hypothesis.split()[1])
        assert n_samples == pytest.approx(16_000 * clips.utterances[number].duration_s / 0.9, abs=2)
        assert row.condition == "speed@0.9"
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    with_files = settings.model_copy(update={"conditions": ("noise@10",), "noise_files": str(tmp_path / "a*.wav")})
    other_files = with_files.model_copy(update={"noise_files": str(tmp_path / "b*.wav")})
    jobs = [decode_jobs({"student": "s"}, [clips], s) for s in (with_files, other_files)]
    one, other = ({p.key for p in some if p.condition != CLEAN} for some in jobs)
    assert one and not one & other


def test_where_nobody_speaks_the_kind_of_sound_is_the_condition(clips: EvalSet, tmp_path: Path):
    sounds = replace(clips, name=NON_SPEECH, utterances=tuple(replace(u, domain="music") for u in clips.utterances))
    jobs = decode_jobs({"student": "s"}, [sounds], Evaluate(conditions=("white@10",)))
    assert {p.condition for p in jobs} == {CLEAN}
    run_decode_job(jobs[0], Counting(), Material.of([sounds], Evaluate()), tmp_path)
    assert {r.condition for r in read_hypotheses(jobs[0].file(tmp_path))} == {"music"}
