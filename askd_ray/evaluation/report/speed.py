"""The part of a report about speed and cost: speed-up, latency by length, throughput, and the hardware."""

from collections.abc import Iterator, Mapping, Sequence

from askd_ray.evaluation.hypotheses import STUDENT
from askd_ray.evaluation.report.document import Answer, Block, ReportSection, TableBlock, Text
from askd_ray.evaluation.report.plots import Curve, Kinds, Panel, draw_panels, draw_points, interval
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.results.texts import count, latency, speedup
from askd_ray.results.timing import ModelSpeed, Speed

SpeedByModel = Mapping[str, ModelSpeed]
"""The entry ``models`` of a :class:`Speed`, with the models' names in the report."""

_COSTS = {
    "rtfx": "RTFx",
    "p50_ms": "latency p50, ms",
    "p95_ms": "latency p95, ms",
    "p99_ms": "latency p99, ms",
    "first_call_ms": "first call, ms",
    "open_s": "opening, s",
    "memory_mb": "peak memory, MB",
    "params_m": "parameters, M",
    "multiply_adds_g": "multiply-adds, G",
    "window": "window",
}


def speed_answers(evaluated: Evaluated) -> Iterator[Answer]:
    """Answer how many times as fast each student is as the reference of its speed measurement."""
    for student, run in evaluated.students.items():
        speed = evaluated.stored[run]["speed"]
        faster = speed["speedup"].get(student if len(evaluated.runs) == 1 else STUDENT)
        if faster is None:
            continue
        on = speed["hardware"]
        every, short = faster["all"], faster.get("short")
        answer = f"{every['value']:.1f}x"
        why = f"On the median of {count(speed['clips'], 'clip')} of all lengths: {speedup(every)}"
        if short and short["clips"] < speed["clips"]:
            answer += f"; {short['value']:.1f}x on short clips"
            why += (
                f". On {count(short['clips'], 'clip')} under {speed['short_s']:g} s: {speedup(short)}, "
                f"{latency(short['ms'])} against {latency(short['baseline_ms'])}"
            )
        yield Answer(
            f"How many times as fast as {speed['speedup_against']} is {student}?",
            answer,
            f"{why}. Measured on {on['cpu']} ({on['device']}, up to {count(on['threads'], 'thread')}), "
            f"{speed['decoding']}.",
            "good" if every["low"] > 1 else "bad" if every["high"] < 1 else "open",
        )


def speed_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield a section for each timed run, with all models of that measurement."""
    students = {run: student for student, run in evaluated.students.items()}
    order, alone = evaluated.scores["models"], len(evaluated.runs) == 1
    for number, (run, stored) in enumerate(evaluated.stored.items(), start=1):
        speed = stored["speed"]
        named = {students.get(run, model) if model == STUDENT else model: of for model, of in speed["models"].items()}
        models = {model: named[model] for model in sorted(named, key=lambda m: _place(order, m))}
        kinds = {**evaluated.kinds, **{model: model for model in models if model not in order}}
        blocks = (
            *_against_wer(evaluated, models, kinds, f"speed-and-wer-{number}"),
            *_costs(speed, models),
            *_latency(models, kinds, f"latency-{number}"),
            *_throughput(models),
        )
        yield ReportSection("Speed and cost" if alone else f"Speed and cost: {run}", blocks)


def _place(order: Sequence[str], model: str) -> int:
    return order.index(model) if model in order else len(order)


def _costs(speed: Speed, models: SpeedByModel) -> Iterator[Block]:
    on = speed["hardware"]
    yield Text(
        f"{on['cpu']}, {count(on['cores'], 'core')}, up to {count(on['threads'], 'thread')}, device {on['device']}; "
        f"{speed['decoding']}; {count(speed['clips'], 'clip')}, spread over all lengths. Each model ran in a separate "
        f"process; they were warmed up and took turns. {', '.join(f'{p} {v}' for p, v in speed['versions'].items())}."
    )
    rows = [
        (label, *(_figure(of.get(key)) for of in models.values()))
        for key, label in _COSTS.items()
        if any(key in of for of in models.values())
    ]
    yield TableBlock("Speed and cost, one clip at a time", ("", *models), tuple(rows))
    yield Text(
        "RTFx: seconds of audio transcribed per second. Multiply-adds: for a clip of 5 s in the model's window.",
        remark=True,
    )


def _against_wer(evaluated: Evaluated, models: SpeedByModel, kinds: Kinds, name: str) -> Iterator[Block]:
    """Draw latency against WER, in domain; a system that was timed and not scored is a line."""
    in_domain = evaluated.scores["in_domain"]
    if in_domain is None:
        return
    rates = in_domain["pooled"]["models"]
    points = {model: (of["p50_ms"], interval(rates[model])) for model, of in models.items() if model in rates}
    lines = {f"{model} (not scored)": of["p50_ms"] for model, of in models.items() if model not in rates}
    caption = "Latency of the median clip against WER in domain, with its 95 % interval: the best is at the lower left."
    yield from draw_points(name, caption, points, kinds, ("latency p50, ms", "WER, %"), lines)


def _latency(models: SpeedByModel, kinds: Kinds, name: str) -> Iterator[Block]:
    buckets = {model: of["by_duration"] for model, of in models.items()}
    lengths = [f"{b['from_s']:g} to {b['to_s']:g} s" for b in next(iter(buckets.values()))]
    curves = [
        Curve(model, range(len(lengths)), [b[key] for b in by_length], dashed=dashed)
        for model, by_length in buckets.items()
        for key, dashed in (("p50_ms", ""), ("p95_ms", "p95"))
    ]
    panel = Panel("", "length of the clip", "latency, ms", curves, dict(enumerate(lengths)))
    caption = "Latency by length of the clip: median (solid) and 95th percentile (dashed)."
    yield from draw_panels(name, caption, [panel], kinds)
    rows = [
        (
            f"{length} ({count(b[i]['clips'], 'clip')})",
            model,
            *(_figure(b[i][key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
        )
        for i, length in enumerate(lengths)
        for model, b in buckets.items()
    ]
    head = ("length", "model", "p50, ms", "p95, ms", "p99, ms")
    yield TableBlock("Latency by length of the clip", head, tuple(rows), n_labels=2)


def _throughput(models: SpeedByModel) -> Iterator[Block]:
    rates = {model: of["throughput"] for model, of in models.items() if of["throughput"]}
    sizes = list(dict.fromkeys(size for by_size in rates.values() for size in by_size))
    if sizes:
        rows = tuple((size, *(_figure(by_size.get(size)) for by_size in rates.values())) for size in sizes)
        yield TableBlock("Throughput: seconds of audio per second, by batch size", ("clips", *rates), rows)


def _figure(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
