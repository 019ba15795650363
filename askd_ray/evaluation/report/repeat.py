"""The end of a report: how to reproduce its numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from askd_ray.config.load import dump_recipe
from askd_ray.errors import AskdError, without_credentials
from askd_ray.evaluation.hypotheses import HYPOTHESES
from askd_ray.evaluation.report.document import Block, Code, ReportSection, TableBlock, Text
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.evaluation.significance import N_DRAWS
from askd_ray.files import sha256_of_file
from askd_ray.runs import Run

_STAGES = ("prepare", "label", "distill", "export", "evaluate")


def repeat_section(evaluated: Evaluated) -> ReportSection:
    """Return the commands, recipe, code and versions behind the numbers."""
    return ReportSection("How to reproduce", tuple(_blocks(evaluated)))


def _blocks(evaluated: Evaluated) -> Iterator[Block]:
    yield Text(
        f"Scores are computed from the raw texts (normaliser: {evaluated.scores['normalizer']}; {N_DRAWS} bootstrap "
        "samples, seeded by the names of the sets). So this command writes the page again without decoding:"
    )
    yield Code("The report", f"askd report {' '.join(str(run.place) for run in evaluated.runs.values())}")
    for name, run in evaluated.runs.items():
        yield from _run(name, run)


def _run(name: str, run: Run) -> Iterator[Block]:
    records = {stage: record for stage in _STAGES if (record := _record(run, stage))}
    commands = "\n".join(f"askd {stage} --recipe {name}.yaml" for stage in records)
    yield Code(f"{name}: from the data to the scores", commands)
    yield Code(f"{name}.yaml", without_credentials(dump_recipe(run.recipe)), folded=True)
    rows = [(f"askd {s}", f"{r['wall_s'] / 60:.1f}", r["git_sha"] or "unknown") for s, r in records.items()]
    yield TableBlock(f"{name}: time and code of each command", ("command", "minutes", "git SHA"), tuple(rows))
    versions = records["evaluate"]["versions"]
    yield TableBlock(
        f"{name}: settings and versions",
        ("", "value"),
        (
            ("teacher", run.recipe.teacher.model),
            ("objective", run.recipe.objective.preset),
            ("seed of the training", str(run.recipe.seed)),
            ("versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
            (f"SHA-256 of {HYPOTHESES}", sha256_of_file(run.path / "evaluate" / HYPOTHESES)),
        ),
    )


def _record(run: Run, stage: str) -> Mapping[str, Any] | None:
    """Return the record of a stage, or None: data of another run or on a store may not be available now."""
    try:
        return run.record(stage)
    except (AskdError, OSError):
        return None
