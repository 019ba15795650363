"""Everything that the pages name exists: commands, options, make targets, links, files. Their examples run."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from extending import example
from pydantic import BaseModel

from askd_ray.audio.decode import AudioError
from askd_ray.cli import app
from askd_ray.config import schedules
from askd_ray.config.load import load_recipe
from askd_ray.config.objective import JsdDivergence
from askd_ray.config.schedules import FallingWeight
from askd_ray.config.schema import Recipe
from askd_ray.config.section import Section
from askd_ray.config.source import Source
from askd_ray.data.sources import files, read
from askd_ray.divergence import kinds
from askd_ray.runs import Run
from askd_ray.serve.transcription import Segment

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TREE_LINE = re.compile(r"^([\s│├└─]*)(\S+)(.*)$")
NAME_IN_TREE = re.compile(r"(?<![\w./*-])[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|yaml|yml|toml|txt|sh|svg))(?![\w/*-])")


def code_of(text: str) -> list[str]:
    """Return the lines of fenced blocks (continued lines joined), and the inline code outside them."""
    blocks = [line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    return blocks + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands_in(text: str) -> list[list[str]]:
    """Return the words of every ``askd ...`` in code that names a command."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in code_of(text)]
    found = [match for line in lines for match in re.findall(r"(?:^|[\s(/])askd ([a-z-][^|&;>]*)", line)]
    return [re.sub(r"['\"]|\.\.\.", "", rest).split() for rest in found]


def trouble_with_command(words: list[str]) -> str | None:
    """Return what the command line does not know of ``askd WORDS...``, or None."""
    command, path = typer.main.get_command(app), "askd"
    options = {name for option in command.params for name in option.opts}
    for word in words:
        if word.startswith("-"):
            if word.partition("=")[0] not in options | {"--help"}:
                return f"{path} has no option {word}"
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return f"{path} has no command {word}"
            command, path = command.commands[word], f"{path} {word}"
            options |= {name for option in command.params for name in option.opts}
    return None


def trouble_with_overrides(words: list[str]) -> list[str]:
    """Return the keys after ``--set`` that no recipe has; ``a.b`` stands for any."""
    keys = [after.partition("=")[0] for word, after in itertools.pairwise(words) if word == "--set"]
    return [key for key in keys if key != "a.b" and not has_field(Recipe, key.split("."))]


def has_field(section: type[BaseModel], names: list[str]) -> bool:
    """Whether a recipe's section has the field, or the field of its section's section."""
    field = section.model_fields.get(names[0])
    if field is None or len(names) == 1:
        return field is not None
    return any(has_field(inner, names[1:]) for inner in sections_in(field.annotation))


def links_in(text: str) -> list[str]:
    """Return the targets of links and pictures that are no addresses, without their anchors."""
    plain = FENCE.sub("", text)
    targets = re.findall(r"\]\(([^)\s]+)", plain) + re.findall(r"(?:src|srcset|href)=\"([^\"\s]+)", plain)
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def missing_in_tree(tree: str, root: Path) -> list[str]:
    """Return the names in an indented tree that do not exist under ``root``.

    The first word of a line is an entry of the folder that the indentation says; other words that look like files or
    folders may lie beside it, in it, or at the root.
    """
    folders: list[tuple[int, Path]] = []
    missing: list[str] = []
    for line in filter(str.strip, tree.splitlines()):
        indent, name, rest = TREE_LINE.match(line).groups()  # type: ignore[union-attr]
        while folders and folders[-1][0] >= len(indent):
            folders.pop()
        parent = folders[-1][1] if folders else root
        here = root if not folders and name.rstrip("/") in (".", "askd-ray") else parent / name
        if not here.exists():
            missing.append(name)
        if name.endswith("/"):
            folders.append((len(indent), here))
        for other in NAME_IN_TREE.findall(rest):
            if not any((place / other).exists() for place in (parent, here, root)):
                missing.append(other)
    return missing


def trees_of(text: str) -> list[str]:
    """Return the fenced blocks that show the package's tree."""
    return [block for block in FENCE.findall(text) if re.search(r"^[\s│├└─]*askd_ray/", block, re.MULTILINE)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_named_exist(document: Path):
    text = document.read_text(encoding="utf-8")
    assert [trouble for words in commands_in(text) if (trouble := trouble_with_command(words))] == []
    assert [key for words in commands_in(text) for key in trouble_with_overrides(words)] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {name for line in code_of(text) for name in re.findall(r"(?:^|\s)make ([a-z-]+)", line)}
    assert named <= targets, f"no such make targets: {sorted(named - targets)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path):
    links = links_in(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_readme_is_short_and_names_commands():
    text = README.read_text(encoding="utf-8")
    assert len(commands_in(text)) >= 3 and len(text.split()) < 900


def test_contributing_shows_the_whole_tree():
    (tree,) = trees_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert missing_in_tree(tree, ROOT) == []
    folders = {path.name for path in (ROOT / "askd_ray").iterdir() if (path / "__init__.py").is_file()}
    assert sorted(name for name in folders if f"\n  {name}/" not in tree) == []


def test_the_divergence_of_extending(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kinds, "DIVERGENCES", {**kinds.DIVERGENCES})
    example("symmetric_kl")
    log_p, log_q = (torch.log_softmax(torch.tensor([row]), -1) for row in ([0.0, 1.0, 2.0], [1.0, 0.0, 0.5]))
    settings = JsdDivergence(beta=0.3).model_copy(update={"kind": "symmetric_kl"})
    expected = 0.3 * kinds.forward_kl(log_p, log_q) + 0.7 * kinds.forward_kl(log_q, log_p)
    torch.testing.assert_close(kinds.divergence(settings, log_p, log_q), expected)
    assert kinds.divergence(settings, log_p, log_p).item() == 0.0


def test_the_schedule_of_extending(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedules, "SHAPES", {**schedules.SHAPES})
    example("square_root")
    falling = FallingWeight(start=0.8, end=0.2).model_copy(update={"schedule": "square_root"})
    assert [schedules.weight_at(falling, u) for u in (0.0, 0.25, 1.0)] == pytest.approx([0.8, 0.5, 0.2])


def test_the_source_of_extending(tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch):
    kind: Any = "texts"
    text_files = re.compile(r".*\.txt")
    monkeypatch.setitem(read._READERS, kind, example("read_texts"))
    monkeypatch.setitem(files._FILE_NAMES, kind, files._FileNames(text_files, text_files, ".txt"))
    shutil.copy(speech / "audio" / "agent-loginok.flac", tmp_path / "test.flac")
    (tmp_path / "test.txt").write_text("Agent logged\nin.\n")
    (tmp_path / "lost.txt").write_text("A text without audio.\n")
    rows = list(read.read_rows(Source(path=str(tmp_path)).model_copy(update={"kind": kind})))
    assert {row.path: row.text for row in rows} == {
        "lost.flac": "A text without audio.",
        "test.flac": "Agent logged in.",
    }
    audio = {row.path: row for row in rows}
    assert audio["test.flac"].read_audio(30.0) == (tmp_path / "test.flac").read_bytes()
    with pytest.raises(AudioError, match="No such file"):
        audio["lost.flac"].read_audio(30.0)


def test_the_stage_of_extending(tmp_path: Path):
    count_words = example("count_words")
    recipe = load_recipe("demo", [f"runs_root={tmp_path}", "name=extended"])
    assert count_words(recipe) == count_words(recipe) == {"words": 3}
    assert Run(recipe).record("count_words") is not None


def test_the_event_of_extending():
    segment = Segment(" Hello.", 0.5, 1.0, (), 0.0, -0.1, 0.0)
    expected = '{"type": "transcript.text.segment", "start": 0.5, "end": 1.0, "text": " Hello."}'
    assert example("segment_event")(segment) == f"data: {expected}\n\n"


def without_meaning(section: type[BaseModel], path: str) -> list[str]:
    """Return the fields of a section, and of the sections in its fields, that have no docstring."""
    found = [f"{path}.{name}" for name, field in section.model_fields.items() if not field.description]
    for name, field in section.model_fields.items():
        found += [key for inner in sections_in(field.annotation) for key in without_meaning(inner, f"{path}.{name}")]
    return found


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def test_every_field_of_a_recipe_has_a_docstring():
    class Silent(Section):
        x: int = 0

    assert without_meaning(Silent, "silent") == ["silent.x"]
    assert without_meaning(Recipe, "recipe") == []


def test_the_recipe_page_is_current():
    script = [sys.executable, str(ROOT / "scripts" / "recipe_page.py"), "--check"]
    assert subprocess.run(script, cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "api.html", "extending.html", "recipe.html"} <= pages


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    tasks = (ROOT / "scripts" / "tasks.sh").read_text(encoding="utf-8")
    lint = re.findall(r'^    step \'lint: [^\']*\' (.*"\$PY" .*)$', tasks, re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == [line.replace('"$PY"', ".venv/bin/python") for line in lint]


def test_constraints_pin_versions_and_name_no_index():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len(pins) == len({re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in pins}) > 100


@pytest.mark.parametrize(
    ("words", "trouble"),
    [
        ("prepare --recipe mine.yaml --set data.dev_share=0.2", None),
        ("fetch speech ivr --force", None),
        ("--debug evaluate", None),
        ("evaluat", "askd has no command evaluat"),
        ("fetch music", "askd fetch has no command music"),
        ("prepare --recipes x", "askd prepare has no option --recipes"),
    ],
)
def test_the_check_of_commands(words: str, trouble: str | None):
    text = f"Askd prepares.\n```sh\n# askd nothing\n.venv/bin/askd {words}  # askd says\n```\nor `askd {words}`."
    assert commands_in(text) == [words.split()] * 2
    assert trouble_with_command(words.split()) == trouble


def test_the_check_of_overrides():
    words = "tune --set train.epochs=3 --set a.b=1 --set train.epoch=3 --set name.x=1 --set nothing=1".split()
    assert trouble_with_overrides(words) == ["train.epoch", "name.x", "nothing"]


def test_the_check_of_links():
    text = '[a](docs/a.md#x) ![b](docs/b.svg "B") [c](https://x.org) [d](#here) <img src="e.png">\n```\n[f](f.md)\n```'
    assert links_in(text) == ["docs/a.md", "docs/b.svg", "e.png"]


@pytest.mark.parametrize(
    "tree",
    [
        "askd_ray/\n    cli.py    commands\n    audio/    decode.py, gone.py: see docs/\njobs/\n    lost.py",
        "askd-ray/\n├── askd_ray/   x\n│   ├── cli.py\n│   └── audio/   decode.py gone.py\n└── jobs/\n    └── lost.py",
    ],
    ids=["indented", "drawn"],
)
def test_the_check_of_the_tree(tree: str, tmp_path: Path):
    for name in ("askd_ray/cli.py", "askd_ray/audio/decode.py", "docs/LOG.md", "jobs/stage.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert trees_of(f"text\n```text\n{tree}\n```\n") == [f"{tree}\n"]
    assert missing_in_tree(tree, tmp_path) == ["gone.py", "lost.py"]
