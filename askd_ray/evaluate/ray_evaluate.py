"""The stage `evaluate`: the student, its teacher and other models on held-out speech; scores, and how sure they are."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from askd_ray.audio.sounds import check_sound_files
from askd_ray.audio.units import PADDED_S
from askd_ray.config.evaluate import Evaluate
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluate.decode import Material, collected, parts
from askd_ray.evaluate.hypotheses import HYPOTHESES, NON_SPEECH, SCORES, STUDENT, TEACHER, write_hypotheses
from askd_ray.evaluate.latency import evenly
from askd_ray.evaluate.ray_decode import decode
from askd_ray.evaluate.scores import Scores, score
from askd_ray.evaluate.sets import EvalSet, read_sets
from askd_ray.evaluate.speculative import speculative_scores
from askd_ray.evaluate.speed import measure_speed
from askd_ray.evaluate.systems import is_url, weights_hash
from askd_ray.evaluate.tables import speed_table, table
from askd_ray.files import write_json
from askd_ray.models.load import load_whisper
from askd_ray.progress import console
from askd_ray.ray_cluster import disconnect
from askd_ray.runs import Run, stage_key

PARTS = "parts"


def evaluate(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Compare the exported student with its teacher and with the recipe's other models; returns the scores.

    Writes hypotheses.parquet (raw texts) and scores.json under ``<run>/evaluate`` and prints tables. What is decoded
    already is not decoded again.

    Raises :class:`AskdError`: no bundle yet, an unusable model or set, faster-whisper wanted but not installed.
    """
    run = Run(with_absolute_paths(recipe))
    folder, settings = run.path / "evaluate", recipe.evaluate
    _check(settings)
    run.result("export")
    models = {STUDENT: str(run.bundle), TEACHER: recipe.teacher.model, **settings.models}
    sets, left_out = read_sets(run)
    weights = {name: weights_hash(reference) for name, reference in models.items()}
    key = stage_key(settings, weights, [[s.name, s.fingerprint] for s in sets])
    done = run.finished("evaluate", key)
    if done is not None and not force:
        console.print(table(cast(Scores, done)), speed_table(done["speed"]))
        console.print(f"evaluate: finished already ({folder / SCORES})")
        return done
    begun = run.begin("evaluate")
    run.forget("evaluate")
    scores = compare(models, TEACHER, sets, settings, folder, use_gpu=recipe.train.use_gpu)
    disconnect()  # an idle cluster takes time from what is measured next
    timed = {name: models[name] for name in (STUDENT, TEACHER)}
    clips = [u for chosen in sets if chosen.name != NON_SPEECH for u in chosen.utterances]
    speed = measure_speed(timed, TEACHER, clips, settings)
    drafting = _drafting(run, evenly(clips, settings.speed_clips)) if settings.speculative else None
    result = {**scores, "speed": speed, "speculative": drafting, "left_out": left_out}
    write_json(folder / SCORES, result)
    console.print(table(scores), speed_table(speed))
    return run.finish("evaluate", key, result, begun)


def _drafting(run: Run, clips: Sequence[Utterance]) -> dict[str, Any]:
    """Return what the student is worth as draft model of its teacher."""
    teacher, student = (load_whisper(r) for r in (run.recipe.teacher.model, str(run.bundle / "transformers")))
    short = [u for u in clips if u.duration_s <= PADDED_S]
    return speculative_scores(teacher, student, short, run.recipe.window.silence_s)


def compare(
    models: Mapping[str, str],
    baseline: str,
    sets: Sequence[EvalSet],
    settings: Evaluate,
    folder: Path,
    *,
    use_gpu: bool = False,
) -> Scores:
    """Decode every set with every model, clean and under the conditions, and return the scores.

    The raw texts go to ``folder``.
    """
    made, material = parts(models, sets, settings), Material.of(sets, settings)
    decode(made, material, folder / PARTS, use_gpu)
    rows = list(collected(made, material, folder / PARTS))
    write_hypotheses(folder / HYPOTHESES, rows)
    return score(rows, baseline, settings.normalizer)


def _check(settings: Evaluate) -> None:
    for field in ("noise_files", "room_files"):
        check_sound_files(f"evaluate.{field}", getattr(settings, field))
    reserved = {STUDENT, TEACHER} & settings.models.keys()
    if reserved:
        raise AskdError(f"evaluate.models: {', '.join(reserved)} is the run's own: take another name")
    for name, reference in settings.models.items():
        if is_url(reference) and "#" not in reference:
            raise AskdError(f"evaluate.models {name} = {reference}: the model's name is missing: {reference}#NAME")
    if settings.stock and find_spec("faster_whisper") is None:
        raise AskdError(
            "evaluate.stock compares with faster-whisper, which is not installed: pip install 'askd-ray[demo]', or "
            "--set evaluate.stock=false"
        )
