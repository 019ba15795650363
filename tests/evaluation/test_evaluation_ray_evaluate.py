import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scored import description_of_bundle, made_up_speed
from small_run import N_PER_SPLIT, small_run, utterances, write_manifest

from askd_ray.config.schema import Recipe
from askd_ray.data.shards import read_utterances
from askd_ray.errors import AskdError
from askd_ray.evaluation import ray_evaluate, sets, speed
from askd_ray.evaluation.hypotheses import CLEAN, RAW, SERVED, read_hypotheses
from askd_ray.evaluation.non_speech import non_speech_clips
from askd_ray.evaluation.ray_evaluate import evaluate
from askd_ray.evaluation.report.write import report
from askd_ray.files import read_json
from askd_ray.models.bundle import HYPOTHESES_FILE, check_hashes
from askd_ray.runs import Run


@pytest.fixture
def run(tmp_path: Path, speech: Path, weights: Path) -> Run:
    """A run with an exported student: the teacher itself, in trimmed windows."""
    run = small_run(tmp_path, speech, evaluate={"stock": False, "speed_clips": 2})
    run.bundle.mkdir()
    (run.bundle / "ctranslate2-int8").symlink_to(weights)
    (run.bundle / "transformers").mkdir()
    description_of_bundle(run.bundle)
    run.finish("export", "exported", {}, run.begin("export"))
    return run


def with_(recipe: Recipe, **settings: Any) -> Recipe:
    values = recipe.model_dump(mode="json")
    return Recipe.model_validate({**values, "evaluate": {**values["evaluate"], **settings}})


@pytest.fixture
def calls(tmp_path: Path, speech: Path) -> dict[str, Any]:
    """A set of two prompts that are not in the train split, said by two speakers."""
    rows = [
        {"id": f"{u.id}-{speaker}", "audio": u.path, "text": u.text, "speaker": speaker}
        for u in utterances(speech, N_PER_SPLIT + 2)[N_PER_SPLIT:]
        for speaker in ("ann", "bob")
    ]
    return {"name": "calls", "path": str(write_manifest(tmp_path / "calls", speech, rows))}


@pytest.fixture(autouse=True)
def without_timing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Speed has tests of its own."""
    if "timed" not in request.keywords:
        monkeypatch.setattr(ray_evaluate, "measure_speed", lambda models, *_: made_up_speed(models))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_models_on_sets_and_conditions(run: Run, calls: dict[str, Any], weights: Path, monkeypatch: pytest.MonkeyPatch):
    few = non_speech_clips()[::8]  # all of them are long, and have tests of their own
    monkeypatch.setattr(sets, "non_speech_clips", lambda *_: few)
    recipe = with_(run.recipe, sets=[calls], models={"again": str(weights)}, conditions=["white@10"], non_speech=True)
    result = evaluate(recipe)
    assert result["models"] == ["teacher", "again", "student"]
    assert {n: (s["in_domain"], s["utterances"]) for n, s in result["sets"].items()} == {
        "test": (True, N_PER_SPLIT),
        "calls": (False, 4),
    }
    assert result["sets"]["test"]["against_baseline"]["again"]["value"] == 0.0
    assert result["sets"]["test"]["models"]["teacher"]["wer"] < 0.5
    assert result["non_speech"]["clips"] == len(few) and result["left_out"] == {}
    assert read_json(run.path / "evaluate" / "scores.json") == result
    assert read_json(run.bundle / "bundle.json")["scores"] == result and check_hashes(run.bundle) > 0
    assert {row.model for row in read_hypotheses(run.bundle / HYPOTHESES_FILE)} == {"student"}

    rows = read_hypotheses(run.path / "evaluate" / "hypotheses.parquet")
    for path in (SERVED, RAW):
        clean = [r for r in rows if (r.model, r.set, r.condition, r.path) == ("student", "test", CLEAN, path)]
        assert [r.reference for r in clean] == [u.text for u in read_utterances(run.shards, "test")]  # not normalised
    assert all("".join(r.token_texts or ()).strip() == r.hypothesis for r in rows)
    assert len([r for r in rows if r.condition == "white@10"]) == 2 * 3 * (N_PER_SPLIT + 4)
    with pytest.raises(AskdError, match="babble behind set test, calls: an utterance has no speaker label"):
        evaluate(with_(recipe, conditions=["babble@10"]))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_what_is_decoded_is_not_decoded_again(run: Run, monkeypatch: pytest.MonkeyPatch):
    first = evaluate(run.recipe)
    decoded: list[int] = []
    monkeypatch.setattr(ray_evaluate, "decode", lambda made, *_: decoded.append(len(made)))
    description_of_bundle(run.bundle)  # exported again: the scores are those of the same weights
    assert evaluate(run.recipe) == first and decoded == []  # finished
    assert read_json(run.bundle / "bundle.json")["scores"] == first
    again = evaluate(with_(run.recipe, normalizer="basic"))  # other scores of the same texts
    assert decoded == [2] and again["sets"]["test"]["words"] > 0
    shutil.rmtree(run.path / "evaluate" / "parts")
    with pytest.raises(AskdError, match="parquet does not exist"):
        evaluate(run.recipe, force=True)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_ctc_student_goes_through_the_whole_stage(ctc_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A student without a decoder goes through the whole stage, speed and report included."""
    monkeypatch.setattr(ray_evaluate, "measure_speed", speed.measure_speed)
    shutil.copytree(ctc_run.path, tmp_path / ctc_run.recipe.name)
    settings = {**ctc_run.recipe.model_dump(mode="json"), "runs_root": str(tmp_path)}
    recipe = with_(Recipe.model_validate(settings), stock=False, speed_clips=2)
    result = evaluate(recipe)
    student = result["speed"]["models"]["student"]
    assert student["params_m"] < 9 and student["p50_ms"] > 0.0
    assert result["sets"]["test"]["models"]["student"]["wer"] < 0.5
    bundle = Run(recipe).bundle
    assert read_json(bundle / "bundle.json")["scores"] == result and check_hashes(bundle) > 0
    assert "## Scores" in (bundle / "README.md").read_text(encoding="utf-8")
    assert report([str(tmp_path / recipe.name)]).is_file()


def test_no_bundle_yet(tmp_path: Path, speech: Path):
    with pytest.raises(AskdError, match="run `askd export` first"):
        evaluate(small_run(tmp_path, speech, evaluate={"stock": False}).recipe)


def test_an_empty_split(run: Run):
    (run.shards / "test-00000.parquet").delete()
    with pytest.raises(AskdError, match="no test shards"):
        evaluate(run.recipe)
    assert run.record("evaluate") is None


def test_what_cannot_be_compared_is_said_at_once(run: Run, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AskdError, match=r"evaluate\.models: the name teacher is reserved"):
        evaluate(with_(run.recipe, models={"teacher": "x"}))
    with pytest.raises(AskdError, match="the model name is missing"):
        evaluate(with_(run.recipe, models={"them": "http://127.0.0.1/v1"}))


def test_a_damaged_bundle_is_said_at_once(run: Run):
    (run.bundle / "transformers" / "stray.bin").touch()
    with pytest.raises(AskdError, match="is not part of it"):
        evaluate(run.recipe)
    assert run.record("evaluate") is None


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_run_on_a_store(
    run: Run, weights: Path, s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    caches = [tmp_path / "first", tmp_path / "second"]
    for cache in caches:  # two machines, with the teacher's weights
        cache.mkdir()
        for name in ("weights", "speech"):
            (cache / name).symlink_to(weights.parents[1] / name)
    settings = {"runs_root": s3("runs"), "data_root": str(tmp_path), "data_run": "small"}
    there = Run(run.recipe.model_copy(update=settings))
    monkeypatch.setenv("ASKD_CACHE", str(caches[0]))
    shutil.copytree(run.bundle, there.bundle)
    description_of_bundle(there.bundle)
    there.send("bundle")
    there.finish("export", "exported", {}, there.begin("export"))
    shutil.rmtree(there.path)

    scores = evaluate(there.recipe)
    assert scores["in_domain"] == evaluate(run.recipe)["in_domain"]
    stored = {name.split("/")[1] for name in there.mirror.stored("evaluate")} if there.mirror is not None else set()
    assert stored == {"hypotheses.parquet", "parts", "scores.json"}
    monkeypatch.setenv("ASKD_CACHE", str(caches[1]))
    assert there.path.is_relative_to(caches[1]) and there.record("export") is not None
    assert evaluate(there.recipe) == scores
    check_hashes(there.bundle)
    assert read_json(there.bundle / "bundle.json")["scores"] == scores
    page = report([there.place.uri])
    assert (there.place / "evaluate" / "report.html").read_bytes() == page.read_bytes()
    with pytest.raises(AskdError, match=r"^no run 's3://b\w+/nothing\?\S+': it has no recipe\.yaml$"):
        report([s3("nothing")])
