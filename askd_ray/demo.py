"""`make demo`: the whole pipeline on real speech, from audio files to an HTTP answer, and what it took."""

import os
import socket
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
from rich.panel import Panel

from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.source import Source
from askd_ray.data.prepare import prepare
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances
from askd_ray.evaluate.hypotheses import STUDENT, TEACHER
from askd_ray.evaluate.ray_evaluate import evaluate
from askd_ray.evaluate.scores import Scores
from askd_ray.evaluate.tables import speed_table, table
from askd_ray.export.bundle import export
from askd_ray.fetch.speech import fetch_speech
from askd_ray.files import local_path, write_json
from askd_ray.models.reference import resolve
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.runs import Run
from askd_ray.serve.listener import Address
from askd_ray.serve.ray_app import serve_bundles, stop_serving
from askd_ray.serve.settings import ServiceArgs
from askd_ray.targets.ray_label import label
from askd_ray.train.ray_trainer import distill
from askd_ray.train.report import publish
from askd_ray.tune.ray_tuner import search

_PORT = 8000


def run_demo(recipe: Recipe, speech: Path | None = None) -> dict[str, Any]:
    """Run every stage, serve the student, transcribe a held-out clip through it, and write ``summary.json``.

    ``speech`` is a folder with a manifest that stands in for the recipe's sources. Returns the summary.
    """
    begun = time.monotonic()
    with _PeakMemory() as memory:
        recipe = _with_speech(recipe, speech)
        _say("weights", "the teacher's weights")
        resolve(recipe.teacher.model)
        connect()
        _say("prepare", "audio and texts to shards, split by text")
        prepare(recipe)
        _say("label", "the teacher's soft labels, once for all that follows")
        label(recipe)
        _say("tune", "which decay, which self weight: short trials, scored on dev")
        tuned = load_recipe(search(recipe)["best"])
        disconnect()  # a trial's process idles on with all its memory: the training starts on a fresh cluster
        _say("distill", "the student, with the best of these")
        distilled = distill(tuned)
        disconnect()  # an idle cluster takes memory
        _say("export", "the bundle: transformers, CTranslate2 int8 and float16")
        export(tuned)
        _say("evaluate", "teacher against student on held-out speech")
        scores = evaluate(tuned)
        run = Run(tuned)
        publish(tuned)
        _say("serve", "the student behind the OpenAI audio API")
        answer = _serve_and_ask(run)
        disconnect()
    summary = _summary(scores, distilled, time.monotonic() - begun, memory.peak_gb)
    write_json(run.path / "summary.json", summary)
    _farewell(run, summary, scores, answer)
    return summary


def _with_speech(recipe: Recipe, speech: Path | None) -> Recipe:
    if speech is not None:
        data = recipe.data.model_copy(update={"sources": (Source(path=str(local_path(speech).resolve())),)})
        return recipe.model_copy(update={"data": data})
    for source in recipe.data.sources:
        if source.path.startswith("cache:"):
            fetch_speech(source.path.removeprefix("cache:"))
    return recipe


def _say(stage: str, what: str) -> None:
    console.rule(f"[bold]{stage}[/bold]: {what}", align="left")


def _serve_and_ask(run: Run) -> dict[str, Any]:
    """Send one held-out clip to the served student as any client would, and return what was said and heard."""
    utterance = _a_clip(read_utterances(run.shards, "test"))
    models = {run.recipe.name: str(run.bundle)}
    url = serve_bundles(ServiceArgs(models=models), address=Address(port=_free_port()), blocking=False)
    try:
        _post(url, run.recipe.name, utterance)  # the first request opens connections: the second is what users see
        begun = time.monotonic()
        heard = _post(url, run.recipe.name, utterance)
        took_ms = round(1000 * (time.monotonic() - begun), 1)
    finally:
        stop_serving()
    return {"said": utterance.text, "heard": heard, "ms": took_ms, "s": utterance.duration_s}


def _post(url: str, model: str, utterance: Utterance) -> str:
    file = (Path(utterance.path or "clip.wav").name, utterance.audio)
    response = httpx.post(
        f"{url}/v1/audio/transcriptions", files={"file": file}, data={"model": model}, timeout=60, trust_env=False
    )
    return response.raise_for_status().json()["text"]


def _a_clip(utterances: list[Utterance]) -> Utterance:
    """Return a clip of some length, so that the answer is worth reading."""
    return max((u for u in utterances if u.duration_s < 5.0), key=lambda u: (u.duration_s, u.id), default=utterances[0])


def _summary(scores: dict[str, Any], distilled: dict[str, Any], wall_s: float, peak_gb: float) -> dict[str, Any]:
    speed, pooled = scores["speed"], scores["in_domain"]["pooled"]
    faster = speed["speedup"][STUDENT]["short"]

    def figures(system: str) -> dict[str, Any]:
        measured = {name: speed["models"][system][name] for name in ("p50_ms", "p95_ms", "rtfx", "memory_mb")}
        return {**pooled["models"][system], **measured}

    return {
        "wall_s": round(wall_s, 1),
        "install_s": float(os.environ.get("ASKD_INSTALL_S", 0)),
        "peak_rss_gb": round(peak_gb, 2),
        "teacher": figures(TEACHER),
        "student": {**figures(STUDENT), "params_m": distilled["params_m"]},
        "wer_difference": pooled["against_baseline"][STUDENT],
        "n_eval": scores["in_domain"]["utterances"],
        "speedup_p50_short": faster["value"],
        "speedup_p50_short_ci95": [faster["low"], faster["high"]],
        "speedup_against": speed["speedup_against"],
        "speedup_clips": faster["clips"],
        "p50_short_ms": {STUDENT: faster["ms"], speed["speedup_against"]: faster["baseline_ms"]},
        # Each stage above ran through its library, or there would be no summary.
        "ray": {"version": metadata.version("ray"), **dict.fromkeys(("data", "train", "tune", "serve"), True)},
    }


def _farewell(run: Run, summary: dict[str, Any], scores: dict[str, Any], answer: dict[str, Any]) -> None:
    console.rule("[bold]done[/bold]", align="left")
    console.print(table(cast(Scores, scores)), speed_table(scores["speed"]))
    minutes, memory = summary["wall_s"] / 60, summary["peak_rss_gb"]
    console.print(f"All of it took {minutes:.1f} min and {memory} GB of memory at most.")
    console.print(
        Panel(
            f"POST /v1/audio/transcriptions  {answer['s']:.1f} s of speech in {answer['ms']} ms\n"
            f"said   {answer['said']}\nheard  {answer['heard']}",
            title="through the served student",
            expand=False,
        )
    )
    console.print(f"bundle   {run.bundle}\nsummary  {run.path / 'summary.json'}\nNext:", markup=False)
    console.print(f"  askd serve --bundle {run.bundle}", markup=False)
    console.print(f"  askd transcribe --bundle {run.bundle} FILE.wav", markup=False)
    console.print("  askd prepare --set name=mine --set 'data.sources=[{path: FOLDER}]'   # then label, distill, ...")


def _free_port() -> int:
    """Return the usual port, or any free one where it is taken."""
    for port in (_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on loopback")


class _PeakMemory:
    """Samples the resident memory of this process and all it started, every second.

    Pages that processes share are counted once, as the largest shared part of any of them. (The exact figure, the
    proportional set size, makes the kernel walk all page tables: that alone took half a core.)
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
        me = psutil.Process()
        while not self._stop.wait(1.0):
            parts = [_resident(process) for process in [me, *me.children(recursive=True)]]
            total = sum(own for own, _ in parts) + max(shared for _, shared in parts)
            self.peak_gb = max(self.peak_gb, total / 1e9)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Return the bytes that a process holds for itself and those that it may share; 0 when it has ended."""
    try:
        info = process.memory_info()
    except psutil.Error:
        return 0, 0
    shared: int = getattr(info, "shared", 0)  # Linux says; elsewhere all of it counts as its own
    return info.rss - shared, shared
