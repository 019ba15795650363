"""The end of a report: what it takes to get the same figures again."""

from collections.abc import Iterator, Mapping
from typing import Any

from askd_ray.config.load import dump_recipe
from askd_ray.errors import AskdError, without_credentials
from askd_ray.evaluate.hypotheses import HYPOTHESES
from askd_ray.evaluate.report.document import Block, Code, ReportSection, TableBlock, Text
from askd_ray.evaluate.report.runs import Evaluated
from askd_ray.evaluate.significance import N_DRAWS
from askd_ray.files import sha256_of_file
from askd_ray.runs import Run

_STAGES = ("prepare", "label", "distill", "export", "evaluate")


def repeat_section(evaluated: Evaluated) -> ReportSection:
    """Say which commands, recipe, code and versions gave the figures."""
    return ReportSection("How to repeat it", tuple(_blocks(evaluated)))


def _blocks(evaluated: Evaluated) -> Iterator[Block]:
    yield Text(
        f"Scores are made from the raw texts (normaliser: {evaluated.scores['normalizer']}; {N_DRAWS} bootstrap "
        "samples, seeded by the names of the sets), so this page can be made again without decoding anything:"
    )
    yield Code("The report", f"askd report {' '.join(str(run.path) for run in evaluated.runs.values())}")
    for name, run in evaluated.runs.items():
        yield from _run(name, run)


def _run(name: str, run: Run) -> Iterator[Block]:
    records = {stage: record for stage in _STAGES if (record := _record(run, stage))}
    commands = "\n".join(f"askd {stage} --recipe {name}.yaml" for stage in records)
    yield Code(f"{name}: from the data to the scores", commands)
    yield Code(f"{name}.yaml", without_credentials(dump_recipe(run.recipe)), folded=True)
    rows = [(f"askd {s}", f"{r['wall_s'] / 60:.1f}", r["git_sha"] or "unknown") for s, r in records.items()]
    yield TableBlock(f"{name}: when it was made", ("command", "minutes", "git SHA"), tuple(rows))
    versions = records["evaluate"]["versions"]
    yield TableBlock(
        f"{name}: made with",
        ("", "is"),
        (
            ("teacher", run.recipe.teacher.model),
            ("objective", run.recipe.objective.preset),
            ("seed of the training", str(run.recipe.seed)),
            ("versions", ", ".join(f"{package} {version}" for package, version in versions.items())),
            (f"SHA-256 of {HYPOTHESES}", sha256_of_file(run.path / "evaluate" / HYPOTHESES)),
        ),
    )


def _record(run: Run, stage: str) -> Mapping[str, Any] | None:
    """Return the record of a stage, or None: data of another run or on a store may be out of reach by now."""
    try:
        return run.record(stage)
    except (AskdError, OSError):
        return None
