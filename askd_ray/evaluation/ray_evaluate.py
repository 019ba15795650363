"""The stage `evaluate`: scores the student, its teacher and other models on held-out speech, with intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ray

from askd_ray.audio.sounds import check_sound_files
from askd_ray.config.evaluate import Evaluate
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.model_languages import refuse_languages
from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluation.bundle_scores import publish_scores
from askd_ray.evaluation.decode import DECODING_FORMAT, Material, collect_hypotheses, decode_jobs
from askd_ray.evaluation.hypotheses import (
    HYPOTHESES,
    NON_SPEECH,
    SCORES,
    STUDENT,
    TEACHER,
    Hypothesis,
    read_hypotheses,
    write_hypotheses,
)
from askd_ray.evaluation.llm_evaluate import evaluate_llm
from askd_ray.evaluation.ray_decode import decode
from askd_ray.evaluation.scores import score
from askd_ray.evaluation.sets import EvalSet, print_left_out, read_sets
from askd_ray.evaluation.speed import measure_speed
from askd_ray.evaluation.systems import is_url, languages_of, weights_hash
from askd_ray.evaluation.tables import speed_table, table
from askd_ray.files import write_json
from askd_ray.mirror import Mirror
from askd_ray.models.bundle import check_hashes
from askd_ray.progress import console
from askd_ray.ray_cluster import connect, disconnect
from askd_ray.ray_errors import user_error
from askd_ray.results.audio_use import AudioUseScores
from askd_ray.results.evaluation import Evaluation, checked
from askd_ray.results.timing import Speed
from askd_ray.results.wer import Scores
from askd_ray.runs import BUNDLE, Result, Run, StageWork, run_stage, stage_key
from askd_ray.torch_setup import Device, device_of

PARTS = "parts"


def evaluate(recipe: Recipe, force: bool = False) -> Evaluation | AudioUseScores:
    """Compare the exported student with its teacher and with the recipe's other models; return the scores.

    An LLM student has no bundle, and scores of its own (:func:`~askd_ray.evaluation.llm_evaluate.evaluate_llm`).

    Writes hypotheses.parquet (raw texts) and scores.json under ``<run>/evaluate``, writes the scores into the bundle,
    and prints tables. Clips that were decoded before are not decoded again.

    Raises :class:`AskdError` for a missing or damaged bundle, and for an unusable model or set.
    """
    if recipe.student.reader == "llm":
        return evaluate_llm(recipe, force)
    run = Run(with_absolute_paths(recipe))
    _check(recipe.evaluate)
    run.result("export")
    run.fetch(BUNDLE)
    check_hashes(run.bundle)  # before the long work, not after it
    models = {STUDENT: str(run.bundle), TEACHER: recipe.teacher.model, **recipe.evaluate.models}
    result, rows = evaluate_models(run, models, STUDENT, force)
    publish_scores(run.bundle, result, rows)  # also into a bundle that is newer
    run.resend("export", BUNDLE)
    console.print(table(result), speed_table(result["speed"]))
    return result


def evaluate_models(
    run: Run, models: Mapping[str, str], timed: str, force: bool = False
) -> tuple[Evaluation, list[Hypothesis]]:
    """Carry out the stage `evaluate` of a run for ``models``, name to reference; return the scores and hypotheses.

    Every model is compared with the model :data:`TEACHER`; ``timed`` is the bundle whose speed is measured.

    Raises :class:`AskdError` for an unusable model or set.
    """
    folder, settings = run.path / "evaluate", run.recipe.evaluate
    device = device_of(run.recipe.train.workers.gpu)
    sets, left_out = read_sets(run)
    print_left_out(left_out)
    weights = {name: weights_hash(reference, device) for name, reference in models.items()}
    key = stage_key(settings, weights, [[s.name, s.fingerprint] for s in sets], DECODING_FORMAT)

    def work() -> Result:
        scores = compare(models, TEACHER, sets, settings, folder, device=device, mirror=run.mirror)
        clips = [u for chosen in sets if chosen.name != NON_SPEECH for u in chosen.utterances]
        speed = speed_of({name: models[name] for name in (timed, TEACHER)}, clips, settings, device, run.mirror)
        result = {**scores, "speed": speed, "left_out": left_out}
        write_json(folder / SCORES, result)
        return result

    run.fetch("evaluate")
    done = run.finished("evaluate", key)
    shown = str(run.place / "evaluate" / SCORES)
    result = run_stage(StageWork(run, "evaluate", key, done, work, lambda _: shown, ("evaluate",)), force)
    return checked(result, f"run {run.recipe.name}"), read_hypotheses(folder / HYPOTHESES)


def compare(
    models: Mapping[str, str],
    baseline: str,
    sets: Sequence[EvalSet],
    settings: Evaluate,
    folder: Path,
    *,
    device: Device = "cpu",
    mirror: Mirror | None = None,
) -> Scores:
    """Decode every set with every model, clean and under the conditions, and return the scores.

    Writes the raw texts to ``folder``, which with the bundles may lie in a ``mirror`` of a store.

    Raises :class:`AskdError` before decoding when a model does not support a language of the sets.
    """
    _refuse_languages(models, sets)
    jobs, material = decode_jobs(models, sets, settings, device), Material.of(sets, settings)
    decode(jobs, material, folder / PARTS, device == "cuda", mirror)
    rows = list(collect_hypotheses(jobs, material, folder / PARTS))
    write_hypotheses(folder / HYPOTHESES, rows)
    return score(rows, baseline, settings.normalizer)


def speed_of(
    models: Mapping[str, str],
    clips: Sequence[Utterance],
    settings: Evaluate,
    device: Device,
    mirror: Mirror | None = None,
) -> Speed:
    """Measure speed against the teacher, in this process or on a GPU from Ray; ends a cluster that we started."""
    if device == "cpu":
        disconnect()  # an idle cluster uses CPU time and would disturb the measurement
        return measure_speed(models, TEACHER, clips, settings)

    def measure() -> Speed:
        if mirror is not None:  # the GPU may be on another machine
            for reference in models.values():
                mirror.fetch_path(Path(reference))
        return measure_speed(models, TEACHER, clips, settings, device)

    connect(use_gpu=True)
    with user_error():
        speed = cast(Speed, ray.get(ray.remote(num_gpus=1)(cast(Any, measure)).remote()))
    disconnect()
    return speed


def _refuse_languages(models: Mapping[str, str], sets: Sequence[EvalSet]) -> None:
    for chosen in sets:
        set_languages = Counter(u.language for u in chosen.utterances)
        for name, reference in models.items():
            languages = languages_of(reference)
            if languages is not None:
                refuse_languages(set_languages, f"model {name}", languages, f"evaluate: set {chosen.name} has")


def _check(settings: Evaluate) -> None:
    for field in ("noise_files", "room_files"):
        check_sound_files(f"evaluate.{field}", getattr(settings, field))
    reserved = {STUDENT, TEACHER} & settings.models.keys()
    if reserved:
        raise AskdError(f"evaluate.models: the name {', '.join(reserved)} is reserved for the run: use another name")
    for name, reference in settings.models.items():
        if is_url(reference) and "#" not in reference:
            raise AskdError(f"evaluate.models {name} = {reference}: the model name is missing: {reference}#NAME")
