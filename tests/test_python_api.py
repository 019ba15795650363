"""`import askd_ray as askd`: cheap to import, and everything that docs/python.md names."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import askd_ray as askd
from askd_ray import stages
from askd_ray.config.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("ctranslate2", "numpy", "pyarrow", "pydantic", "ray", "torch", "transformers")


def modules_after(code: str) -> set[str]:
    """Return the names of HEAVY that a fresh interpreter has loaded after some code."""
    check = f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert modules_after("import askd_ray") == set()
    help_text = "import contextlib, io\nfrom askd_ray.cli import app\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    assert modules_after(f"{help_text}    app(['--help'], standalone_mode=False)") <= {"pyarrow", "numpy", "pydantic"}


def test_stages_are_functions_also_when_all_modules_are_loaded():
    import askd_ray.bundles.bundle
    import askd_ray.evaluation.scores
    import askd_ray.objective.objective
    import askd_ray.search.trials  # noqa: F401

    for name in ("prepare", "label", "tune", "distill", "export", "evaluate"):
        assert getattr(askd, name) is getattr(stages, name)


def test_recipes_and_errors():
    recipe = askd.load_recipe("demo", ["name=mine"])
    assert isinstance(recipe, askd.Recipe) and askd.Recipe is Recipe and recipe.name == "mine"
    with pytest.raises(askd.AskdError, match="no recipe 'gone'"):
        askd.load_recipe("gone")
    with pytest.raises(AttributeError, match="has no attribute transcribe"):
        _ = askd.transcribe


def test_every_name_of_the_page_exists():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\baskd\.(\w+)", page))
    assert {"load", "load_recipe", "distill"} <= names <= set(dir(askd))
    assert set(askd.__all__) <= set(dir(askd))


@pytest.mark.slow
def test_load_and_transcribe(weights: Path, speech: Path):
    result = askd.load(str(weights), threads=1).transcribe(speech / "audio" / "activated.flac")
    assert result.text.strip(".").lower() == "activated" and result.words[0].start_s >= 0.0
