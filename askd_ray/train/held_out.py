"""The part of a training's report with the scores on held-out speech."""

from collections.abc import Mapping
from typing import Any

from askd_ray.results.audio_use import audio_use_table
from askd_ray.results.evaluation import checked
from askd_ray.results.headline import HEAD, headline
from askd_ray.results.texts import markdown_table, speed_verdicts, wer
from askd_ray.runs import Run


def held_out(record: Mapping[str, Any] | None, run: Run) -> list[str]:
    """Return the part of the record of an evaluation; nothing without a record."""
    if record is None:
        return []
    if "pools" in record["result"]:  # of an LLM student
        text = "Nats a reference token with the clip's audio, that of another clip, and none (95 %); WER in %."
        return ["## Held-out", text, markdown_table(*audio_use_table(record["result"]))]
    scores = checked(record["result"], f"run {run.recipe.name}, record of the evaluation")
    models = scores["models"]
    rows = [
        (name, "in" if one["in_domain"] else "out", one["utterances"], *(wer(one["models"][m]) for m in models))
        for name, one in scores["sets"].items()
    ]
    return [
        "## Held-out",
        "WER in %, with its 95 % interval; *raw* is one greedy decoding. `askd report` shows more.",
        markdown_table(HEAD, headline(scores)),
        markdown_table(("set", "domain", "utterances", *models), rows),
        *(f"{line}." for line in speed_verdicts(scores["speed"])),
    ]
