"""The stage `tune` on a real Ray cluster with a tiny student; its test split and its test set cannot be read."""

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from askd_ray.config.candidate import with_values
from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.tune import DEFAULT_SPACE, Tune
from askd_ray.data.shards import read_utterances
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.ray_cluster import package_folder
from askd_ray.runs import Run
from askd_ray.search import ray_tuner
from askd_ray.search.ray_tuner import search
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext

PNG = b"\x89PNG"


def reports(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The reports of each trial of a search, by trial id."""
    files = sorted(folder.glob("ray/trial_*/result.json"))
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return {reported[0]["trial_id"]: reported for reported in lines if reported}


@pytest.mark.slow
def test_default_search(searched, ray_session: None):
    recipe = searched({"trials": 3, "epochs": 1})
    folder = Run(recipe).path / "tune"
    folder.mkdir()
    (folder / "left.txt").write_text("of a search of other settings")
    found = search(recipe)
    trials = found["trials"]
    assert len(trials) == 3
    assert [t["score"] for t in trials] == sorted(t["dev_wer"] for t in trials)
    assert trials[0]["evaluations"] == 2
    best = load_recipe(found["best"])
    assert best.train == recipe.train
    for path, value in trials[0]["values"].items():
        assert path in DEFAULT_SPACE
        _, section, name = path.split(".")
        assert getattr(getattr(best.objective, section), name) == value
    reported = reports(folder)
    assert min(report["score"] for lines in reported.values() for report in lines) == trials[0]["score"]
    assert sorted(path.name for path in folder.iterdir()) == ["best.yaml", "key", "parallel.png", "ray", "trials.json"]
    assert (folder / "parallel.png").read_bytes().startswith(PNG)
    assert search(recipe) == found  # returns at once
    assert reports(folder) == reported


@pytest.mark.full
@pytest.mark.slow
def test_grid_tries_every_combination_once_with_ood_weight(searched, ray_session: None):
    lists = {"objective.teacher_weight.schedule": ["constant", "linear"], "objective.teacher_weight.end": [0.1, 0.2]}
    settings = {"searcher": "grid", "scheduler": "none", "concurrent": 2, "cpus_per_trial": 0.5, "epochs": 0.5}
    recipe = searched({**settings, "evals_per_epoch": 1, "space": lists, "ood_domains": ["calls"], "ood_weight": 0.25})
    trials = search(recipe)["trials"]
    tried = Counter(json.dumps(t["values"], sort_keys=True) for t in trials)
    schedule, end = (name for name in lists)
    constant, linear = {schedule: "constant"}, [{schedule: "linear", end: value} for value in (0.1, 0.2)]
    assert tried == Counter(json.dumps(values, sort_keys=True) for values in (constant, *linear))
    for trial in trials:
        apart = trial["dev_wer/in_domain"], trial["dev_wer/ood"]
        assert trial["score"] == pytest.approx(0.75 * apart[0] + 0.25 * apart[1])
        assert min(apart) <= trial["dev_wer"] <= max(apart)


@pytest.mark.slow
def test_trials_of_two_workers_score_as_one_process(
    searched, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two trials at a time need all CPUs of the cluster for their workers."""
    settings = {"searcher": "grid", "scheduler": "none", "concurrent": 2, "cpus_per_trial": 2, "epochs": 1}
    space = {"train.optimizer.lr": [1e-3, 4e-3]}
    recipe = searched(settings | {"trial_workers": 2, "space": space}, train=of_micro_batches(2))
    found = search(recipe)
    folder = Run(recipe).path / "tune"
    assert sorted(path.name for path in folder.iterdir()) == ["best.yaml", "key", "parallel.png", "ray", "trials.json"]
    assert "the trials share decoded clips" in capsys.readouterr().out
    trials = {trial["values"]["train.optimizer.lr"]: trial for trial in found["trials"]}
    assert trials.keys() == {1e-3, 4e-3}
    length = {"epochs": 1.0, "evals_per_epoch": 2}
    short = recipe.model_copy(update={"train": recipe.train.on_one_worker().model_copy(update=length)})
    for lr, trial in trials.items():
        candidate = with_values(short, {"train.optimizer.lr": lr})
        alone = build_loop(candidate, PlainContext(torch.device("cpu")), tmp_path / str(lr), "key").run()
        assert (trial["state"], trial["evaluations"]) == ("done", 2)
        assert (trial["score"], trial["dev_wer"]) == pytest.approx((alone["dev_score"], alone["dev_wer"]), abs=1e-6)


@pytest.mark.full
@pytest.mark.slow
def test_trials_of_several_workers_wait_for_one_another_and_may_be_stopped(searched, ray_session: None):
    """Three of four CPUs for each trial: two trials never fit, although two processes of trials run."""
    settings = {"trials": 4, "epochs": 1, "concurrent": 2, "cpus_per_trial": 3, "trial_workers": 2}
    recipe = searched(settings, train=of_micro_batches(3))
    trials = search(recipe)["trials"]
    assert len(trials) == 4
    assert {trial["state"] for trial in trials} == {"done"}
    assert min(trial["evaluations"] for trial in trials) >= 1


@pytest.mark.full
@pytest.mark.slow
def test_error_in_the_workers_of_a_trial_is_one_line(searched, ray_session: None):
    recipe = searched({"trials": 1, "trial_workers": 2}, train=of_micro_batches(2))
    (Run(recipe).shards / "train-00001-of-00002.parquet").write_bytes(b"damaged")
    recipe = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"epochs": 2})})
    with pytest.raises(AskdError, match="train-00001-of-00002"):
        search(recipe)


def of_micro_batches(n: int) -> dict[str, Any]:
    return {"batching": {"utterances": 3, "micro_batches": n}, "optimizer": {"lr": 5e-3, "encoder_lr": 5e-3}}


@pytest.mark.full
@pytest.mark.slow
def test_population_based_training_changes_values_and_rates(searched, ray_session: None):
    space = {
        "train.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "objective.teacher_weight.start": [0.5, 0.6, 0.7],
    }
    settings = {"searcher": "random", "scheduler": "pbt", "trials": 4, "epochs": 2, "evals_per_epoch": 2}
    recipe = searched({**settings, "space": space})
    found = search(recipe)
    reported = reports(Run(recipe).path / "tune")
    assert len(found["trials"]) == len(reported) == 4
    values = {name: [json.loads(report["values"]) for report in lines] for name, lines in reported.items()}
    # One trial resumed from another's checkpoint. Ray Tune does not store its report of that evaluation.
    assert list((Run(recipe).path / "tune").glob("ray/pbt_policy_*.txt"))
    factors: dict[int, list[float]] = {}
    # A trial that gets another's last checkpoint has nothing left to train; when that happens depends on timing.
    assert max(lines[-1]["evaluations"] for lines in reported.values()) == 4
    for name, lines in reported.items():
        for report, trial_values in zip(lines, values[name], strict=True):
            factors.setdefault(report["step"], []).append(report["lr/decoder"] / trial_values["train.optimizer.lr"])
            assert 1e-4 <= trial_values["train.optimizer.lr"] <= 1e-2
    assert len(factors[min(factors)]) >= 2  # the first evaluation at least
    for (
        step,
        trial_factors,
    ) in factors.items():  # all trials have the same schedule, relative to their own rate
        assert trial_factors == pytest.approx([trial_factors[0]] * len(trial_factors)), step


@pytest.mark.full
@pytest.mark.slow
def test_killed_search_resumes_with_the_same_command(searched, tmp_path: Path):
    n_trials = 5  # one at a time: on a fast machine, fewer could end before the kill
    settings = {"epochs": 1, "scheduler": "none", "concurrent": 1}
    recipe = searched({"trials": n_trials, **settings})
    folder, file, log_file = Run(recipe).path / "tune", tmp_path / "recipe.yaml", tmp_path / "said"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    paths = [str(package_folder().parent), os.environ.get("PYTHONPATH", "")]
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or k == "RAY_TMPDIR"}

    def start() -> psutil.Popen:
        with log_file.open("a", encoding="utf-8") as out:
            command = [sys.executable, "-m", "askd_ray", "tune", "--recipe", str(file)]
            environment = others | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
            return psutil.Popen(command, env=environment, start_new_session=True, stdout=out, stderr=out)

    def first_done() -> float | None:
        trials = folder / "trials.json"
        rows = read_json(trials) if trials.is_file() else []
        return trials.stat().st_mtime if any(row["state"] == "done" for row in rows) else None

    def is_kept(since: float | None) -> bool:
        """Whether Tune has saved its state after that time; it does so every second."""
        states = (folder / "ray").glob("experiment_state-*.json")
        return since is not None and any(state.stat().st_mtime > since for state in states)

    first, done = start(), None
    while not is_kept(done):
        assert first.poll() is None, log_file.read_text(encoding="utf-8")
        done = done or first_done()
        time.sleep(0.05)
    cluster = first.children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(cluster, timeout=60)
    before = reports(folder)
    finished = {name: lines for name, lines in before.items() if lines[-1]["evaluations"] == 2}
    assert 1 <= len(finished) < n_trials, "the search had ended before it was killed"
    assert start().wait(timeout=300) == 0, log_file.read_text(encoding="utf-8")
    assert "resuming the search" in log_file.read_text(encoding="utf-8")
    after = reports(folder)
    assert len(after) == n_trials
    assert finished.keys() <= after.keys()
    for name, lines in finished.items():
        assert after[name] == lines  # it was not run again
    assert len(read_json(Run(recipe).path / "tune.json")["result"]["trials"]) == n_trials


def test_impossible_searches_are_refused(searched):
    def error_of(recipe: Any) -> str:
        with pytest.raises(AskdError) as raised:
            search(recipe)
        return str(raised.value)

    recipe = searched({"ood_domains": ["call"]})

    def with_tune(**changes: Any) -> Any:
        return recipe.model_copy(update={"tune": Tune(**changes)})

    assert error_of(recipe) == "tune.ood_domains: dev has no utterances of call; its domains are calls, tones"
    assert "has all domains of dev" in error_of(with_tune(ood_domains=("calls", "tones")))
    assert "tones is in the training data too" in error_of(with_tune(ood_domains=("tones",)))
    ce = recipe.model_copy(update={"objective": type(recipe.objective)(preset="ce"), "tune": Tune()})
    assert error_of(ce).startswith("tune.space: with objective.teacher_weight.schedule = 'linear'")


def test_driver_cannot_read_the_test_split(searched, monkeypatch: pytest.MonkeyPatch):
    recipe = searched({})
    monkeypatch.setattr(ray_tuner, "check_inputs", lambda _: read_utterances(Run(recipe).shards, "test"))
    with pytest.raises(PermissionError, match="the test split is not read here"):
        search(recipe)
