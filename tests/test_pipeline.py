"""The whole way, with real parts: real speech, real tiny.en, real Ray, two training workers, a real HTTP request."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from small_run import manifest_rows, write_manifest

from askd_ray.bundles.bundle import export
from askd_ray.bundles.verify import check_hashes
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.data.shards import read_utterances
from askd_ray.evaluation.ray_evaluate import evaluate
from askd_ray.runs import Run
from askd_ray.search.ray_tuner import search
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.settings import ServiceArgs
from askd_ray.targets.ray_label import label
from askd_ray.train.ray_trainer import distill
from askd_ray.train.report import publish
from askd_ray.train.track import read_metrics

pytestmark = pytest.mark.slow

N_CLIPS = 20


@pytest.fixture(scope="module")
def few_clips(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a few real prompts, spread over the set; one of them is not audio at all."""
    folder, rows = tmp_path_factory.mktemp("data"), manifest_rows(speech)
    (folder / "broken.wav").write_bytes(b"RIFF this is no audio")
    broken = {"audio": str(folder / "broken.wav"), "text": "never spoken"}
    return write_manifest(folder / "clips", speech, [*rows[:: len(rows) // N_CLIPS][:N_CLIPS], broken])


@pytest.fixture(scope="module")
def recipe(few_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    """Results go to ``runs`` in the current folder, as on the command line; Ray's workers run elsewhere."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield Recipe.model_validate(
        {
            "name": "e2e",
            "data": {
                "sources": [{"path": str(few_clips), "licence": "CC-BY-SA-3.0"}],
                "dev_share": 0.2,
                "test_share": 0.25,
                "utterances_per_shard": 4,
            },
            "window": {"padded_share": 0.0},
            "train": {
                "epochs": 1,
                "optimizer": {"lr": 1e-5, "encoder_lr": 5e-6},
                "batching": {"utterances": 4},
                "workers": {"count": 2},
            },
            "tracking": {"mlflow": "mlflow"},
            "tune": {"trials": 2, "epochs": 0.5, "evals_per_epoch": 1},
            "evaluate": {"stock": False},
        }
    )
    os.chdir(before)


@pytest.fixture(scope="module")
def distilled(recipe: Recipe, weights: Path, ray_session: None) -> dict[str, Any]:
    """All stages up to the scores."""
    made = {"prepare": prepare(recipe), "label": label(recipe), "tune": search(recipe), "distill": distill(recipe)}
    made |= {"export": export(recipe), "evaluate": evaluate(recipe)}
    publish(recipe)
    return made


def test_every_row_is_accounted_for(distilled: dict[str, Any], recipe: Recipe):
    prepared = distilled["prepare"]
    assert prepared["read"] == N_CLIPS + 1
    assert sum(prepared["utterances"].values()) + sum(prepared["quarantined"].values()) == N_CLIPS + 1
    n_derived = sum(prepared["derived"]["train"].values())
    assert n_derived > 0
    assert distilled["label"]["utterances"] == prepared["utterances"]["train"] + n_derived
    fates = distilled["distill"]["utterances"]
    assert (fates["read"], fates["unaccounted"]) == (N_CLIPS + 1 + n_derived, 0)
    assert fates["trained"] + fates["not_reached"] == distilled["label"]["labelled"]


def test_search_writes_the_best_recipe(distilled: dict[str, Any], recipe: Recipe):
    trials = distilled["tune"]["trials"]
    assert len(trials) == 2 and trials[0]["dev_wer"] <= trials[1]["dev_wer"]
    best = load_recipe(distilled["tune"]["best"])
    assert best.objective.teacher_weight.start == pytest.approx(trials[0]["values"]["objective.teacher_weight.start"])
    assert best.train == recipe.train


def test_two_workers_trained_and_scored_dev(distilled: dict[str, Any], recipe: Recipe):
    assert distilled["distill"]["workers"] == 2
    metrics = read_metrics(Run(recipe).distill)
    assert [m["step"] for m in metrics] == list(range(1, distilled["distill"]["steps"] + 1))
    assert distilled["distill"]["dev_wer"] == min(m["dev_wer"] for m in metrics if "dev_wer" in m)


def test_report_has_all_stages(distilled: dict[str, Any], recipe: Recipe):
    text = (Run(recipe).path / "report.md").read_text()
    assert f"Dev WER {100 * distilled['distill']['dev_wer']:.2f} %" in text and "## Held-out" in text
    pictures = {path.stem for path in (Run(recipe).path / "report").glob("*.png")}
    assert len(pictures) == 7 and {"losses", "dev_wer", "schedule"} <= pictures


def test_mlflow_has_one_run_with_all_steps_and_the_bundle(distilled: dict[str, Any], recipe: Recipe, tmp_path: Path):
    """And none for the trials of the search."""
    client = MlflowClient(tracking_uri=f"sqlite:///{Path('mlflow').resolve()}/mlflow.db")
    experiment = client.get_experiment_by_name("askd")
    assert experiment is not None
    (there,) = client.search_runs([experiment.experiment_id])
    assert (there.info.run_name, there.info.status) == ("e2e", "FINISHED")
    steps = sorted(metric.step for metric in client.get_metric_history(there.info.run_id, "loss"))
    assert steps == list(range(1, distilled["distill"]["steps"] + 1))
    kept = Path(client.download_artifacts(there.info.run_id, "bundle", str(tmp_path)))
    check_hashes(kept)
    assert {path.relative_to(kept) for path in kept.rglob("*")} == {
        path.relative_to(Run(recipe).bundle) for path in Run(recipe).bundle.rglob("*")
    }


def test_scores_cover_the_held_out_clips(distilled: dict[str, Any]):
    scores = distilled["evaluate"]
    assert scores["in_domain"]["utterances"] == distilled["prepare"]["utterances"]["test"]
    assert scores["models"] == ["teacher", "student"]
    student, teacher = (scores["speed"]["models"][name] for name in ("student", "teacher"))
    assert student["multiply_adds_g"] < teacher["multiply_adds_g"] / 2  # its windows are trimmed
    assert scores["speed"]["speedup"]["student"]["short"]["value"] > 0.0


def test_finished_stages_are_not_repeated(distilled: dict[str, Any], recipe: Recipe):
    student = Run(recipe).student / "model.safetensors"
    before = student.stat().st_mtime_ns
    assert [prepare(recipe), label(recipe), distill(recipe)] == [distilled[s] for s in ("prepare", "label", "distill")]
    assert student.stat().st_mtime_ns == before


def test_client_gets_a_transcript_of_the_student(distilled: dict[str, Any], recipe: Recipe):
    utterance = max(read_utterances(Run(recipe).shards, "test"), key=lambda u: (u.duration_s < 5.0, u.duration_s))
    models = {recipe.name: str(Run(recipe).bundle)}
    url = serve_bundles(ServiceArgs(models=models), address=Address(port=0), blocking=False)
    try:
        answer = httpx.post(
            f"{url}/v1/audio/transcriptions",
            files={"file": ("clip.flac", utterance.audio)},
            data={"model": "e2e"},
            timeout=60,
        )
        models = httpx.get(f"{url}/v1/models").json()
    finally:
        stop_serving()
    assert answer.status_code == 200
    words = set(utterance.text.lower().replace(".", "").replace(",", "").split())
    assert words & set(answer.json()["text"].lower().replace(".", "").replace(",", "").split())
    assert [m["id"] for m in models["data"]] == ["e2e"]
