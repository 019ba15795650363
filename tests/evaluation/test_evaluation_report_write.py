import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from parsed import Page, read_markdown
from reported import BETTER, EQUAL, NOISY, finish, model_rows, non_speech_rows, raw_rows, time_it, write_run

from askd_ray.cli import main
from askd_ray.errors import AskdError
from askd_ray.evaluation.report.write import report
from askd_ray.files import read_json
from askd_ray.results.headline import HEAD, headline
from askd_ray.runs import Run

pytestmark = pytest.mark.slow
SECTIONS = re.compile(r"^## (.*)", re.MULTILINE)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything that a report can tell of, and its report."""
    run = write_run(tmp_path_factory.mktemp("runs"), "small")
    with pytest.MonkeyPatch.context() as patch:
        timed = json.loads(json.dumps(time_it(run, patch)))
    rows = [*model_rows(run, BETTER | {"tiny": 0.5}, NOISY), *non_speech_rows(["teacher", "tiny", "student"])]
    finish(run, [*rows, *raw_rows(rows)], timed)
    assert report([str(run.path)]) == page_of(run)
    return run


def page_of(run: Run) -> Path:
    return run.path / "evaluate" / "report.html"


def html_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def markdown_of(page: Path) -> str:
    return page.with_suffix(".md").read_text(encoding="utf-8")


def test_page_and_markdown_say_the_same(full: Run):
    page = page_of(full)
    parsed, markdown = Page(html_of(page)), read_markdown(markdown_of(page))
    assert len(markdown.tables) > 10 and markdown.tables == parsed.seen.tables
    assert len(markdown.numbers) > 100 and markdown.numbers == parsed.seen.numbers


def test_every_section_is_there_and_its_plots_beside_it(full: Run):
    page = page_of(full)
    assert SECTIONS.findall(markdown_of(page)) == [
        "Verdict",
        "Word error rate by set",
        "In domain and out of domain",
        "Kinds of errors",
        "Hallucination in clips without speech",
        "Under noise and other conditions",
        "Calibration",
        "By length of the clip",
        "By speaker",
        "Speed and cost",
        "Worst utterances",
        "How to reproduce",
    ]
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", markdown_of(page), re.MULTILINE)
    assert len(pictures) == 7 == html_of(page).count("<svg")
    assert all((page.parent / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_headline_comes_first_with_both_paths(full: Run):
    head, first, *rows = read_markdown(markdown_of(page_of(full))).tables[0]
    assert head == list(HEAD) and [row[:2] for row in (first, *rows)] == [
        [model, path] for model in ("teacher", "student", "tiny") for path in ("served", "raw")
    ]
    scores = read_json(full.path / "evaluate" / "scores.json")
    assert [first, *rows] == [list(row) for row in headline(scores)]
    assert rows[1][-1] == "3 of 6 clips, 12.00 a minute" and rows[2][-2] == "51 of 51"  # raw, the student never ends


def test_a_section_needs_data(tmp_path: Path):
    run = write_run(tmp_path, "small", n=4)
    rows = [
        replace(row, hypothesis=row.reference, token_texts=None, token_probs=None) for row in model_rows(run, EQUAL)
    ]
    sections = SECTIONS.findall(markdown_of(report([str(finish(run, rows).path)])))
    assert sections == [
        "Verdict",
        "Word error rate by set",
        "In domain and out of domain",
        "Kinds of errors",
        "By length of the clip",
        "By speaker",
        "Speed and cost",
        "How to reproduce",
    ]


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("plots", "write"):
        monkeypatch.setattr(f"askd_ray.evaluation.report.{module}.can_draw", lambda: False)


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_tables_remain(full: Run, tmp_path: Path):
    page = report([str(full.path)], tmp_path / "report.html")
    assert "<svg" not in html_of(page) and "![" not in markdown_of(page)
    assert "pip install 'askd-ray\\[plot\\]'" in markdown_of(page)
    assert Page(html_of(page)).seen.tables == read_markdown(markdown_of(page)).tables


EVIL = """<script>alert(1)</script> <img src=x onerror="alert(2)"> </td></svg> & 'b' | *c* [d](http://e)"""


def test_texts_of_models_and_data_are_only_texts(tmp_path: Path):
    run = write_run(tmp_path, "small", normalizer="none")
    places = {"far": f"far/{EVIL}", "test": "test"}
    rows = [
        replace(row, hypothesis=EVIL, reference=f"{row.reference} {EVIL}", speaker=EVIL, set=places[row.set])
        for row in model_rows(run, {"teacher": 0.0, "student": 0.0}, {"telephone": 0.0})
    ]
    rows = [replace(row, hypothesis=row.reference) if row.model == "teacher" else row for row in rows]
    silent = [replace(row, hypothesis=EVIL) for row in non_speech_rows(["teacher", "student"])]
    page = report([str(finish(run, [*rows, *silent]).path)])
    parsed = Page(html_of(page))
    assert not {"script", "img", "iframe", "object", "link", "base"} & set(parsed.tags)
    assert EVIL in parsed.seen.text
    assert any(EVIL in cell for table in parsed.seen.tables for row in table for cell in row)
    markdown = markdown_of(page)
    assert re.search(r"(?<!\\)<", markdown) is None and re.search(r"(?<!\\)\]\(http", markdown) is None
    assert read_markdown(markdown).tables == parsed.seen.tables


@pytest.mark.usefixtures("no_matplotlib")
def test_several_runs_stand_beside_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    first, second = (write_run(tmp_path / "runs", name) for name in ("first", "second"))
    timed = json.loads(json.dumps(time_it(first, monkeypatch)))
    finish(first, model_rows(first, {"teacher": 0.3, "student": 0.05}, NOISY), timed)
    worse = [row for row in model_rows(second, {"teacher": 0.3, "student": 0.9}) if row.set == "test"]
    finish(second, worse, timed)
    page = report(["first", "second"])
    assert page == Path("report.html")
    markdown = markdown_of(page)
    answers = re.findall(r"Is the WER of (\w+) lower .* (in|out of) domain\? \*\*(\w+)", markdown)
    assert answers == [("first", "in", "Yes"), ("second", "in", "No")]
    assert "Left out: far, babble@15; " in markdown and "far, clean" in markdown
    (sets,) = [table for table in read_markdown(markdown).tables if table[0][:2] == ["set", "model"]][:1]
    assert [row[1] for row in sets[1:]] == ["teacher", "first", "second"]
    assert {"Speed and cost: first", "Worst utterances: second"} <= set(SECTIONS.findall(markdown))
    assert Page(html_of(page)).seen.tables == read_markdown(markdown).tables


def test_the_figures_can_be_repeated(full: Run):
    markdown = markdown_of(page_of(full))
    record: dict[str, Any] = full.record("evaluate") or {}
    for fact in (f"askd report {full.path}", "askd evaluate --recipe small.yaml", record["git_sha"]):
        assert fact in markdown
    assert all(f"{package} {version}" in markdown.replace("\\", "") for package, version in record["versions"].items())


@pytest.mark.usefixtures("no_matplotlib")
def test_a_run_that_was_moved(full: Run, tmp_path: Path):
    moved = shutil.copytree(full.path, tmp_path / "elsewhere")
    markdown = markdown_of(report([str(moved)]))
    assert markdown.startswith("# Evaluation of elsewhere\n")
    assert "no longer there" not in markdown  # its shards went with it


def test_mistakes_are_one_line(full: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(AskdError, match=r"no run 'nowhere'.*runs/nowhere"):
        report(["nowhere"])
    with pytest.raises(AskdError, match="must have different names"):
        report([str(full.path), str(full.path)])
    copy = shutil.copytree(full.path, tmp_path / "copy")
    (copy / "evaluate" / "hypotheses.parquet").unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(copy)])
    assert "run `askd evaluate` first" in capsys.readouterr().err


def test_the_command(full: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(full.path), "--out", str(tmp_path / "out" / "mine.html")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine", "mine.html", "mine.md"]
    assert "](mine/wer-by-set.png)" in (tmp_path / "out" / "mine.md").read_text()
