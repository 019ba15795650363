"""askd-ray: distil Whisper on a Ray cluster with adaptive self-knowledge distillation, evaluate and serve the student.

    import askd_ray as askd

    recipe = askd.load_recipe("demo", ["name=mine"])
    askd.prepare(recipe), askd.label(recipe), askd.distill(recipe), askd.export(recipe), askd.evaluate(recipe)
    print(askd.load("runs/mine/bundle").transcribe("speech.wav").text)

Importing the package loads none of torch, Ray or transformers: each name does that when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from askd_ray.config.load import load_recipe
    from askd_ray.config.schema import Recipe
    from askd_ray.errors import AskdError
    from askd_ray.serve.transcriber import Transcriber
    from askd_ray.serve.transcriber import Transcriber as load  # noqa: N813  # a class is a function that makes its objects
    from askd_ray.stages import distill, evaluate, export, label, prepare, tune

__version__ = "0.1.0"

__all__ = [
    "AskdError",
    "Recipe",
    "Transcriber",
    "distill",
    "evaluate",
    "export",
    "label",
    "load",
    "load_recipe",
    "prepare",
    "tune",
]

_STAGES = ("prepare", "label", "tune", "distill", "export", "evaluate")


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        from askd_ray import stages

        return getattr(stages, name)
    if name in ("load", "Transcriber"):
        from askd_ray.serve.transcriber import Transcriber

        return Transcriber
    if name == "Recipe":
        from askd_ray.config.schema import Recipe

        return Recipe
    if name == "load_recipe":
        from askd_ray.config.load import load_recipe

        return load_recipe
    if name == "AskdError":
        from askd_ray.errors import AskdError

        return AskdError
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
