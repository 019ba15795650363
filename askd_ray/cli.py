"""The command line: one command per stage. It has no logic: each command calls a function of the package."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from askd_ray import stages
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.start import start_recipe
from askd_ray.errors import AskdError, missing_extra, one_line
from askd_ray.fetch import commands
from askd_ray.files import local_path
from askd_ray.models.reference import resolve
from askd_ray.progress import console
from askd_ray.runs import Run

_INTERRUPTED = 130  # 128 + SIGINT, as shells expect

app = typer.Typer(
    help="Distil Whisper on a Ray cluster with ASKD, evaluate the student and serve it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(commands.app, name="fetch")

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A built-in recipe or a YAML file. Default: the recipe of the run."),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: train.epochs=3. Repeatable.")]
RegistryOption = Annotated[Path, typer.Option(help="A folder of models by name (askd serve --registry).")]
NameOption = Annotated[str, typer.Option(help="The model name in requests.")]
ForceOption = commands.ForceOption
FormatsOption = Annotated[str, typer.Option(help="Further formats beside those of every bundle, with commas.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    if debug:
        os.environ["ASKD_DEBUG"] = "1"


@app.command()
def prepare(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Convert sources to Parquet shards, split by speaker; unusable rows go to quarantine.jsonl."""
    stages.prepare(_recipe_of("prepare", recipe, set_), force)


@app.command()
def student(recipe: RecipeOption = None, set_: SetOption = None) -> None:
    """Show the cost of each part of the student, and of smaller students, before training."""
    loaded = _recipe_of("student", recipe, set_)
    from askd_ray.models import cost

    console.print(cost.table(loaded))


@app.command()
def label(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Run the teacher over the train shards once and store its top-k soft labels (Ray Data)."""
    stages.label(_recipe_of("label", recipe, set_), force)


@app.command()
def distill(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Distil the student with ASKD (Ray Data and Ray Train)."""
    stages.distill(_recipe_of("distill", recipe, set_), force)


@app.command()
def average(
    runs: Annotated[list[str], typer.Argument(help="Folders or URIs of distilled runs, such as runs/mine.")],
    name: Annotated[str, typer.Option(help="The new run with the averaged student.")],
    force: ForceOption = False,
) -> None:
    """Average the weights of trained students, with a share of the initial weights that dev chooses."""
    stages.average(runs, name, force)


@app.command()
def tune(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Search decay schedules and self-distillation weights on dev (Ray Tune)."""
    stages.tune(_recipe_of("tune", recipe, set_), force)


@app.command()
def export(
    recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False, formats: FormatsOption = ""
) -> None:
    """Write the student's bundle: transformers and CTranslate2 folders, model card, hashes; verify each format."""
    names = [name.strip() for name in formats.split(",") if name.strip()]
    stages.export(_recipe_of("export", recipe, set_), force, names)


@app.command()
def evaluate(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Compare the student with its teacher and other models on held-out speech: WER with intervals, errors, speed."""
    stages.evaluate(_recipe_of("evaluate", recipe, set_), force)


@app.command()
def study(recipe: RecipeOption = None, set_: SetOption = None, force: ForceOption = False) -> None:
    """Compare objectives with equal budgets over several seeds: train, evaluate and report all of them."""
    stages.study(_recipe_of("study", recipe, set_, "study_cpu"), force)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(help="Evaluated runs: their folders or URIs, or names under runs/.")],
    out: Annotated[Path | None, typer.Option(help="Default: RUN/evaluate/report.html; for many report.html.")] = None,
) -> None:
    """Write the evaluation of runs as an HTML page and as Markdown: verdict, tables, plots, worst utterances."""
    from askd_ray.evaluation.report import write

    console.print(f"report: {write.report(runs, out)}")


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="A bundle (askd export); its name is the model's.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model by name: NAME=BUNDLE. Repeatable.")] = None,
    registry: Annotated[Path | None, typer.Option(help="A folder of models, filled by askd promote.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on. Default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    engines: Annotated[int, typer.Option(min=1, help="Number of replicas that transcribe.")] = 1,
    requests: Annotated[int, typer.Option(min=1, help="Maximum of running and queued requests; more get 429.")] = 64,
    keys: Annotated[Path | None, typer.Option(help="A file with one API key per line; or set ASKD_API_KEYS.")] = None,
) -> None:
    """Serve bundles on Ray Serve with the OpenAI audio API, live captions, and a browser page."""
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
def push(
    target: Annotated[str, typer.Argument(help="A folder, or with --upload a hub id: OWNER/NAME.")],
    bundle: Annotated[Path, typer.Option(help="A bundle folder (askd export).")] = Path("runs/demo/bundle"),
    upload: Annotated[Literal["private", "public"] | None, typer.Option(help="Upload to the hub.")] = None,
) -> None:
    """Lay a bundle out as a repository of Hugging Face's hub, in a folder; upload it when asked."""
    from askd_ray.bundles import push as hub

    console.print(hub.push(bundle, target, upload), markup=False)


@app.command()
def promote(
    bundle: Annotated[Path, typer.Argument(help="An evaluated bundle (askd evaluate).")],
    registry: RegistryOption = Path("registry"),
    name: NameOption = "student",
    force: Annotated[bool, typer.Option("--force", help="Ignore the scores.")] = False,
) -> None:
    """Add a bundle to a registry and serve it, if its WER is lower than that of the served version."""
    from askd_ray import promote as gate
    from askd_ray.serve.registry import Registry

    gate.promote(bundle, Registry(registry), name, force)


@app.command()
def rollback(registry: RegistryOption = Path("registry"), name: NameOption = "student") -> None:
    """Serve the previous version of a model again."""
    from askd_ray.serve.registry import Registry

    console.print(f"{name}: version {Registry(registry).roll_back(name).name} is served from now on ({registry})")


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files.")],
    bundle: Annotated[Path, typer.Option(help="A bundle folder (askd export).")] = Path("runs/demo/bundle"),
    language: Annotated[str, typer.Option(help="Language of the speech.")] = "en",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="The device of the model; cuda is a GPU.")] = "cpu",
) -> None:
    """Transcribe audio files on this machine, without a server."""
    from askd_ray.serve import transcriber

    for file, text in transcriber.transcribe_files(bundle, files, language, device):
        console.print(f"{file}\t{text}" if len(files) > 1 else text, markup=False)


@app.command()
def presets() -> None:
    """List the values of objective.preset, with their formulas."""
    from askd_ray.config.presets import table

    console.print(table())


@app.command("plot-schedule")
def plot_schedule(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe or a YAML file.")] = "demo",
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="The file of the plot.")] = Path("schedule.png"),
) -> None:
    """Plot a recipe's weights a and b, its temperature T and AdaKD's k over the training, as PNG."""
    from askd_ray.objective import plot

    console.print(f"schedule in {plot.plot_schedule(load_recipe(recipe, set_ or ()), out)}")


@app.command("plot-runs")
def plot_runs(
    runs: Annotated[list[Path], typer.Argument(help="Folders of distilled runs, such as runs/demo.")],
    out: Annotated[Path, typer.Option(help="The file of the plot.")] = Path("runs.png"),
) -> None:
    """Plot the training of runs: teacher weight, cross-entropy, dev WER, as PNG."""
    from askd_ray.train import plot

    console.print(f"{len(runs)} runs in {plot.plot_runs(runs, out)}")


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(help="prepare, label, distill, tune, export or evaluate")],
    address: Annotated[str, typer.Option(help="URL of the cluster's dashboard.")] = "http://127.0.0.1:8265",
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Run a stage as a Ray job and print its log."""
    loaded = start_recipe(stage, recipe, set_ or ())
    from askd_ray import ray_jobs

    raise typer.Exit(ray_jobs.submit(stage, loaded, address))


@app.command()
def demo(
    recipe: RecipeOption = None,
    set_: SetOption = None,
    speech: Annotated[Path | None, typer.Option(help="A folder with a manifest; default: the IVR prompts.")] = None,
) -> None:
    """Run the whole pipeline on real speech: distil, compare with the teacher, serve, transcribe."""
    loaded = _recipe_of("demo", recipe, set_)
    from askd_ray import demo as pipeline

    pipeline.run_demo(loaded, None if speech is None else local_path(speech))


def _recipe_of(stage: str, given: str | None, overrides: list[str] | None, default: str = "demo") -> Recipe:
    """Return the recipe of a stage; check it before the stage's imports, which take seconds."""
    recipe = start_recipe(stage, given, overrides or (), default)
    Run(recipe).check_earlier(stage)
    if stage in ("label", "distill", "tune"):
        resolve(recipe.teacher.model)
        resolve(recipe.student.init or recipe.teacher.model)
    return recipe


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A user's mistake prints one line and exits with 2; --debug shows the traceback.

    Ctrl-C prints one line and exits with 130.
    """
    try:
        app(arguments, standalone_mode=True)
    except (AskdError, OSError, ModuleNotFoundError) as error:
        known = missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if known is None or os.environ.get("ASKD_DEBUG"):
            raise
        print(f"askd: {one_line(known)}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as error:
        if error.code == _INTERRUPTED:  # Typer turns a KeyboardInterrupt into this code
            print("askd: interrupted; finished work is kept: run the same command again to continue", file=sys.stderr)
        raise
