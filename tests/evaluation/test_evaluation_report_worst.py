from pathlib import Path

import pytest
from reported import finish, write_run

from askd_ray.evaluation.hypotheses import Hypothesis
from askd_ray.evaluation.report.document import Audio, ClipBlock, ClipsBlock
from askd_ray.evaluation.report.runs import read_evaluations
from askd_ray.evaluation.report.worst import N_ABOVE, N_RATE, worst_sections
from askd_ray.evaluation.sets import read_sets
from askd_ray.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path, "small", n=20, normalizer="none")


def finish_with(run: Run, student: dict[str, str], teacher: dict[str, str] | None = None) -> Run:
    """A run whose models give other texts for some clips, and the reference for all others."""
    rows = [
        Hypothesis(model, s.name, s.in_domain, "clean", u.id, "", "en", u.duration_s, u.text, texts.get(u.id, u.text))
        for s in read_sets(run)[0]
        for u in s.utterances
        for model, texts in (("student", student), ("teacher", teacher or {}))
    ]
    return finish(run, rows)


def clips_of(run: Run) -> list[tuple[ClipBlock, ...]]:
    return [
        block.clips
        for section in worst_sections(read_evaluations([run]))
        for block in section.blocks
        if isinstance(block, ClipsBlock)
    ]


def test_most_errors_above_the_teacher_come_first(run: Run):
    text = {u.id: u.text for u in read_sets(run)[0][0].utterances}
    student = {"clip-3": "", "clip-4": f"{text['clip-4']} uniform", "clip-5": "wrong"}
    above, rates = clips_of(finish_with(run, student, teacher={"clip-5": "wrong"}))
    assert [clip.title.split()[1] for clip in above] == ["clip-3", "clip-4"]
    assert [clip.title.split()[1] for clip in rates] == ["clip-5"]  # the teacher is as wrong as the student
    by_model = {transcript.model: transcript for transcript in above[0].transcripts}
    assert by_model["teacher"].errors == 0 and by_model["student"].errors == len(text["clip-3"].split())
    assert all(word.hypothesis == "" for word in by_model["student"].aligned)
    (inserted,) = [word for word in above[1].transcripts[1].aligned if not word.is_right]
    assert (inserted.reference, inserted.hypothesis) == ("", "uniform")


def test_no_more_than_can_be_listened_to(run: Run):
    above, rates = clips_of(finish_with(run, {u.id: "" for s in read_sets(run)[0] for u in s.utterances}))
    assert (len(above), len(rates)) == (N_ABOVE, N_RATE)
    assert clips_of(finish_with(run, {})) == []


def test_a_runaway_is_cut(run: Run):
    ((clip,),) = clips_of(finish_with(run, {"clip-0": "thank you " * 500}))
    student = clip.transcripts[1]
    assert len(student.aligned) + student.n_more == max(1000, student.words) and len(student.aligned) < 200


def test_there_is_sound_or_a_reason(run: Run, tmp_path: Path):
    finish_with(run, {"clip-0": "", str(tmp_path / "far" / "1.flac"): ""})
    ((first, second),) = clips_of(run)
    assert isinstance(first.audio, Audio) and isinstance(second.audio, Audio)
    (tmp_path / "far" / "manifest.tsv").unlink()
    sounds = {clip.title.split(":")[0]: clip.audio for clip in clips_of(run)[0]}
    assert isinstance(sounds["test"], Audio) and "no longer available" in str(sounds["far"])
    assert str(tmp_path / "far") in str(sounds["far"])
