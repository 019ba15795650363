import sys
from pathlib import Path

import pytest
from small_run import N_PER_SPLIT, small_run

from askd_ray.config.schema import Recipe
from askd_ray.data.shards import read_table, read_utterances
from askd_ray.errors import AskdError
from askd_ray.evaluate.evaluate import evaluate
from askd_ray.files import read_json
from askd_ray.runs import Run


@pytest.fixture
def run(tmp_path: Path, speech: Path, weights: Path) -> Run:
    """A run with an exported student: the teacher itself."""
    run = small_run(tmp_path, speech)
    run.bundle.mkdir()
    (run.bundle / "ctranslate2-int8").symlink_to(weights)
    run.finish("export", "exported", {}, run.begin())
    return run


def with_(recipe: Recipe, **settings: object) -> Recipe:
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=settings)})


@pytest.mark.slow
def test_evaluate_real_models(run: Run, monkeypatch: pytest.MonkeyPatch):
    scores = evaluate(run.recipe)
    assert set(scores["systems"]) == {"student", "teacher"}
    assert scores["n_eval"] == N_PER_SPLIT
    assert scores["systems"]["teacher"]["wer"] < 0.4
    assert scores["speedup_baseline"] == "teacher_stock" and scores["speedup_clips"] == N_PER_SPLIT
    assert scores["systems"]["student"]["p50_ms"] < scores["systems"]["teacher"]["p50_ms"]
    assert scores["speedup_p50_short"] > 1.0
    assert scores["hardware"]["threads"] >= 1 and scores["hardware"]["cpu"]
    assert read_json(run.path / "evaluate" / "scores.json") == scores

    written = read_table(run.path / "evaluate" / "hypotheses.parquet").to_pylist()
    assert [w["reference"] for w in written] == [u.text for u in read_utterances(run.shards, "test")]  # raw, as written
    assert all(w["teacher"] and w["teacher_ms"] > w["student_ms"] > 0 for w in written)

    def never(*_: object) -> None:
        raise AssertionError("finished work was done again")

    monkeypatch.setattr("askd_ray.evaluate.evaluate.ask", never)
    assert evaluate(run.recipe) == scores
    with pytest.raises(AssertionError):
        evaluate(with_(run.recipe, repeats=2))


def test_an_empty_split(run: Run):
    (run.shards / "test-00000.parquet").delete()
    with pytest.raises(AskdError, match="no test shards"):
        evaluate(run.recipe)
    assert run.record("evaluate") is None


def test_no_bundle_yet(tmp_path: Path, speech: Path):
    with pytest.raises(AskdError, match="run `askd export` first"):
        evaluate(small_run(tmp_path, speech).recipe)


def test_faster_whisper_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(AskdError, match=r"askd-ray\[demo\].*evaluate\.stock=false"):
        evaluate(run.recipe)


@pytest.mark.slow
def test_without_the_stock_system(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    scores = evaluate(with_(run.recipe, stock=False))
    assert set(scores["systems"]) == {"student", "teacher"}
    assert scores["speedup_baseline"] == "teacher"
