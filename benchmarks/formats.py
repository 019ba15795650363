"""Compares the formats of a student by their WER, each in its own engine: did a conversion change what it writes?

    python benchmarks/formats.py --student FOLDER [--formats ggml,onnx] [--data FOLDER] [--split dev] [--clips 100]
        [--trimmed] [--quick] [--json]

--student is a bundle, or a student's transformers folder (`distill/best` of a run), which is decoded in the window of
the default recipe. Formats that are not there are written into a temporary folder. --formats names the optional
formats; default: all of which the package is installed. --data has *-SPLIT*.parquet; without it the clips are IVR
prompts. --trimmed leaves out windows of 30 s, which take most of the time, and the formats that read only those.
--quick takes 10 clips and ends within 50 s on two cores.

Each reading of a format decodes trimmed windows, if it can, or 30 s, greedily, and is compared with the reference
(float16 weights in float32; of a CTC student float32) in the same windows: WER in percent; the loops, texts that repeat
themselves, which a service decodes again; the difference in points with its paired bootstrap, over the clips without a
loop in either, because one loop can have more errors than all other clips together; the words that differ from the
reference's in percent, and the clips in which some do. ``formats_ok``: no difference is above 0.5 points, and loops are
at most 1 % of the clips more than the reference's; null for fewer than 100 clips or 1,000 words, of which a few words
are more than 0.5 points.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import one_line_errors
from rich.table import Table
from speech_rows import clips as read_clips
from student_formats import MAX_DIFFERENCE, described, written

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.formats import FORMATS, Format, formats_to_write, is_available
from askd_ray.data.schema import Utterance
from askd_ray.evaluation.significance import compare as bootstrap
from askd_ray.evaluation.significance import draw
from askd_ray.models.decode_fallback import MAX_COMPRESSION_RATIO
from askd_ray.models.load import quiet_transformers
from askd_ray.progress import console
from askd_ray.text.error_rate import count_each, count_word_errors
from askd_ray.text.ngrams import compression_ratio
from askd_ray.text.normalize import normalizer

QUICK_CLIPS, MIN_CLIPS, MIN_WORDS = 10, 100, 1000
MAX_LOOPS = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--formats")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--trimmed", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reader, window = described(options.student)
    available = [form.name for form in FORMATS[reader] if is_available(form)]
    formats = formats_to_write(reader, available if options.formats is None else options.formats.split(","))
    clips = read_clips(options.data, QUICK_CLIPS if options.quick else options.clips, options.split)
    with TemporaryDirectory() as folder, quiet_transformers():
        windows = {"": window} if options.trimmed else {", 30 s": None, "": window}
        results = compare(formats, written(formats, options.student, Path(folder)), clips, windows)
    console.print(table(results, len(clips)))
    if options.json:
        ok = all(
            abs(one["difference"]) <= MAX_DIFFERENCE and one["more_loops"] <= MAX_LOOPS * len(clips)
            for one in results.values()
        )
        enough = len(clips) >= MIN_CLIPS and sum(len(clip.text.split()) for clip in clips) >= MIN_WORDS
        print(json.dumps({"formats_ok": ok if enough else None, "clips": len(clips), "formats": results}))


def compare(
    formats: Sequence[Format],
    folders: dict[str, Path],
    clips: Sequence[Utterance],
    windows: dict[str, DecodingWindow | None],
) -> dict[str, dict[str, Any]]:
    """Return the scores of every reading, by its label with the key of its window in ``windows``."""
    readings = [(folders[form.name], reading) for form in formats for reading in form.readings]
    normalizers = [normalizer(clip.language) for clip in clips]
    references = [normalize(clip.text) for normalize, clip in zip(normalizers, clips, strict=True)]
    results = dict[str, dict[str, Any]]()
    for suffix, window in windows.items():
        texts = dict[str, list[str]]()
        for folder, reading in readings:
            is_base = reading.compared_with is None
            if reading.trims if window is not None else reading.pads and (is_base or not reading.trims):
                console.print(f"decode with {reading.label}{suffix}")
                found = reading.transcribe(folder, clips, window)
                texts[reading.label] = [normalize(text) for normalize, text in zip(normalizers, found, strict=True)]
        base = [texts[r.label] for _, r in readings if r.compared_with is None and r.label in texts]
        for label, hypotheses in texts.items():
            results[label + suffix] = scores(references, hypotheses, base[0])
    sizes = {r.label: size_mb(folder) for folder, r in readings}
    return {name: {**one, "folder_mb": sizes[name.removesuffix(", 30 s")]} for name, one in results.items()}


def scores(references: Sequence[str], hypotheses: Sequence[str], base: Sequence[str]) -> dict[str, Any]:
    """Return the WER of hypotheses, and its difference to that of ``base``, with the interval of the difference."""
    counts = [count_each(references, of) for of in (hypotheses, base)]
    words = np.array([count.n_reference for count in counts[0]])
    errors = np.array([[count.errors for count in of] for of in counts]).T
    loops = np.array([[compression_ratio(text) > MAX_COMPRESSION_RATIO for text in of] for of in (hypotheses, base)])
    compared = ~loops.any(axis=0)
    difference = bootstrap(draw(errors[compared], words[compared], 0).rates, ("format", "base"), "base")
    of_format = difference["against_baseline"]["format"]
    return {
        "wer": percent(errors[:, 0].sum() / max(1, words.sum())),
        "loops": int(loops[0].sum()),
        "more_loops": int(loops[0].sum() - loops[1].sum()),
        "difference": percent(of_format["value"]),
        "difference_ci95": [percent(of_format["low"]), percent(of_format["high"])],
        "words_that_differ": percent(count_word_errors(base, hypotheses).rate),
        "clips_that_differ": sum(first != second for first, second in zip(hypotheses, base, strict=True)),
    }


def percent(share: float) -> float:
    return round(100 * share, 3)


def size_mb(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 1)


def table(results: dict[str, dict[str, Any]], n_clips: int) -> Table:
    shown = Table(title=f"{n_clips} clips")
    columns = ("WER, %", "loops", "difference, points", "95 %", "words that differ, %", "clips that differ", "MB")
    for name in ("format", *columns):
        shown.add_column(name, no_wrap=name == "format")
    for name, one in results.items():
        low, high = one["difference_ci95"]
        differ = one["words_that_differ"], one["clips_that_differ"]
        row = (one["wer"], one["loops"], one["difference"], f"{low} to {high}", *differ, one["folder_mb"])
        shown.add_row(name, *map(str, row))
    return shown


if __name__ == "__main__":
    one_line_errors.run(main)
