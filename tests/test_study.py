from pathlib import Path
from typing import Any

import pytest
from small_run import manifest_rows, write_manifest

from askd_ray.config.schema import Recipe
from askd_ray.config.study import Study
from askd_ray.errors import AskdError
from askd_ray.evaluation.gate import check_gate
from askd_ray.evaluation.hypotheses import CLEAN, Hypothesis, read_hypotheses
from askd_ray.evaluation.scores import score
from askd_ray.files import read_json
from askd_ray.models.bundle import HYPOTHESES_FILE, check_hashes
from askd_ray.runs import Run
from askd_ray.study import over_seeds, run_study
from askd_ray.train.track import read_metrics

ARMS = {"ce": {"preset": "ce"}, "distil": {"preset": "kd_distil_whisper_paper"}}


def recipe_of(folder: Path, speech: Path, **settings: Any) -> Recipe:
    clips = write_manifest(folder / "clips", speech, manifest_rows(speech)[::30])
    values = {
        "name": "small",
        "runs_root": str(folder),
        "data": {"sources": [{"path": str(clips)}], "dev_share": 0.3, "test_share": 0.3},
        "window": {"padded_share": 0.0, "choose_on_dev": False},
        "train": {"epochs": 1, "batching": {"utterances": 4}, "optimizer": {"lr": 1e-5}},
        "evaluate": {"stock": False, "speed_clips": 2, "threads": 1},
        "study": {"arms": ARMS, "against": "distil", "seeds": [0, 7], "concurrent": 2, "cpus_per_run": 0.5},
    }
    return Recipe.model_validate(values | settings)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_arms_train_with_different_objectives_on_the_same_data(
    tmp_path: Path, speech: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("askd_ray.bundles.bundle._N_CLIPS", 2)  # four bundles; tests of export verify more clips
    recipe = recipe_of(tmp_path, speech)
    result = run_study(recipe)
    folder = Run(recipe).path
    trained = {path.name: read_json(path / "distill.json") for path in sorted((folder / "runs").iterdir())}
    assert [*trained] == ["ce-0", "ce-7", "distil-0", "distil-7"]
    assert len({t["result"]["steps"] for t in trained.values()}) == 1
    assert {name: (t["recipe"]["objective"]["preset"], t["recipe"]["seed"]) for name, t in trained.items()} == {
        "ce-0": ("ce", 0),
        "ce-7": ("ce", 7),
        "distil-0": ("kd_distil_whisper_paper", 0),
        "distil-7": ("kd_distil_whisper_paper", 7),
    }
    weights_of_teacher = {name: {m["a"] for m in read_metrics(folder / "runs" / name / "distill")} for name in trained}
    assert weights_of_teacher == {"ce-0": {0.0}, "ce-7": {0.0}, "distil-0": {0.8}, "distil-7": {0.8}}
    assert {path.name for path in folder.iterdir()} >= {"shards", "labels", "labels-t2"}  # each temperature once

    rows = read_hypotheses(folder / "evaluate" / "hypotheses.parquet")
    assert {row.model for row in rows} == {*trained, "teacher"}
    assert (
        result["comparison"]["in_domain"]["arm"]["against"] == "distil" and "out_of_domain" not in result["comparison"]
    )
    assert read_json(folder / "study.json")["result"] == result

    bundles = {name: folder / "runs" / name / "bundle" for name in trained}
    for name, bundle in bundles.items():
        scores = read_json(bundle / "bundle.json")["scores"]
        evaluated = read_json(folder / "evaluate" / "scores.json")["sets"]["test"]["models"]
        assert scores["sets"]["test"]["models"]["student"]["wer"] == evaluated[name]["wer"]
        assert {row.model for row in read_hypotheses(bundle / HYPOTHESES_FILE)} == {"student"} and check_hashes(
            bundle
        ) > 0
    with pytest.raises(
        AskdError, match="does not beat the served version"
    ):  # two equals: they are compared, not refused
        check_gate(bundles["ce-0"], bundles["ce-0"])

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    run_study(recipe)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_seeds_are_paired():
    def make_rows(model: str, n_wrong: int) -> list[Hypothesis]:
        words = ["green"] * 10
        hypothesis = " ".join(["red"] * n_wrong + words[n_wrong:])
        return [Hypothesis(model, "a", False, CLEAN, "u", "", "en", 1.0, " ".join(words), hypothesis)]

    errors = {"teacher": 4, "ce-0": 3, "ce-7": 5, "distil-0": 2, "distil-7": 3}
    scores = score([row for model, n in errors.items() for row in make_rows(model, n)], "teacher")
    settings = Study.model_validate({"arms": ARMS, "against": "distil", "seeds": [0, 7]})
    (found,) = over_seeds(scores, settings).values()
    assert found["arm"]["presets"]["ce"]["wers"] == [0.3, 0.5]
    assert found["arm"]["differences"]["ce"]["value"] == pytest.approx(0.15)
    assert found["teacher"]["differences"]["distil"]["value"] == pytest.approx(-0.15)


def test_recipe_without_a_study_is_refused(tmp_path: Path, speech: Path):
    with pytest.raises(AskdError, match="the section study is missing"):
        run_study(recipe_of(tmp_path, speech, study=None))
