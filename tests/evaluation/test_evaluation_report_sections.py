from pathlib import Path

import pytest
from reported import BETTER, EQUAL, WORSE, finish, model_rows, time_it, write_run

from askd_ray.evaluation.report.document import Answer, Answers
from askd_ray.evaluation.report.runs import read_evaluations
from askd_ray.evaluation.report.sections import verdict_section
from askd_ray.evaluation.significance import verdict
from askd_ray.files import read_json
from askd_ray.runs import Run


def answers_of(run: Run) -> tuple[Answer, ...]:
    (answers,) = [b for b in verdict_section(read_evaluations([run])).blocks if isinstance(b, Answers)]
    return answers.answers


@pytest.mark.parametrize(
    ("rates", "answer", "tone"),
    [(BETTER, "Yes", "good"), (WORSE, "No", "bad"), (EQUAL, "Cannot tell", "open")],
    ids=["better", "worse", "equal"],
)
def test_the_verdict_is_that_of_the_figures(tmp_path: Path, rates: dict[str, float], answer: str, tone: str):
    run = write_run(tmp_path, "small", n=60)
    finish(run, model_rows(run, rates))
    scores = read_json(run.path / "evaluate" / "scores.json")
    for shown, place in zip(answers_of(run), ("in_domain", "out_of_domain"), strict=True):
        macro = scores[place]["macro"]
        difference = macro["against_baseline"]["student"]
        assert (shown.answer, shown.tone) == (answer, tone)
        assert shown.question == f"Is the WER of student lower than that of teacher, {place.replace('_', ' ')}?"
        assert verdict(difference) == answer.lower()
        wers = [100 * macro["models"][model]["wer"] for model in ("student", "teacher")]
        assert shown.why.startswith(
            f"{wers[0]:.2f} % against {wers[1]:.2f} %, a difference of {100 * difference['value']:+.2f} points "
            f"(95 %: {100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}), better with probability"
        )


def test_few_utterances_are_said_to_be_few(tmp_path: Path):
    run = write_run(tmp_path, "small", n=58)
    near, far = answers_of(finish(run, model_rows(run, EQUAL)))
    assert "58 utterances" in near.why and "so few" not in near.why
    assert "29 utterances" in far.why and "so few utterances" in far.why


def test_several_sets_are_judged_by_their_mean_and_by_their_words(tmp_path: Path):
    far = str(tmp_path / "far")
    run = write_run(tmp_path, "small", sets=[{"name": name, "path": far} for name in ("far", "further")])
    _, outside = answers_of(finish(run, model_rows(run, BETTER)))
    assert "mean of 2 sets. Word-weighted: yes, " in outside.why


def test_how_much_faster_and_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = write_run(tmp_path, "small")
    timed = time_it(run, monkeypatch)
    *_, faster = answers_of(finish(run, model_rows(run, EQUAL), timed))
    every, short = (timed["speedup"]["student"][which] for which in ("all", "short"))
    assert faster.question == "How many times as fast as teacher is student?"
    assert faster.answer == f"{every['value']:.1f}x; {short['value']:.1f}x on short clips"
    assert f"(95 %: {every['low']:.2f} to {every['high']:.2f})" in faster.why
    assert timed["hardware"]["cpu"] in faster.why and timed["decoding"] in faster.why
    assert faster.tone == "good"
