"""The middle of a report: conditions of the audio, clips without speech, calibration, length of clips, speakers."""

from collections.abc import Iterator, Sequence

from askd_ray.evaluation.calibration import expected_calibration_error
from askd_ray.evaluation.report.document import (
    Block,
    Figure,
    ReportSection,
    TableBlock,
    Text,
)
from askd_ray.evaluation.report.plots import Curve, Kinds, Panel, draw_bars, draw_panels, interval
from askd_ray.evaluation.report.runs import Evaluated
from askd_ray.results.texts import count, difference_cell, percent, wer
from askd_ray.results.wer import Bin, ConditionScores, DurationScores, Scores, by_path, domains

_NOISES = {"white": "white noise", "babble": "babble of other speakers", "noise": "recorded noise"}
_MAX_TEXTS = 12


def robustness_sections(evaluated: Evaluated) -> Iterator[ReportSection]:
    """Yield the sections with data."""
    scores, kinds = evaluated.scores, evaluated.kinds
    if scores["non_speech"] is not None:
        yield ReportSection("Hallucination in clips without speech", tuple(_non_speech(scores)))
    if scores["conditions"]:
        yield ReportSection("Under noise and other conditions", tuple(_conditions(scores, kinds)))
    bins = _bins_by_domain(scores)
    if bins:
        yield ReportSection("Calibration", tuple(_calibration(bins, kinds)))
    yield ReportSection("By length of the clip", tuple(_durations(scores, kinds)))
    speakers = tuple(_speakers(scores))
    if speakers:
        yield ReportSection("By speaker", speakers)


def _non_speech(scores: Scores) -> Iterator[Block]:
    hallucinations = scores["non_speech"]
    assert hallucinations is not None
    clips = f"{count(hallucinations['clips'], 'clip')}, {hallucinations['minutes']:.1f} min"
    of_models = [
        (model, path, of["non_speech"]["models"][model])
        for model in scores["models"]
        for path, of in by_path(scores).items()
        if of["non_speech"] is not None and model in of["models"]
    ]
    rows = [
        (
            model,
            path,
            f"{m['clips_with_words']} ({percent(m['share_with_words'])} %)",
            f"{m['words_per_minute']:.2f}",
            str(m["runaways"]),
        )
        for model, path, m in of_models
    ]
    head = ("model", "path", "clips with words", "words per minute", "runaways")
    yield TableBlock(f"Hallucination: words in {clips} without speech; 0 is correct", head, tuple(rows), n_labels=2)
    kinds = list(hallucinations["models"][scores["baseline"]]["by_kind"])
    rows = [
        (kind, model, path, f"{m['by_kind'][kind]['clips_with_words']} of {m['by_kind'][kind]['clips']}")
        for kind in kinds
        for model, path, m in of_models
    ]
    head = ("kind", "model", "path", "clips with words")
    yield TableBlock("Clips with words, by kind of sound", head, tuple(rows), n_labels=3)
    rows = [
        (model, path, kind, text["text"])
        for model, path, m in of_models
        for kind in kinds
        for text in m["by_kind"][kind]["texts"][:_MAX_TEXTS]
    ]
    if rows:
        caption = f"The hallucinated texts, at most {_MAX_TEXTS} per kind, model and path"
        yield TableBlock(caption, ("model", "path", "kind", "text"), tuple(rows), n_labels=3)


def _conditions(scores: Scores, kinds: Kinds) -> Iterator[Block]:
    by_kind: dict[str, dict[float, ConditionScores]] = {}
    others: dict[str, ConditionScores] = {}
    for name, one in scores["conditions"].items():
        kind, _, level = name.partition("@")
        if kind in _NOISES:
            by_kind.setdefault(kind, {})[float(level)] = one
        else:
            others[name] = one
    if by_kind:
        yield from _noise_curves(by_kind, kinds)
    if others:
        bars = {name: {model: interval(one["models"][model]) for model in kinds} for name, one in others.items()}
        yield from draw_bars("wer-by-condition", "WER with changed audio, 95 % intervals.", bars, kinds, "WER, %")
    rows: list[tuple[str, ...]] = []
    for name, one in scores["conditions"].items():
        for model in scores["models"]:
            against = one["against_baseline"].get(model)
            wers = percent(one["clean_wer"][model]), wer(one["models"][model])
            compared = "" if against is None else difference_cell(against)
            rows.append((f"{name} ({count(one['words'], 'word')})", model, *wers, compared))
    head = ("condition", "model", "clean WER, %", "WER, % (95 %)", f"against {scores['baseline']}, points (95 %)")
    yield TableBlock("The same utterances, clean and changed; all sets, word-weighted", head, tuple(rows), n_labels=2)
    yield Text(
        "white, babble, noise @ dB: signal-to-noise ratio. clip @ dB: peaks are cut by this many dB.", remark=True
    )


def _noise_curves(by_kind: dict[str, dict[float, ConditionScores]], kinds: Kinds) -> tuple[Figure, ...]:
    panels = list[Panel]()
    for kind, by_level in by_kind.items():
        levels = sorted(by_level)
        clean_at = levels[-1] + 5
        curves = list[Curve]()
        for model in kinds:
            wers = [interval(by_level[level]["models"][model]) for level in levels]
            clean = 100 * by_level[levels[-1]]["clean_wer"][model]
            y = [*(w.value for w in wers), clean]
            curves.append(Curve(model, [*levels, clean_at], y, [(w.low, w.high) for w in wers]))
        ticks = {**{level: f"{level:g}" for level in levels}, clean_at: "clean"}
        panels.append(Panel(_NOISES[kind], "signal-to-noise ratio, dB", "WER, %", curves, ticks))
    return draw_panels(
        "wer-by-noise",
        "WER under noise with 95 % bands, and the WER of the same utterances without noise.",
        panels,
        kinds,
    )


def _bins_by_domain(scores: Scores) -> dict[str, dict[str, list[Bin]]]:
    """Return the reliability of each model over the sets of a domain, for models that return token probabilities."""
    by_domain: dict[str, dict[str, list[Bin]]] = {}
    for place, domain in domains(scores).items():
        for model in scores["models"]:
            bins = _pooled([b for name in domain["sets"] for b in scores["sets"][name]["models"][model]["reliability"]])
            if bins:
                by_domain.setdefault(place, {})[model] = bins
    return by_domain


def _pooled(bins: Sequence[Bin]) -> list[Bin]:
    pooled = list[Bin]()
    for low in sorted({b["low"] for b in bins}):
        alike = [b for b in bins if b["low"] == low]
        tokens = sum(b["tokens"] for b in alike)
        pooled.append(
            {
                "low": low,
                "high": alike[0]["high"],
                "tokens": tokens,
                "confidence": sum(b["tokens"] * b["confidence"] for b in alike) / tokens,
                "accuracy": sum(b["tokens"] * b["accuracy"] for b in alike) / tokens,
            }
        )
    return pooled


def _calibration(by_domain: dict[str, dict[str, list[Bin]]], kinds: Kinds) -> Iterator[Block]:
    panels = [
        Panel(
            place,
            "confidence of the token, %",
            "correct tokens, %",
            [
                Curve(model, [100 * b["confidence"] for b in bins], [100 * b["accuracy"] for b in bins])
                for model, bins in by_model.items()
            ],
            diagonal=True,
        )
        for place, by_model in by_domain.items()
    ]
    caption = "Reliability: on the dotted line, confidence equals accuracy; below it, a model is overconfident."
    yield from draw_panels("calibration", caption, panels, kinds)
    rows = [
        (place, model, str(sum(b["tokens"] for b in bins)), f"{expected_calibration_error(bins):.3f}")
        for place, by_model in by_domain.items()
        for model, bins in by_model.items()
    ]
    head = ("domain", "model", "tokens", "ECE")
    yield TableBlock("Expected calibration error, all tokens of the sets", head, tuple(rows), n_labels=2)


def _durations(scores: Scores, kinds: Kinds) -> Iterator[Block]:
    rows = list[tuple[str, ...]]()
    panels = list[Panel]()
    for place, domain in domains(scores).items():
        by_model = {
            model: _pooled_durations(
                [b for name in domain["sets"] for b in scores["sets"][name]["models"][model]["by_duration"]]
            )
            for model in scores["models"]
        }
        buckets = by_model[scores["baseline"]]
        names = [f"{b['low_s']:g} to {b['high_s']:g} s" if b["high_s"] else f"over {b['low_s']:g} s" for b in buckets]
        for i, name in enumerate(names):
            size = f"{name} ({count(buckets[i]['utterances'], 'utterance')}, {count(buckets[i]['words'], 'word')})"
            rows += [(place, size, model, percent(b[i]["wer"])) for model, b in by_model.items()]
        curves = [_by_length(model, b) for model, b in by_model.items()]
        panels.append(Panel(place, "length of the clip", "WER, %", curves, dict(enumerate(names))))
    yield from draw_panels("wer-by-length", "WER by length of the clip, all words of the sets.", panels, kinds)
    yield TableBlock("WER by length of the clip, %", ("domain", "length", "model", "WER, %"), tuple(rows), n_labels=3)


def _by_length(model: str, buckets: Sequence[DurationScores]) -> Curve:
    known = [(float(i), 100 * b["wer"]) for i, b in enumerate(buckets) if b["wer"] is not None]
    return Curve(model, [x for x, _ in known], [y for _, y in known])


def _pooled_durations(buckets: Sequence[DurationScores]) -> list[DurationScores]:
    pooled = list[DurationScores]()
    for low_s in sorted({b["low_s"] for b in buckets}):
        alike = [b for b in buckets if b["low_s"] == low_s]
        words = sum(b["words"] for b in alike)
        errors = sum(round((b["wer"] or 0.0) * b["words"]) for b in alike)
        pooled.append(
            {
                "low_s": low_s,
                "high_s": alike[0]["high_s"],
                "utterances": sum(b["utterances"] for b in alike),
                "words": words,
                "wer": errors / words if words else None,
            }
        )
    return pooled


def _speakers(scores: Scores) -> Iterator[Block]:
    rows = list[tuple[str, ...]]()
    for name, one in scores["sets"].items():
        for model, m in one["models"].items():
            speakers = m["by_speaker"]
            if speakers is not None:
                worst = ", ".join(f"{s['speaker']} {percent(s['wer'])} % of {s['words']}" for s in speakers["worst"])
                rows.append((name, model, str(speakers["speakers"]), percent(speakers["macro_wer"]), worst))
    if rows:
        head = ("set", "model", "speakers", "mean of their WERs, %", "worst speakers: WER of words")
        yield TableBlock("WER by speaker: with few speakers, the intervals above are too narrow", head, tuple(rows), 2)
