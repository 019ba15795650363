"""`askd report`: the evaluation of one run, or a comparison of several runs, as a page and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from askd_ray.evaluation.report.document import Document, Figure, ReportSection, Text
from askd_ray.evaluation.report.html import to_html
from askd_ray.evaluation.report.markdown import to_markdown
from askd_ray.evaluation.report.plots import can_draw
from askd_ray.evaluation.report.repeat import repeat_section
from askd_ray.evaluation.report.robustness import robustness_sections
from askd_ray.evaluation.report.runs import Evaluated, find_run, read_evaluations
from askd_ray.evaluation.report.sections import verdict_section, word_error_sections
from askd_ray.evaluation.report.speed import speed_sections
from askd_ray.evaluation.report.worst import worst_sections
from askd_ray.files import atomic_path, local_path


def report(names_or_folders: Sequence[str], out: Path | None = None) -> Path:
    """Write the report of evaluated runs and return the page's path.

    ``out`` is the page's path. The default is ``evaluate/report.html`` in the folder of the run, and ``report.html`` in
    the current folder for several runs. Markdown (``report.md``) and plots (``report/*.png``) are written next to it.

    Raises :class:`AskdError` when a run does not exist or has not been evaluated, or runs have nothing in common.
    """
    runs = [find_run(name) for name in names_or_folders]
    default = runs[0].path / "evaluate" / "report.html" if len(runs) == 1 else Path("report.html")
    path = default if out is None else local_path(out)
    document = to_document(read_evaluations(runs))
    plots = path.with_suffix("")
    with atomic_path(plots) as folder:
        folder.mkdir()
        for block in (block for section in document.sections for block in section.blocks):
            if isinstance(block, Figure):
                (folder / f"{block.name}.png").write_bytes(block.png)
    for file, text in ((path.with_suffix(".md"), to_markdown(document, plots.name)), (path, to_html(document))):
        with atomic_path(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if out is None and len(runs) == 1:
        runs[0].send("evaluate")
    return path


def to_document(evaluated: Evaluated) -> Document:
    """Return the report, section by section; sections without data are left out."""
    sections = (
        verdict_section(evaluated),
        *word_error_sections(evaluated),
        *robustness_sections(evaluated),
        *speed_sections(evaluated),
        *worst_sections(evaluated),
        repeat_section(evaluated),
    )
    if not can_draw():
        why = "No plots: matplotlib is not installed (pip install 'askd-ray[plot]')."
        sections = (ReportSection(sections[0].title, (*sections[0].blocks, Text(why, remark=True))), *sections[1:])
    return Document(f"Evaluation of {', '.join(evaluated.runs)}", sections)
