"""Verifies a bundle: its files are complete, and its formats give the same transcripts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from askd_ray.bundles.formats import formats_to_write
from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes
from askd_ray.models.description import reader_of, window_of
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer

_MAX_WER = 0.2  # between formats with the same weights: rounding may change a token, and then the text after it


def verify(bundle: Path, clips: Sequence[Utterance]) -> dict[str, Any]:
    """Check the files of a bundle, load every format and compare the transcripts of real clips.

    Only comparable pairs are compared, in equal windows: each reading of a format and the one that it names, in 30 s
    windows and in trimmed ones where both take them. ``agreement`` is the share of clips with the same normalised text,
    by pair; int8 weights may change words.

    Raises :class:`AskdError` for a missing or changed file, for a format that does not load, and when two with the same
    weights differ in more than a fifth of the words.
    """
    n_files = check_hashes(bundle)
    description = read_json(bundle / BUNDLE_FILE)
    window = window_of(description)
    formats = formats_to_write(reader_of(description), description.get("formats", ()))
    readings = [(bundle / form.name, reading) for form in formats for reading in form.readings]
    padded = {r.label: r.transcribe(folder, clips, None) for folder, r in readings if r.pads}
    trimmed = {r.label: r.transcribe(folder, clips, window) for folder, r in readings if r.trims}
    agreement: dict[str, float] = {}
    for _, reading in readings:
        if reading.compared_with is not None:
            pair = (reading.label, reading.compared_with)
            if reading.pads:
                agreement |= _compare(pair, padded, clips, reading.same_weights)
            if reading.trims:
                agreement |= _compare(pair, trimmed, clips, reading.same_weights, ", trimmed")
    return {"files": n_files, "clips": len(clips), "agreement": agreement}


def _compare(
    pair: tuple[str, str],
    texts: Mapping[str, Sequence[str]],
    clips: Sequence[Utterance],
    same_weights: bool,
    suffix: str = "",
) -> dict[str, float]:
    """Return the share of clips in which both formats have the same words, by the pair's name."""
    name = f"{pair[0]} and {pair[1]}{suffix}"
    normalizers = [normalizer(clip.language) for clip in clips]
    firsts, seconds = ([n(text) for n, text in zip(normalizers, texts[label], strict=True)] for label in pair)
    wer = count_word_errors(seconds, firsts).rate
    if same_weights and wer > _MAX_WER:
        raise AskdError(
            f"export: {name} differ in {min(wer, 1.0):.0%} of the words of {len(clips)} clips, although their weights "
            f"are the same; at most {_MAX_WER:.0%} is allowed: the conversion failed"
        )
    n_equal = sum(first == second for first, second in zip(firsts, seconds, strict=True))
    return {name: round(n_equal / len(clips), 4)}
