import json
from pathlib import Path
from typing import Any

import pytest
from small_run import N_PER_SPLIT, small_run

from askd_ray.config.evaluate import SpeechSet
from askd_ray.errors import AskdError
from askd_ray.evaluation.ray_evaluate import compare
from askd_ray.evaluation.sets import print_left_out, read_sets
from askd_ray.runs import Run


@pytest.fixture
def speech_rows(speech: Path) -> list[dict[str, Any]]:
    lines = (speech / "manifest.jsonl").read_text().splitlines()[1:5]  # of each five the first is the run's own
    rows = [json.loads(line) for line in lines]
    return [{**row, "audio": str(speech / row["audio"])} for row in rows]


def manifest(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def with_sets(tmp_path: Path, speech: Path, *sets: SpeechSet, **settings: Any) -> Run:
    values = {"sets": [s.model_dump() for s in sets], **settings}
    return small_run(tmp_path, speech, evaluate=values)


def test_the_runs_own_split_and_sets_by_domain(tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]]):
    for row, domain in zip(speech_rows, "abab", strict=True):
        row["domain"] = domain
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", speech_rows), in_domain=True)
    one = SpeechSet(name="one", path=manifest(tmp_path / "one", speech_rows[:1]))
    sets, left_out = read_sets(with_sets(tmp_path, speech, calls, one))
    assert [(s.name, s.in_domain, len(s.utterances)) for s in sets] == [
        ("test", True, N_PER_SPLIT),
        ("calls/a", True, 2),
        ("calls/b", True, 2),
        ("one", False, 1),
    ]
    assert left_out == {}
    assert sets[3].utterances[0].text == speech_rows[0]["text"]
    assert len({s.fingerprint for s in sets}) == 4


def test_rows_that_cannot_be_scored_are_counted(tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]]):
    speech_rows[1]["text"] = ""
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    speech_rows[2]["audio"] = str(tmp_path / "broken.wav")
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", speech_rows))
    sets, left_out = read_sets(with_sets(tmp_path, speech, calls, split=None))
    assert [len(s.utterances) for s in sets] == [2]
    assert left_out == {"calls": {"empty text": 1, "unreadable audio": 1}}


def test_rows_that_cannot_be_read_are_left_out_for_what_is_wrong_with_them(
    tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]]
):
    speech_rows[1]["text"] = ["a", "b"]
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", speech_rows))
    sets, left_out = read_sets(with_sets(tmp_path, speech, calls, split=None))
    assert len(sets[0].utterances) == len(speech_rows) - 1
    assert left_out == {"calls": {"unusable text": 1}}


def test_a_set_without_anything_to_score(tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]]):
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", speech_rows), share=0.0)
    with pytest.raises(AskdError, match=r"evaluate\.sets calls: nothing to score in .*: no row"):
        read_sets(with_sets(tmp_path, speech, calls))


def test_rows_that_the_student_may_have_seen_are_left_out(
    tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    first = json.loads((speech / "manifest.jsonl").read_text().splitlines()[0])
    trained_on = {**first, "audio": str(speech / first["audio"])}
    rows = [{**speech_rows[0], "split": "train"}, {**speech_rows[1], "split": "test"}, speech_rows[2], trained_on]
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", rows))
    sets, left_out = read_sets(with_sets(tmp_path, speech, calls, split=None))
    assert [u.path for u in sets[0].utterances] == [row["audio"] for row in rows[1:3]]
    assert left_out == {"calls": {"marked as train data": 1, "in the train split": 1}}
    print_left_out(left_out)
    assert "calls: left out: 1 marked as train data, 1 in the train split" in capsys.readouterr().out

    asked_for = calls.model_copy(update={"split": "train"})
    sets, _ = read_sets(with_sets(tmp_path, speech, asked_for, split=None))
    assert [u.path for u in sets[0].utterances] == [rows[0]["audio"]]
    only = SpeechSet(name="only", path=manifest(tmp_path / "only", rows[:1]))
    with pytest.raises(AskdError, match="1 marked as train data; to score rows marked as train, set split: train"):
        read_sets(with_sets(tmp_path, speech, only, split=None))


def test_languages_of_sets_are_normalised(tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]]):
    names = ["English", "en-US", "Klingon", "german"]
    rows = [{**row, "language": name} for row, name in zip(speech_rows, names, strict=True)]
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", rows))
    sets, left_out = read_sets(with_sets(tmp_path, speech, calls, split=None))
    assert [u.language for u in sets[0].utterances] == ["en", "en", "de"]
    assert left_out == {"calls": {"unknown language": 1}}
    bad = calls.model_copy(update={"language": "Englisch"})
    with pytest.raises(AskdError, match=r"evaluate\.sets calls: language 'Englisch' is none of"):
        read_sets(with_sets(tmp_path, speech, bad, split=None))


def test_a_language_that_a_model_lacks_is_refused_before_anything_is_decoded(
    tmp_path: Path, speech: Path, speech_rows: list[dict[str, Any]], weights: Path
):
    rows = [{**row, "language": "german"} for row in speech_rows[:2]]
    calls = SpeechSet(name="calls", path=manifest(tmp_path / "calls", rows))
    run = with_sets(tmp_path, speech, calls, split=None)
    models = {"far": "http://127.0.0.1:1/v1#whisper", "teacher": str(weights)}
    with pytest.raises(AskdError, match=r"set calls has 2 in 'de', and model teacher knows only 'en'"):
        compare(models, "teacher", read_sets(run)[0], run.recipe.evaluate, tmp_path / "out")
    assert not (tmp_path / "out").exists()
