"""`make demo`: runs the whole pipeline on real speech, from audio files to an HTTP response, and measures it."""

import os
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
from rich.panel import Panel

from askd_ray import stages
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.source import Source
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances
from askd_ray.evaluation.hypotheses import STUDENT, TEACHER
from askd_ray.evaluation.tables import speed_table, table
from askd_ray.fetch.speech import fetch_speech
from askd_ray.files import local_path, to_json
from askd_ray.models.reference import resolve
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.results.evaluation import Evaluation
from askd_ray.runs import Run
from askd_ray.search.trials import check_place_of_search
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.settings import ServiceArgs


def run_demo(recipe: Recipe, speech: Path | None = None) -> dict[str, Any]:
    """Run every stage, serve the student, transcribe a held-out clip with it, and write ``summary.json``.

    ``speech`` is a folder with a manifest that replaces the recipe's sources. Returns the summary.
    """
    begun = time.monotonic()
    check_place_of_search(Run(recipe))
    with _PeakMemory() as memory:
        recipe = _with_speech(recipe, speech)
        _print_stage("weights", "the teacher's weights")
        resolve(recipe.teacher.model)
        connect()
        _print_stage("prepare", "convert audio and texts to shards, split by text")
        stages.prepare(recipe)
        _print_stage("label", "store the teacher's soft labels, once for all trainings")
        stages.label(recipe)
        _print_stage("tune", "search the decay and the self weight with short trials, scored on dev")
        tuned = load_recipe(stages.tune(recipe)["best"])
        disconnect()  # trial processes stay idle and keep their memory: train on a new cluster
        _print_stage("distill", "train the student with the best values")
        distilled = stages.distill(tuned)
        disconnect()  # an idle cluster takes memory
        _print_stage("export", "write the bundle: transformers, CTranslate2 int8 and float16")
        stages.export(tuned)
        _print_stage("evaluate", "compare teacher and student on held-out speech")
        scores = cast(Evaluation, stages.evaluate(tuned))  # an exported student is no LLM
        run = Run(tuned)
        _print_stage("serve", "serve the student with the OpenAI audio API")
        answer = _serve_and_transcribe(run)
        disconnect()
    summary = _summary(scores, distilled, time.monotonic() - begun, memory.peak_gb)
    (run.place / "summary.json").write_bytes(to_json(summary).encode())
    _print_summary(run, summary, scores, answer)
    return summary


def _with_speech(recipe: Recipe, speech: Path | None) -> Recipe:
    if speech is not None:
        data = recipe.data.model_copy(update={"sources": (Source(path=str(local_path(speech).resolve())),)})
        return recipe.model_copy(update={"data": data})
    for source in recipe.data.sources:
        if source.path.startswith("cache:"):
            fetch_speech(source.path.removeprefix("cache:"))
    return recipe


def _print_stage(stage: str, description: str) -> None:
    console.rule(f"[bold]{stage}[/bold]: {description}", align="left")


def _serve_and_transcribe(run: Run) -> dict[str, Any]:
    """Send one held-out clip to the served student over HTTP; return its reference, transcript, latency and length."""
    utterance = _choose_clip(read_utterances(run.shards, "test"))
    models = {run.recipe.name: str(run.bundle)}
    url = serve_bundles(ServiceArgs(models=models), address=Address(port=0), blocking=False)
    try:
        _post(url, run.recipe.name, utterance)  # the first request also opens connections: time the second
        begun = time.monotonic()
        transcript = _post(url, run.recipe.name, utterance)
        took_ms = round(1000 * (time.monotonic() - begun), 1)
    finally:
        stop_serving()
    return {"reference": utterance.text, "transcript": transcript, "ms": took_ms, "s": utterance.duration_s}


def _post(url: str, model: str, utterance: Utterance) -> str:
    file = (Path(utterance.path or "clip.wav").name, utterance.audio)
    response = httpx.post(
        f"{url}/v1/audio/transcriptions", files={"file": file}, data={"model": model}, timeout=60, trust_env=False
    )
    return response.raise_for_status().json()["text"]


def _choose_clip(utterances: list[Utterance]) -> Utterance:
    """Return the longest clip under 5 s, so that the transcript is interesting."""
    return max((u for u in utterances if u.duration_s < 5.0), key=lambda u: (u.duration_s, u.id), default=utterances[0])


def _summary(scores: Evaluation, distilled: dict[str, Any], wall_s: float, peak_gb: float) -> dict[str, Any]:
    speed, in_domain = scores["speed"], scores["in_domain"]
    faster = speed["speedup"][STUDENT].get("short")
    assert in_domain is not None and faster is not None, "the demo's speech has short clips, and a test split"
    pooled = in_domain["pooled"]

    def values_of(system: str) -> dict[str, Any]:
        measured = {name: speed["models"][system][name] for name in ("p50_ms", "p95_ms", "rtfx", "memory_mb")}
        return {**pooled["models"][system], **measured}

    return {
        "wall_s": round(wall_s, 1),
        "install_s": float(os.environ.get("ASKD_INSTALL_S", 0)),
        "peak_rss_gb": round(peak_gb, 2),
        "teacher": values_of(TEACHER),
        "student": {**values_of(STUDENT), "params_m": distilled["params_m"]},
        "wer_difference": pooled["against_baseline"][STUDENT],
        "n_eval": in_domain["utterances"],
        "speedup_p50_short": faster["value"],
        "speedup_p50_short_ci95": [faster["low"], faster["high"]],
        "speedup_against": speed["speedup_against"],
        "speedup_clips": faster["clips"],
        "p50_short_ms": {STUDENT: faster["ms"], speed["speedup_against"]: faster["baseline_ms"]},
        # All these libraries were used: without one of them, an earlier stage would have failed.
        "ray": {"version": metadata.version("ray"), **dict.fromkeys(("data", "train", "tune", "serve"), True)},
    }


def _print_summary(run: Run, summary: dict[str, Any], scores: Evaluation, answer: dict[str, Any]) -> None:
    console.rule("[bold]done[/bold]", align="left")
    console.print(table(scores), speed_table(scores["speed"]))
    minutes, memory = summary["wall_s"] / 60, summary["peak_rss_gb"]
    console.print(f"The whole demo took {minutes:.1f} min and at most {memory} GB of memory.")
    console.print(
        Panel(
            f"POST /v1/audio/transcriptions  {answer['s']:.1f} s of speech in {answer['ms']} ms\n"
            f"reference   {answer['reference']}\ntranscript  {answer['transcript']}",
            title="a request to the served student",
            expand=False,
        )
    )
    console.print(f"bundle   {run.bundle}\nsummary  {run.place / 'summary.json'}\nNext:", markup=False)
    activate = Path(sys.executable).parent / "activate"
    if "VIRTUAL_ENV" not in os.environ and activate.is_file():  # run by `make demo`: the shell does not know `askd`
        console.print(f"  source {os.path.relpath(activate)}", markup=False)
    console.print(f"  askd serve --bundle {run.bundle}", markup=False)
    console.print(f"  askd transcribe --bundle {run.bundle} FILE.wav", markup=False)
    console.print("  askd prepare --set name=mine --set 'data.sources=[{path: FOLDER}]'   # then label, distill, ...")


class _PeakMemory:
    """Samples the resident memory of this process and its child processes, every second.

    Shared pages are counted once, as the largest shared part of a process. (The exact value, the proportional set size,
    makes the kernel read all page tables: this took half a core.)
    """

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while not self._stop.wait(1.0):
            sizes = [_resident(process) for process in [this, *this.children(recursive=True)]]
            total = sum(private for private, _ in sizes) + max(shared for _, shared in sizes)
            self.peak_gb = max(self.peak_gb, total / 1e9)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Return the private and the shared bytes of a process; 0 when it has ended."""
    try:
        info = process.memory_info()
    except psutil.Error:
        return 0, 0
    shared: int = getattr(info, "shared", 0)  # only on Linux; elsewhere all memory counts as private
    return info.rss - shared, shared
