from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.start import start_recipe
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.mirror import Mirror
from askd_ray.runs import Result, Run, StageWork, run_stage


def test_runs_share_the_data_of_another_run(tmp_path: Path):
    first = Run(Recipe(name="first", runs_root=str(tmp_path)))
    second = Run(Recipe(name="second", data_run="first", runs_root=str(tmp_path)))
    first.finish("prepare", "data", {"n": 1}, first.begin("prepare"))
    first.finish("label", "soft", {"n": 2}, first.begin("label"))
    first.finish("distill", "student", {}, first.begin("distill"))
    assert (second.shards, second.labels) == (first.shards, first.labels)
    assert second.finished("label", "soft") == {"n": 2} and second.key("prepare") == "data"
    assert second.distill == tmp_path / "second" / "distill"
    with pytest.raises(AskdError, match="run second: stage 'distill' has not finished"):
        second.result("distill")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def a_run(root: Path, *settings: str, name: str = "mine", of: str = "/own") -> Run:
    return Run(load_recipe("demo", [f"runs_root={root}", f"name={name}", f"data.sources=[{{path: {of}}}]", *settings]))


def done(run: Run, *stages: str) -> Run:
    for stage in stages:
        run.finish(stage, f"key of {stage}", {"utterances": {"train": 14}}, run.begin(stage))
    return run


def recipe_of(run: Run) -> dict[str, Any]:
    return yaml.safe_load((run.path / "recipe.yaml").read_text())


@pytest.mark.parametrize(
    ("finished", "stage", "setting", "expected"),
    [
        (["prepare"], "label", "data.dev_share=0.3", "data.dev_share = 0.3, but `askd prepare`"),
        (["prepare", "label"], "distill", "data.dev_share=0.3", "data.dev_share = 0.3, but `askd prepare`"),
        (["prepare", "label"], "distill", "teacher.model=wheel:base", "but `askd label` ran with wheel:tiny.en"),
        (["prepare", "label"], "tune", "teacher.top_k=5", "teacher.top_k = 5, but `askd label`"),
        (["prepare", "label", "distill"], "export", "train.epochs=9", "train.epochs = 9, but `askd distill`"),
        (["prepare", "label", "distill", "export"], "evaluate", "seed=9", "seed = 9, but `askd distill`"),
    ],
)
def test_later_stage_refuses_settings_that_differ_from_an_earlier_stage(
    root: Path, finished: list[str], stage: str, setting: str, expected: str
):
    done(a_run(root), *finished)
    a_run(root, "train.workers.count=3", "teacher.batch_size=3").check_earlier(stage)
    with pytest.raises(AskdError) as caught:
        a_run(root, setting).check_earlier(stage)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert "without --recipe" in str(caught.value) and "--set name=" in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "setting"), [("label", "teacher.top_k=5"), ("distill", "train.epochs=9"), ("tune", "train.epochs=9")]
)
def test_stage_may_be_repeated_with_new_settings(root: Path, stage: str, setting: str):
    done(a_run(root), "prepare", "label", "distill", "export")
    again = a_run(root, setting)
    again.check_earlier(stage)
    assert again.used(stage if stage != "tune" else "distill") != again.recipe


def test_shared_data_refuses_other_data_settings(root: Path):
    done(a_run(root), "prepare", "label")
    a_run(root, "data_run=mine", "seed=9", name="second").check_earlier("distill")
    with pytest.raises(AskdError, match=r"run second: data\.sources = /other, but `askd prepare` ran with /own"):
        a_run(root, "data_run=mine", name="second", of="/other").check_earlier("distill")


def test_rows_of_other_sources_are_replaced_only_by_force(root: Path):
    done(a_run(root), "prepare")
    with pytest.raises(AskdError, match=r"run mine has 14 utterances of /own, which data\.sources does not name"):
        a_run(root, of="/other").begin("prepare")
    assert recipe_of(a_run(root))["data"]["sources"][0]["path"] == "/own"
    a_run(root, of="/other").begin("prepare", force=True)
    assert recipe_of(a_run(root))["data"]["sources"][0]["path"] == "/other"


def test_changed_sources_and_settings_are_a_one_line_error(root: Path, capsys: pytest.CaptureFixture[str]):
    done(a_run(root), "prepare")
    more = Run(load_recipe("demo", [f"runs_root={root}", "name=mine", "data.sources=[{path: /own}, {path: /b}]"]))
    more.begin("prepare")
    assert "prepare: runs again, because settings have changed: data.sources = " in capsys.readouterr().out
    done(a_run(root), "label")
    a_run(root, "teacher.top_k=5").begin("label")
    assert "label: runs again, because settings have changed: teacher.top_k = 5 (before: 32)" in capsys.readouterr().out


def test_recipe_of_a_run_is_that_of_the_stages(root: Path, capsys: pytest.CaptureFixture[str]):
    done(a_run(root), "prepare")
    done(a_run(root, "teacher.top_k=5"), "label")
    done(a_run(root, "teacher.top_k=5", "train.epochs=9"), "distill")
    capsys.readouterr()
    a_run(root, "train.epochs=4", "teacher.batch_size=3", "evaluate.stock=false").begin("prepare")
    found = recipe_of(a_run(root))
    assert (found["teacher"]["top_k"], found["train"]["epochs"], found["data"]["sources"][0]["path"]) == (5, 9, "/own")
    assert found["teacher"]["batch_size"] == 3 and found["evaluate"]["stock"] is False
    assert "keeps the settings of `askd distill`, not train.epochs = 4" in capsys.readouterr().out


def test_forced_stage_records_the_new_recipe(root: Path):
    done(a_run(root), "prepare", "label", "distill")
    done(a_run(root, "train.epochs=9"), "distill")
    assert recipe_of(a_run(root))["train"]["epochs"] == 9
    a_run(root, "train.epochs=9").check_earlier("export")


def test_unrelated_recipe_replaces_the_old(root: Path):
    online = (
        "targets.states=none",
        "objective.preset=askd",
        "teacher.online=true",
        "objective.temperature.schedule=linear",
        "objective.temperature.end=2",
    )
    done(a_run(root, *online), "prepare", "label", "distill")
    a_run(root).begin("label")
    assert recipe_of(a_run(root))["objective"]["temperature"]["schedule"] == "constant"


def test_record_of_another_version_is_ignored(root: Path):
    run = done(a_run(root), "prepare")
    record = read_json(run.path / "prepare.json")
    record["recipe"]["data"]["gone"] = 1
    write_json(run.path / "prepare.json", record)
    other = a_run(root, of="/other")
    other.check_earlier("label")
    other.begin("prepare")
    assert other.used("prepare") == other.recipe


def test_used_is_the_recorded_recipe(root: Path):
    done(a_run(root), "prepare")
    other = a_run(root, of="/other")
    assert other.used("prepare").data.sources[0].path == "/own" and other.used("label") == other.recipe


@pytest.fixture
def stored(s3: Callable[[str], str], cache: Path) -> Run:
    """A run on a store; the mirror of this machine is in an empty cache."""
    return a_run_at(s3("runs"))


def a_run_at(root: str, **settings: Any) -> Run:
    return Run(load_recipe("demo", [f"runs_root='{root}'", "name=mine"]).model_copy(update=settings))


def other_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("ASKD_CACHE", str(folder))


def test_stage_of_a_run_on_a_store(stored: Run, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def work() -> Result:
        assert not (stored.place / "export.json").exists()
        (stored.bundle / "deep").mkdir(parents=True)
        (stored.bundle / "deep" / "weights").write_text("weights")
        return {"n": 1}

    assert run_stage(StageWork(stored, "export", "key", None, work, writes=("bundle",))) == {"n": 1}
    assert sorted(str(file) for file in stored.place.stamped(recursive=True)) == [
        f"{stored.place}/{name}" for name in ("bundle/deep/weights", "export.json", "recipe.yaml")
    ]
    assert "mysecret" not in (stored.place / "recipe.yaml").read_bytes().decode()
    other_machine(monkeypatch, cache / "other")
    assert stored.finished("export", "key") == {"n": 1} and stored.has("bundle") and not stored.has("evaluate")
    assert stored.path.is_relative_to(cache / "other") and not stored.path.exists()
    stored.fetch("bundle")
    assert (stored.bundle / "deep" / "weights").read_text() == "weights"
    assert start_recipe("evaluate", None, [f"runs_root={stored.recipe.runs_root}", "name=mine"]).name == "mine"


def test_stage_that_was_killed_while_it_was_sent_is_not_finished(stored: Run, monkeypatch: pytest.MonkeyPatch):
    def work() -> Result:
        for name in ("a", "b"):
            (stored.bundle / name).parent.mkdir(parents=True, exist_ok=True)
            (stored.bundle / name).write_text(name)
        return {}

    stage = StageWork(stored, "export", "key", None, work, writes=("bundle",))
    run_stage(stage)

    def dies(self: Mirror, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Mirror, "_upload", dies)
        run_stage(stage, force=True)
    assert stored.record("export") is None and stored.has("bundle")
    run_stage(stage)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        (stored.bundle / "a").write_text("scores")
        patched.setattr(Mirror, "_upload", dies)
        stored.resend("export", "bundle")
    assert stored.record("export") is None
    run_stage(stage)
    (stored.bundle / "a").write_text("scores")
    stored.resend("export", "bundle")
    assert stored.record("export") is not None and (stored.place / "bundle" / "a").read_bytes() == b"scores"


def test_run_inside_a_run_on_a_store(stored: Run):
    inside = Run(stored.inside("seeds", name="one", seed=7))
    assert inside.place == stored.place / "seeds" / "one" and inside.shards == stored.shards
    assert inside.path == stored.path / "seeds" / "one"
    stored.finish("prepare", "data", {}, stored.begin("prepare"))
    assert inside.key("prepare") == "data"
    of_folder = Run(stored.recipe.model_copy(update={"data_root": "/data"}))
    assert str(Run(of_folder.inside("seeds", name="one")).shards) == "/data/mine/shards"


def test_cleared_stage_is_gone_on_the_store_too(stored: Run):
    write_json(stored.distill / "x.json", {})
    stored.send("distill")
    stored.finish("distill", "key", {}, stored.begin("distill"))
    stored.clear("distill")
    assert stored.record("distill") is None and not stored.has("distill") and not stored.distill.exists()
