"""The report of a training: ``runs/<name>/report.md``, with curves as PNG beside it.

<run>/report.md             text and tables
<run>/report/*.png          curves
<run>/report/recipe.yaml    the recipe of the training; <run>/recipe.yaml is that of the latest command
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from askd_ray.config.load import dump_recipe, with_absolute_paths
from askd_ray.config.presets import PRESETS
from askd_ray.config.schedules import StatesWeight, TeacherWeight, Temperature
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import SPLITS
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path
from askd_ray.progress import console
from askd_ray.results.texts import markdown_table, percent
from askd_ray.results.windows import WindowSweep
from askd_ray.runs import Run
from askd_ray.train import average
from askd_ray.train.curves import draw_curves
from askd_ray.train.held_out import held_out
from askd_ray.train.mlflow_mirror import send_finished_run
from askd_ray.train.track import StepMetrics, read_metrics
from askd_ray.train.window_picture import draw_windows

StageRecord = Mapping[str, Any]


def publish(recipe: Recipe) -> None:
    """Write the report of a run's training, and send new results to MLflow if the recipe has ``tracking.mlflow``.

    MLflow gets the bundle as the model, or the best student while there is no bundle. Does nothing before
    `askd distill` has finished.
    """
    run = Run(with_absolute_paths(recipe))
    run.fetch("distill/metrics.jsonl")
    path = write_report(run)
    if path is None:
        return
    run.send("report", "report.md")
    console.print(f"report: {run.place / path.name}")
    report, model = run.path / "report", ("bundle", run.bundle)
    if _record(run, "export") is None:
        model = ("bundle/transformers", run.student)
    if run.recipe.tracking.mlflow is not None:
        run.fetch(model[1].relative_to(run.path).as_posix())
    files = {"report.md": path, "recipe.yaml": report / "recipe.yaml"}
    files |= {f"report/{picture.name}": picture for picture in sorted(report.glob("*.png"))}
    files |= {f"{model[0]}/{f.relative_to(model[1])}": f for f in sorted(model[1].rglob("*")) if f.is_file()}
    send_finished_run(run, files)


def write_report(run: Run) -> Path | None:
    """Write the report from the records of the finished stages; return its path.

    Returns None when the training has not finished, or (with one line on the console) when another version trained it.
    """
    record = run.record("distill")
    if record is None:
        return None
    try:
        trained = Recipe.model_validate(record["recipe"])
    except ValidationError:
        console.print(
            f"no report: {run.place / 'distill'} was trained by another version of askd-ray, with other settings"
        )
        return None
    result = record["result"]
    with atomic_path(run.path / "report") as folder:
        folder.mkdir()
        (folder / "recipe.yaml").write_text(dump_recipe(trained), encoding="utf-8")
        parts = [
            f"# {trained.name}",
            *_result(result, read_metrics(run.distill), trained, folder),
            *held_out(_record(run, "evaluate"), run),
            *_exported(_record(run, "export"), folder),
            *([] if _is_average(result) else [_training(trained, result)]),
            _data(run, run.record("prepare"), run.record("label")),
            *_utterance_counts(result.get("utterances")),
            _provenance(run, record),
        ]
    with atomic_path(run.path / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return run.path / "report.md"


def _record(run: Run, stage: str) -> StageRecord | None:
    """Return the record of a later stage, or None if the stage ran before this training."""
    times_ns = {file.name: time_ns for file, (_, time_ns) in run.place.stamped().items()}
    after, trained = times_ns.get(f"{stage}.json"), times_ns["distill.json"]
    return None if after is None or after < trained else run.record(stage)


def _is_average(result: StageRecord) -> bool:
    return "students" in result  # of `askd average`, which trains nothing


def _result(result: StageRecord, metrics: Sequence[StepMetrics], recipe: Recipe, folder: Path) -> list[str]:
    """Return the result in a sentence, and the curves of the training."""
    if _is_average(result):
        return [average.result_text(result)]
    best = (
        f"**Dev WER {percent(result['dev_wer'])} %** at step {result['best_step']} of {result['steps']}, the best of "
        f"the run; {result['params_m']:g} M parameters. Selected on dev: only a held-out split shows how good it is."
    )
    return [best, _curves(metrics, recipe, folder)]


def _curves(metrics: Sequence[StepMetrics], recipe: Recipe, folder: Path) -> str:
    try:
        drawn = draw_curves(metrics, recipe, folder)
    except AskdError as error:
        return f"## Curves\n\nNone: {error}"
    pictures = [f"![{path.stem.replace('_', ' ')}](report/{path.name})" for path in drawn]
    return "\n\n".join(["## Curves", *pictures])


def _exported(record: StageRecord | None, folder: Path) -> list[str]:
    if record is None:
        return []
    sizes = [(f"`{name}`", size) for name, size in record["result"]["size_mb"].items()]
    parts = ["## Bundle", markdown_table(("part of [bundle/](bundle)", "MB"), sizes)]
    sweep: WindowSweep | None = record["result"].get("window_sweep")
    return parts if sweep is None else [*parts, *_windows(sweep, folder)]


def _windows(sweep: WindowSweep, folder: Path) -> list[str]:
    """Return the table and the picture of the windows that the export has compared."""
    rows = [
        (
            f"**clip + {score['silence_s']:g} s**" if i == sweep["chosen"] else f"clip + {score['silence_s']:g} s",
            f"{score['min_s']:g} s",
            f"{score['window_s']:.2f} s",
            f"{score['decoding_ms']:.0f} ms",
            percent(score["wer"]),
            f"{100 * score['above_best']:.2f} ({100 * score['standard_error']:.2f})",
            score["runaways"],
        )
        for i, score in enumerate(sweep["scores"])
    ]
    head = ("window", "at least", "mean window", "mean time", "WER, %", "above the best (standard error)", "runaways")
    text = (
        f"The decoding window was chosen on {sweep['clips']} dev clips ({sweep['words']} words). A window is as good "
        "as the best if it has as few runaways, and a WER above its by at most one standard error of the difference. "
        "That of dev is kept if it is as good and no other one is shorter by a tenth; otherwise the shortest is taken."
    )
    try:
        picture = [f"![windows](report/{draw_windows(sweep, folder).name})"]
    except AskdError as error:
        picture = [f"No picture: {error}"]
    return ["### Window", text, markdown_table(head, rows), *picture]


def _training(recipe: Recipe, result: StageRecord) -> str:
    objective, train, student = recipe.objective, recipe.train, recipe.student
    rates = train.optimizer
    preset = PRESETS[objective.preset]
    rows = [
        ("objective", f"`{objective.preset}`: {preset.formula} ({preset.source})"),
        ("teacher", f"`{recipe.teacher.model}`, {_teacher(recipe)}"),
        (
            "student",
            f"`{student.init or recipe.teacher.model}`: {_student(recipe)}; {result['params_m']:g} M parameters",
        ),
    ]
    if objective.has_teacher:
        rows.append(("a, the teacher's weight", _from_to(objective.teacher_weight)))
    self_teacher = objective.self_teacher
    if self_teacher.kind != "none" and objective.has_self_teacher:
        weight = f"{self_teacher.weight:g} {self_teacher.schedule} from {self_teacher.switch:.0%} of the run on"
        rows.append(("b, the self-teacher's weight", f"{self_teacher.kind}, {weight}"))
    if objective.decoder_states.kind != "none":
        rows.append(("s, the weight of the teacher's decoder states", _from_to(objective.states_weight)))
    rows += [
        ("T, temperature", _from_to(objective.temperature)),
        ("targets", recipe.targets.kind),
        (
            "length",
            f"{result['steps']} steps of {train.micro_batches_per_step} micro-batches, {train.epochs:g} epochs; "
            f"workers: {result['workers']}" + (f"; ended early by {result['stopped']}" if result["stopped"] else ""),
        ),
        ("padding", f"{result['padding']['audio']:.1%} of the audio, {result['padding']['tokens']:.1%} of the tokens"),
        (
            "learning rate",
            f"{rates.lr:g}, encoder {rates.encoder_lr:g}; rising for {rates.warmup_share:.0%} of the run",
        ),
        ("seed", str(recipe.seed)),
    ]
    shown = markdown_table(("", ""), rows)
    return f"## Training\n\n{shown}\n\nThe whole recipe: [report/recipe.yaml](report/recipe.yaml)."


def _teacher(recipe: Recipe) -> str:
    if recipe.teacher.online:
        return "online, beside the student"
    return f"cached soft labels: its {recipe.teacher.top_k} most likely tokens and their log-probabilities"


def _student(recipe: Recipe) -> str:
    student = recipe.student
    layers = [
        f"{part} layers {list(kept)}"
        for part, kept in (("encoder", student.encoder_layers), ("decoder", student.decoder_layers))
        if kept is not None
    ]
    shrunk = [f"fewer from {step.at:.0%} of the run on" for step in student.shrink]
    frozen = [
        f"{group} frozen" + (f" until {until:.0%} of the run" if until < 1.0 else "")
        for group, until in recipe.train.optimizer.frozen_until
        if until > 0.0
    ]
    return ", ".join([*(layers or ["all layers"]), *shrunk, *frozen])


def _from_to(value: TeacherWeight | StatesWeight | Temperature) -> str:
    if value.schedule == "constant":
        return f"{value.start:g} throughout"
    return f"{value.schedule} from {value.start:g} to {value.end:g}"


def _data(run: Run, prepared: StageRecord | None, labelled: StageRecord | None) -> str:
    used = run.used("prepare").data.sources
    sources = [f"- `{s.path}` ({s.kind}, {s.language}, {s.domain}; licence: {s.licence})" for s in used]
    parts = ["## Data", "\n".join(sources)] if sources else ["## Data"]
    if prepared is not None:
        counts = prepared["result"]
        rows = [(split, counts["utterances"][split], f"{counts['minutes'][split]:.1f}") for split in SPLITS]
        parts.append(markdown_table(("split", "utterances", "minutes"), rows))
        parts.append(_left_out_table(counts["quarantined"], f"Of {counts['read']} rows read", "set aside"))
    if labelled is not None:
        counts = labelled["result"]
        trained_on = f"{counts['labelled']} of them trained on, {counts['tokens']} target tokens"
        loss = f"the teacher's cross-entropy on them is {counts['teacher_loss']:g} nats a token"
        parts.append(f"The teacher has labelled {counts['utterances']} train utterances: {trained_on}; {loss}.")
        parts.append(_left_out_table(counts["left_out"], "Of those", "left out of the training"))
    return "\n\n".join(parts)


def _left_out_table(reasons: Mapping[str, int], of: str, how: str) -> str:
    if not reasons:
        return f"{of}, none was {how}."
    table = markdown_table(("reason", "utterances"), reasons.items())
    return f"{of}, {sum(reasons.values())} were {how}:\n\n{table}"


def _utterance_counts(ledger: Mapping[str, Any] | None) -> list[str]:
    """Return a table of the utterance counts of the training, some of them by reason."""
    if not ledger:
        return []
    rows: list[tuple[str, Any]] = []
    for name, count in ledger.items():
        inner = count.items() if isinstance(count, dict) else [("", count)]
        rows += [(": ".join(filter(None, (name.replace("_", " "), reason))), n) for reason, n in inner]
    return ["## Utterances in training\n\n" + markdown_table(("", "utterances"), rows)]


def _provenance(run: Run, trained: StageRecord) -> str:
    records = {stage: run.record(stage) for stage in ("prepare", "label")} | {"distill": trained}
    records |= {stage: _record(run, stage) for stage in ("export", "evaluate")}
    rows = [
        (f"`askd {stage}`", f"{record['wall_s'] / 60:.1f}", f"`{record['git_sha'] or 'unknown'}`")
        for stage, record in records.items()
        if record is not None
    ]
    versions = ", ".join(f"{name} {version}" for name, version in trained["versions"].items())
    shown = markdown_table(("command", "minutes", "git SHA"), rows)
    return (
        f"## Made with\n\n{shown}\n\nThe minutes count only the command "
        f"that finished, not an earlier one that was killed.\n\nTrained with {versions}.\n\n"
        "Every step: [distill/metrics.jsonl](distill/metrics.jsonl), or `tensorboard --logdir distill`."
    )
