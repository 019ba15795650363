"""The model card: training, data, scores, usage and licence of a bundle, or of its repository on a model hub.

The front matter is that of Hugging Face's hub: huggingface_hub reads it as ModelCardData and EvalResult.
"""

from typing import Any

import yaml

from askd_ray.models.card_usage import usages
from askd_ray.models.description import BundleDescription, reader_of, window_of
from askd_ray.results.evaluation import Evaluation
from askd_ray.results.headline import HEAD, headline
from askd_ray.results.texts import difference, speed_verdicts, wer
from askd_ray.results.timing import Speed
from askd_ray.results.wer import domains

_BASE_MODELS = {"wheel:tiny.en": "openai/whisper-tiny.en", "wheel:base": "openai/whisper-base"}

_STUDENT = "student"
"""The name of a bundle's model in its evaluation."""
_TASK = {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"}
_TAGS = {"ggml": "whisper.cpp", "onnx": "transformers.js"}
"""The tags of model hubs for optional formats, by the format."""


def model_card(description: BundleDescription, repository: str | None = None) -> str:
    """Return the README.md of a bundle from its description, with the YAML front matter of model hubs.

    ``repository``: the hub id of a repository with the files of the bundle; its card says how to load them from there.
    """
    teacher = description["teacher"]
    base, ctc = _BASE_MODELS.get(teacher, teacher), reader_of(description) == "ctc"
    front: dict[str, Any] = {
        "language": description["languages"],
        "license": "other",
        "license_name": "teacher-and-data",
        "library_name": "onnx" if ctc else "transformers",
        "pipeline_tag": _TASK["type"],
        "tags": ["whisper", "distillation", "askd", *_format_tags(description)],
    }
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        front["base_model"] = base
    if description["scores"] is not None:
        front["model-index"] = [{"name": description["name"], "results": _results(description["scores"])}]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        _introduction(description, base),
        _scores(description["scores"]),
        _training(description),
        *usages(description, repository),
        _licence(description, base),
    ]
    return "\n\n".join(parts) + "\n"


def _format_tags(description: BundleDescription) -> list[str]:
    if reader_of(description) == "ctc":
        return ["ctc", "onnx"]
    return ["ctranslate2", *(tag for name, tag in _TAGS.items() if name in description.get("formats", []))]


def _results(scores: Evaluation) -> list[dict[str, Any]]:
    """Return the student's WERs as served, in percent, in the form of the hub's ``model-index``."""
    results = list[dict[str, Any]]()
    for name, one in scores["sets"].items():
        of = one["models"][_STUDENT]
        kind = "in domain" if one["in_domain"] else "out of domain"
        low, high = of["wer_ci95"]
        metric = {
            "type": "wer",
            "value": round(100 * of["wer"], 2),
            "name": f"WER in %, {100 * low:.2f} to {100 * high:.2f}, {one['utterances']} utterances",
        }
        results.append({"task": _TASK, "dataset": {"type": name, "name": f"{name} ({kind})"}, "metrics": [metric]})
    return results


def _introduction(description: BundleDescription, base: str) -> str:
    window, ctc = window_of(description), reader_of(description) == "ctc"
    at_least = f" (at least {window.min_s:g} s in all)" if window.min_s else ""
    kind = "The encoder of a Whisper with a CTC head in place of the decoder," if ctc else "A Whisper"
    others = "" if ctc else " Engines that always pad to 30 s run it too."
    return (
        f"# {description['name']}\n\n"
        f"{kind} of {description['params_m']:.1f} M parameters, distilled from {base} with adaptive self-knowledge "
        f"distillation (ASKD, arXiv 2601.19919) by askd-ray {description['versions'].get('askd-ray', '')}. It was "
        f"trained on *trimmed* windows: its encoder needs only the clip and {window.silence_s:g} s of "
        f"silence{at_least}, not 30 s, which is where most of its speed comes from.{others}{_vocabulary(description)}"
    )


def _vocabulary(description: BundleDescription) -> str:
    vocabulary = description.get("vocabulary")
    if vocabulary is None:
        return ""
    return (
        f" Its vocabulary has {vocabulary['text_tokens']:,} of the {vocabulary['of_teacher']:,} text tokens of its "
        "teacher: bytes, the most frequent tokens of its train texts, and tokens that are frequent in general. The "
        "others were cut, so its decoder is smaller; it writes their texts in pieces."
    )


def _scores(scores: Evaluation | None) -> str:
    if scores is None:
        return "## Scores\n\nNot evaluated yet: `askd evaluate` fills this in."
    models = scores["models"]
    lines = [
        "## Scores",
        "",
        "As served: with speech detection, chunks and a second decoding of doubtful transcripts; *raw* is one greedy "
        "decoding. WERs with their 95 % bootstrap interval. *In domain* is speech like that of the training.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(row)} |" for row in headline(scores)),
        "",
        "WER of each set in %, as served:",
        "",
        f"| | utterances | {' | '.join(models)} |",
        "|---|" + "---|" * (len(models) + 1),
    ]
    for name, one in scores["sets"].items():
        kind = "in domain" if one["in_domain"] else "out of domain"
        rates = " | ".join(wer(one["models"][model]) for model in models)
        lines.append(f"| {name} ({kind}) | {one['utterances']} | {rates} |")
    return "\n".join([*lines, "", *_differences(scores), *_speed(scores["speed"])])


def _differences(scores: Evaluation) -> list[str]:
    scored = domains(scores)
    lines = [
        f"- {place.capitalize()}, mean of the sets: WER of {name} minus {scores['baseline']}: {difference(of)}."
        for place, domain in scored.items()
        for name, of in domain["macro"]["against_baseline"].items()
    ]
    missing = [place for place in ("in domain", "out of domain") if place not in scored]
    return lines + [
        f"- {place.capitalize()}: not scored: measure on your own speech before you rely on it." for place in missing
    ]


def _speed(speed: Speed) -> list[str]:
    where = f"up to {speed['hardware']['threads']} threads of {speed['hardware']['cpu']}"
    lines = [f"- {line}, one at a time, on {where}." for line in speed_verdicts(speed)]
    return [*lines, *(f"- {name}: RTFx {m['rtfx']:.1f}, {m['memory_mb']} MB." for name, m in speed["models"].items())]


def _training(description: BundleDescription) -> str:
    data, objective = description["data"], description["objective"]
    teacher, self_teacher = objective["teacher_weight"], objective["self_teacher"]
    by_domain = ", ".join(f"{name} ({n})" for name, n in data["domains"].items())
    weight = f"is {teacher['start']:g} throughout"
    if teacher["schedule"] != "constant":
        weight = f"goes {teacher['schedule']} from {teacher['start']:g} to {teacher['end']:g}"
    self_kd = "off"
    if self_teacher["kind"] != "none":
        self_kd = f"{self_teacher['weight']:g} from {self_teacher['switch']:.0%} of the run on"
    kinds = {"crop": "short", "stitched": "long", "non_speech": "without speech"}
    task = "CTC" if reader_of(description) == "ctc" else "CE"
    derived = ", ".join(f"{n} {kinds[kind]}" for kind, n in data.get("derived", {}).items())
    return (
        "## Training\n\n"
        f"- Data: {data['utterances']} utterances, {data['hours']:.2f} hours; domains: {by_domain}. "
        f"Clips made of them: {derived or 'none'}.\n"
        f"- Objective: `a * KD + b * self-KD + (1 - a - b) * {task}`, {description['epochs']} epochs; the teacher's "
        f"weight `a` {weight}; the self-teacher's `b` is {self_kd}.\n"
        "- The whole recipe: recipe.yaml. Versions and hashes: bundle.json."
    )


def _licence(description: BundleDescription, base: str) -> str:
    lines = [f"- {licence}: {n} utterances" for licence, n in description["data"]["licences"].items()]
    return (
        "## Licence and attribution\n\n"
        f"The weights derive from {base} and keep its licence's conditions (OpenAI's Whisper models: MIT). They were "
        "trained on data under:\n\n" + "\n".join(lines) + "\n\nLicence texts and attributions that came with either "
        "are in licences/."
    )
