"""The package keeps the rules of house_rules.py, and those rules catch what they should."""

import ast

import pytest
from house_rules import (
    FOLDERS,
    JOB_CHECKS,
    MAX_JOB_LINES,
    MAX_MODULE_LINES,
    PACKAGE_CHECKS,
    ROOT,
    check_file,
    check_tests_can_fail,
    too_long,
    violations,
)

FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "askd_ray").rglob("*.py"))
JOBS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "jobs").glob("*.py"))
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", FILES)
def test_the_package_keeps_the_rules(path: str):
    assert check_file(path, PACKAGE_CHECKS) == []


@pytest.mark.parametrize("path", JOBS)
def test_jobs_are_thin(path: str):
    assert check_file(path, JOB_CHECKS) == []


@pytest.mark.parametrize("path", TESTS)
def test_every_test_can_fail(path: str):
    assert violations(path, (ROOT / path).read_text(encoding="utf-8"), (check_tests_can_fail,)) == []


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_what_a_benchmark_imports_is_there(path: str):
    """Nothing else runs them: a function that was renamed in the package would be found out weeks later."""
    tree = ast.parse((ROOT / "benchmarks" / path).read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("askd_ray")]
    names = {(node.module or "", alias.name) for node in imports for alias in node.names}
    assert sorted(f"{module}.{name}" for module, name in names if not is_there(module, name)) == []


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_ends_with_one_line_after_a_mistake(path: str):
    """stock_server.py is not called by people: serve_latency.py starts it."""
    text = (ROOT / "benchmarks" / path).read_text(encoding="utf-8")
    guarded = text.endswith('if __name__ == "__main__":\n    one_line_errors.run(main)\n')
    assert guarded or "__main__" not in text or path == "stock_server.py"


def is_there(module: str, name: str) -> bool:
    """Whether a module of the package defines or imports a name, or is a folder with a module of that name."""
    place = ROOT / module.replace(".", "/")
    if (place / f"{name}.py").is_file() or (place / name / "__init__.py").is_file():
        return True
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    if not file.is_file():
        return False
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    imported = {alias.asname or alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    return name in defined | assigned | imported


def test_every_folder_has_its_place():
    folders = {path.parent.name for path in (ROOT / "askd_ray").glob("*/*.py")}
    assert folders == set(FOLDERS), "a folder of the package and LAYERS or ENDS of house_rules.py go together"
    assert [name for name in folders if not (ROOT / "askd_ray" / name / "__init__.py").is_file()] == []


LOOP, RAY = "askd_ray/train/loop.py", "askd_ray/train/ray_trainer.py"
DOC = '"""Doc."""\n'
BAD = {
    "ray in a plain module": (LOOP, "import ray.train", "only ray_*.py imports ray"),
    "ray in a function": (LOOP, "def f():\n    from ray import data", "only ray_*.py imports ray"),
    "ray by its name": (LOOP, "def f():\n    importlib.import_module('ray.data')", "only ray_*.py imports ray"),
    "a computed import": (LOOP, "def f(x):\n    importlib.import_module(x)", "relative or computed"),
    "a relative import": (LOOP, "from . import step", "relative or computed"),
    "ray through a ray_*.py": (LOOP, "from askd_ray.data.ray_stream import stream", "only ray_*.py, the command line"),
    "ray through a top-level module": (LOOP, "from askd_ray import ray_cluster", "only ray_*.py, the command line"),
    "upwards": ("askd_ray/data/shards.py", "from askd_ray.models import load", "data/shards may not import models"),
    "sideways": ("askd_ray/text/tokens.py", "import askd_ray.audio.units", "may not import audio"),
    "upwards, in a ray module": (RAY, "from askd_ray.search import space", "may not import search"),
    "evaluate imports train": (
        "askd_ray/evaluation/scores.py",
        "from askd_ray.train import loop",
        "may not import train",
    ),
    "serve imports targets": ("askd_ray/serve/a.py", "def f():\n    import askd_ray.targets", "may not import targets"),
    "bundles imports evaluation": (
        "askd_ray/bundles/a.py",
        "from askd_ray import evaluation",
        "may not import evaluation",
    ),
    "train imports serve": (LOOP, "from askd_ray.serve import engine", "may not import serve"),
    "a folder imports the demo": (LOOP, "from askd_ray.demo import run_demo", "may not import demo"),
    "config imports runs": ("askd_ray/config/load.py", "from askd_ray.runs import Run", "may not import runs"),
    "the base imports a folder": ("askd_ray/files.py", "from askd_ray.data import shards", "files may not import data"),
    "a ray base module imports a folder": ("askd_ray/ray_jobs.py", "from askd_ray.train import loop", "may not import"),
    "a Whisper in the loop": (LOOP, "from transformers import WhisperConfig", "by models/student.py only"),
    "a kind of student in the objective": (
        "askd_ray/objective/distiller.py",
        "from askd_ray.models.windows import WindowedWhisper",
        "by models/student.py only",
    ),
    "a long function": (LOOP, "def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
    "many parameters": (LOOP, "class C:\n    def f(self, a, b, c, d, e, g, h, *, i, j): pass", "f has 9 parameters"),
    "work at import": (LOOP, "MODEL = load('tiny')", "happens at import: load('tiny')"),
    "work inside a description": (LOOP, "MODELS = tuple(load(n) for n in NAMES)", "happens at import: load(n)"),
    "work in a class body": (LOOP, "class C:\n    device = best_device()", "happens at import: best_device()"),
    "an object that acts when made": (
        LOOP,
        "class E:\n    def __init__(self): load()\nENGINE = E()",
        "happens at import: E()",
    ),
    "work in a default": (LOOP, "def f(*, device=best_device()): pass", "happens at import: best_device()"),
    "a statement at import": (LOOP, "torch.set_num_threads(2)", "happens at import: torch.set_num_threads(2)"),
    "a branch at import": (LOOP, "if CUDA:\n    X = 1", "happens at import: if CUDA"),
    "pickle": (LOOP, "import pickle", "pickle can run what it reads"),
    "torch.load": (LOOP, "def f(p):\n    return torch.load(p)", "torch.load is banned"),
    "torch.load by its name": (LOOP, "from torch import load", "torch.load can run what it reads"),
    "a shell": (LOOP, "def f(c):\n    subprocess.run(c, shell=True)", "shell=True is banned"),
    "a bare except": (LOOP, "def f():\n    try:\n        g()\n    except:\n        pass", "swallows"),
    "a broad except": (
        LOOP,
        "def f():\n    try:\n        g()\n    except (OSError, Exception):\n        x = 1",
        "swallows",
    ),
}


@pytest.mark.parametrize("path, source, expected", BAD.values(), ids=BAD.keys())
def test_the_checks_catch(path: str, source: str, expected: str):
    (found,) = violations(path, DOC + source, PACKAGE_CHECKS)
    assert expected in found


GOOD = {
    "downwards": (LOOP, "from askd_ray.config.schema import Recipe\nfrom askd_ray.runs import Run\nimport raymond"),
    "ray where it belongs": (
        RAY,
        "import ray\nfrom askd_ray.ray_cluster import connect\nfrom askd_ray.data import ray_stream",
    ),
    "a kind of student where it is chosen": ("askd_ray/train/build.py", "from askd_ray.models.windows import encode"),
    "the command line": ("askd_ray/cli.py", "def f():\n    from askd_ray.serve import ray_app"),
    "descriptions": (
        LOOP,
        "import re\nX: int = 3\nR = re.compile('x')\nF = lambda: load()\nclass C:\n    y: list = field()",
    ),
    "a record of this file": (LOOP, "class R(NamedTuple):\n    x: int\nONE = {'one': R(1)}"),
    "an error that is used": (LOOP, "def f():\n    try:\n        g()\n    except Exception as e:\n        h(e)"),
    "an error that goes on": (
        LOOP,
        "def f():\n    try:\n        g()\n    except Exception:\n        undo()\n        raise",
    ),
    "a narrow except": (LOOP, "def f():\n    try:\n        g()\n    except OSError:\n        pass"),
}


@pytest.mark.parametrize("path, source", GOOD.values(), ids=GOOD.keys())
def test_the_checks_let_pass(path: str, source: str):
    assert violations(path, DOC + source, PACKAGE_CHECKS) == []


def test_the_checks_catch_a_missing_docstring():
    (found,) = violations(LOOP, "X = 1", PACKAGE_CHECKS)
    assert "no docstring" in found


def test_the_checks_catch_long_files():
    assert too_long(LOOP, "x\n" * MAX_MODULE_LINES) == []
    assert too_long(LOOP, "x\n" * (MAX_MODULE_LINES + 1)) != []
    assert too_long("jobs/stage.py", "x\n" * (MAX_JOB_LINES + 1)) != []


@pytest.mark.parametrize("body", ["run()", "assert True", "assert 1, 'never'", "x = [1]", "helper()"])
def test_the_checks_catch_a_test_that_cannot_fail(body: str):
    source = f"def helper():\n    pass\ndef test_x():\n    {body}"
    assert violations("tests/test_x.py", source, (check_tests_can_fail,)) == [
        "tests/test_x.py:3: test_x asserts nothing"
    ]


@pytest.mark.parametrize(
    "body", ["assert f() == 1", "with pytest.raises(E):\n        f()", "torch.testing.assert_close(a, b)"]
)
def test_the_checks_let_a_real_test_pass(body: str):
    assert violations("tests/test_x.py", f"def test_x():\n    {body}", (check_tests_can_fail,)) == []
    in_helper = f"def helper():\n    {body}\ndef test_x():\n    helper()"
    assert violations("tests/test_x.py", in_helper, (check_tests_can_fail,)) == []
