"""Each install profile of docs/install.md runs its commands, in an environment that holds what it installs."""

import ast
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections import defaultdict
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from askd_ray.cli import app

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(sysconfig.get_path("purelib"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What is imported late, and whose absence costs pictures, a tracker or a format, with a line that says so.
OPTIONAL = {"matplotlib", "mlflow", "pywhispercpp", "wordfreq"}


def profiles() -> dict[str, list[str]]:
    """Return the commands that each extra of the table in docs/install.md adds; "" is the plain install."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `askd-ray(?:\[(\w+)\])?` \| (.*?) \|", text, re.MULTILINE)
    return {extra: re.findall(r"`askd ([a-z -]+)`", commands) for extra, commands in rows}


PROFILES = profiles()


def commands_of(extra: str) -> list[str]:
    """Return the commands that an extra adds, with those of the extras that it includes."""
    included = {e for r in requirements(extra) if r.name == "askd-ray" for e in r.extras} | {extra}
    return [command for name in PROFILES if name in included for command in PROFILES[name]]


def requirements(extra: str) -> list[Requirement]:
    declared = PROJECT["dependencies"] if extra == "" else PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in declared]


@cache
def requirements_of(distribution: str) -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(distribution) or ()]


@cache
def installed_by(extra: str) -> set[str]:
    """Return the distributions that ``pip install askd-ray[extra]`` brings, as far as they are installed here."""
    waiting, found = [(r, "") for name in {"", extra} for r in requirements(name)], set[tuple[str, str]]()
    while waiting:
        requirement, for_extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": for_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            if name == "askd-ray":
                waiting += [(r, "") for r in requirements(extra)]
            else:
                waiting += [(r, extra) for r in requirements_of(name)]
    return {name for name, _ in found} - {"askd-ray"}


@cache
def installed_files() -> dict[str, dict[str, list[str]]]:
    """Return the files of every distribution here, by what lies in site-packages, and by distribution."""
    found = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for distribution in metadata.distributions(path=[str(SITE)]):
        name = canonicalize_name(distribution.name)
        for line in (distribution.read_text("RECORD") or "").splitlines():
            file = line.partition(",")[0].strip('"')
            found[file.partition("/")[0]][name].append(file)
    return {top: owners for top, owners in found.items() if top not in ("..", "__pycache__")}


def link_distributions(names: set[str], site: Path) -> None:
    """Fill ``site`` with links to the files of these distributions; in a folder that others share, file by file."""
    for top, owners in installed_files().items():
        if owners.keys() <= names:
            (site / top).symlink_to(SITE / top)
            continue
        for file in (file for name in owners.keys() & names for file in owners[name]):
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(SITE / file)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The interpreter of an environment for each profile, with this checkout's package in it."""
    made: dict[str, Path] = {}
    for extra in PROFILES:
        folder = tmp_path_factory.mktemp(extra or "plain")
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
        (site,) = (folder / "lib").glob("python*/site-packages")
        link_distributions(installed_by(extra), site)
        (site / "askd_ray").symlink_to(ROOT / "askd_ray")
        made[extra] = folder / "bin" / "python"
    return made


def imports_of(command: str) -> list[str]:
    """Return the import statements in the function of a command: they run only when it does."""
    found, words = app, command.split()
    for group in words[:-1]:
        (found,) = (g.typer_instance for g in found.registered_groups if g.name == group)
    (function,) = (
        c.callback
        for c in found.registered_commands
        if (c.name or getattr(c.callback, "__name__", "").replace("_", "-")) == words[-1]
    )
    assert function is not None
    tree = ast.parse(
        Path(inspect.getfile(function)).read_text(encoding="utf-8")
    )  # of cli.py, or of a group of commands
    name = getattr(function, "__name__", "")
    (node,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return [ast.unparse(n) for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]


PROBE = """
import json, sys
from askd_ray.cli import app
for command, imports in json.loads(sys.argv[1]).items():
    try:
        app([*command.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0, command
    for statement in imports:
        exec(statement)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("askd_ray."))))
"""

FIND = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if find_spec(n) is None))"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=600)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("extra", PROFILES)
def test_profile_has_the_imports_of_the_commands(extra: str, pythons: dict[str, Path], tmp_path: Path):
    commands = {command: imports_of(command) for command in commands_of(extra)}
    done = run(pythons[extra], "-c", PROBE, json.dumps(commands), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    modules = json.loads(done.stdout.splitlines()[-1])
    late = {name for module in modules for name in imported_late(module)}
    missing = run(pythons[extra], "-c", FIND, *sorted(late), cwd=tmp_path).stdout.split()
    assert set(missing) <= OPTIONAL


def imported_late(module: str) -> set[str]:
    """Return the packages of others that a module imports in its functions."""
    path = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse((path if path.is_file() else path.with_suffix("") / "__init__.py").read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = [node for function in functions for node in ast.walk(function)]
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"askd_ray"}


MISSING = """
import importlib, sys
from askd_ray.errors import missing_extra
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(missing_extra(error))
"""


@pytest.mark.full
@pytest.mark.slow
def test_missing_extra_is_a_one_line_error(pythons: dict[str, Path], tmp_path: Path):
    done = run(pythons[""], "-c", MISSING, "askd_ray.search.ray_tuner", "askd_ray.serve.ray_app", cwd=tmp_path)
    assert [
        re.findall(r"not installed: pip install 'askd-ray\[(\w+)\]'", line) for line in done.stdout.splitlines()
    ] == [
        ["tune"],
        ["serve"],
    ]
    for command, extra in ((["serve", "--bundle", "x"], "serve"), (["plot-schedule"], "plot")):
        done = run(pythons[""], "-m", "askd_ray", *command, cwd=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2
        assert f"not installed: pip install 'askd-ray[{extra}]'" in line


@pytest.mark.full
@pytest.mark.slow
def test_plain_install_transcribes(pythons: dict[str, Path], tmp_path: Path, weights: Path, speech: Path):
    clip = str(speech / "audio" / "activated.flac")
    done = run(pythons[""], "-m", "askd_ray", "transcribe", clip, "--bundle", str(weights), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "activated."


def test_every_command_has_a_profile():
    there = typer.main.get_command(app)
    commands = {
        f"{name} {inner}".strip()
        for name, command in there.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(command, "commands", [""])
    }
    listed = [command for commands in PROFILES.values() for command in commands]
    assert sorted(listed) == sorted(commands)
    assert {"", "serve", "tune", "demo"} <= PROFILES.keys()


@pytest.mark.parametrize("extra", [*PROFILES, "exports", "mlflow", "vocabulary"])
def test_constraints_pin_the_packages_of_a_profile(extra: str):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines if not line.startswith("#"))}
    brought = installed_by(extra)
    assert {"torch", "ray", "httpx", "faster-whisper"} <= brought
    assert {name: metadata.version(name) for name in brought} == {name: pins.get(name) for name in brought}


@pytest.mark.parametrize("file", ["Dockerfile", "ray-cluster.yaml"])
def test_cluster_nodes_can_run_every_stage(file: str):
    text = (ROOT / "cluster" / file).read_text(encoding="utf-8")
    (extras,) = re.findall(r"pip install .*'\.\[([\w,]+)\]'", text)
    assert {*PROFILES, "vocabulary"} - {"", "demo"} <= set(extras.split(","))
