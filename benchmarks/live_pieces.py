"""Live captions of a CTC student: are the joined pieces as good as one decoding of the turn, and what do they cost?

    python benchmarks/live_pieces.py --ctc FOLDER [--data FOLDER] [--split dev|train] [--clips N]
                                     [--hop S] [--left S] [--right S] [--quick] [--json]

--ctc takes the folder of a CTC student. Each clip is a turn, with silence after it; all are decoded in int8, on one
thread, in trimmed windows. Compared are one decoding, that of the service (doubtful texts are decoded again), and the
text of the joined pieces. Differences are paired, with the bootstrap over clips. --hop, --left and --right replace the
lengths of the service, in seconds. Without --data: the IVR prompts. --json prints one line of JSON.

"encoded" is how often a second of audio is encoded for the captions. Decoding the whole turn for every 0.2 s, as
captions of students with a decoder do, is in the last row, without times and texts.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import one_line_errors
from rich.table import Table
from speech_rows import clips

from askd_ray.audio.chunking import MAX_CHUNK_S
from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION, DecodingWindow, samples_of
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.significance import compare, draw
from askd_ray.models.ctc import is_ctc_student
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx
from askd_ray.models.decode_fallback import transcribe_with_fallback
from askd_ray.models.transcript import GREEDY, UnitPath
from askd_ray.progress import bar, console
from askd_ray.results.wer import Comparison
from askd_ray.serve.live import joined
from askd_ray.serve.live.turns import MIN_PARTIAL_S
from askd_ray.serve.transcription_service import SpeechEngine, TranscribeOptions
from askd_ray.text.error_rate import count_each
from askd_ray.text.normalize import normalizer

TRIMMED = DecodingWindow(silence_s=0.3)
N_CLIPS, QUICK_CLIPS = 180, 12
ONE, SERVED, PIECES = "one decoding", "one decoding, as served", "joined pieces"


@dataclass
class InProcessEngine:
    """Reads pieces in this process, and counts their audio."""

    engine: CtcEngine
    encoded_s: float = field(default=0.0)

    async def read_path(self, piece: Waveform, options: TranscribeOptions, owner: str) -> UnitPath:
        """Return the path through a piece."""
        self.encoded_s += duration_s(piece)
        return self.engine.read_paths([piece], options.language)[0]

    def caption(self, waveform: Waveform) -> str:
        """Return all that captions show of a turn, and of silence after it."""
        silence_s = (joined.LONG_PAUSE + joined.HOP + joined.RIGHT) * SAMPLES_PER_POSITION / SAMPLE_RATE_HZ
        turn = np.concatenate([waveform, np.zeros(samples_of(silence_s), np.float32)])
        reading = joined.JoinedPaths().read(cast(SpeechEngine, self), turn, TranscribeOptions("", "en"), "")
        return asyncio.run(reading)


def main() -> None:
    options = parse_options()
    if not is_ctc_student(options.ctc):
        raise AskdError(f"--ctc {options.ctc}: no CTC student there; `student.reader=ctc` trains one")
    for name in ("hop", "left", "right"):
        if (seconds := getattr(options, name)) is not None:
            setattr(joined, name.upper(), round(seconds * SAMPLE_RATE_HZ / SAMPLES_PER_POSITION))
    found = clips(options.data, QUICK_CLIPS if options.quick else options.clips, options.split)
    rows = [u for u in found if u.duration_s <= MAX_CHUNK_S]
    with tempfile.TemporaryDirectory() as scratch:
        write_onnx(options.ctc, Path(scratch) / "onnx", "int8")
        engine = CtcEngine(Path(scratch) / "onnx", threads=1, window=TRIMMED)
        pieces = InProcessEngine(engine)
        systems: dict[str, Callable[[Waveform], str]] = {
            ONE: lambda waveform: engine.transcribe([waveform])[0].text,
            SERVED: lambda waveform: transcribe_with_fallback(engine, [waveform], "en", GREEDY)[0].text,
            PIECES: pieces.caption,
        }
        texts: dict[str, list[str]] = {name: [] for name in systems}
        with bar("decode", len(rows), "clip") as progress:
            for row in rows:
                waveform = waveform_of(row)
                for name, decode in systems.items():
                    texts[name].append(decode(waveform))
                progress.advance()
    encoded = encodings(rows, pieces.encoded_s)
    compared = comparison(rows, texts)
    console.print(as_table(compared, encoded, rows, options.ctc))
    if options.json:
        print(json.dumps(summary(compared, encoded)))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ctc", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", choices=("dev", "train"), default="dev")
    parser.add_argument("--clips", type=int, default=N_CLIPS)
    for name in ("--hop", "--left", "--right"):
        parser.add_argument(name, type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def encodings(rows: Sequence[Utterance], pieces_s: float) -> dict[str, float]:
    """Return how often a second of audio is encoded: in pieces, and in whole turns for each 0.2 s of new audio."""
    total_s = sum(u.duration_s for u in rows)
    whole_s = sum(float(np.arange(MIN_PARTIAL_S, u.duration_s, MIN_PARTIAL_S).sum()) for u in rows)
    return {ONE: 1.0, SERVED: 1.0, PIECES: pieces_s / total_s, "whole turns": whole_s / total_s}


def comparison(rows: Sequence[Utterance], texts: dict[str, list[str]]) -> Comparison:
    """Return the WERs with their intervals, and the differences from one decoding."""
    normalize = normalizer("en")
    references = [normalize(u.text) for u in rows]
    counts = [count_each(references, [normalize(text) for text in of_system]) for of_system in texts.values()]
    errors = np.array([[count.errors for count in clip] for clip in zip(*counts, strict=True)])
    words = np.array([count.n_reference for count in counts[0]])
    return compare(draw(errors, words, 0).rates, list(texts), ONE)


def as_table(compared: Comparison, encoded: dict[str, float], rows: Sequence[Utterance], student: Path) -> Table:
    """Return the table of results."""
    seconds = sum(u.duration_s for u in rows)
    table = Table(title=f"{student}: {len(rows)} turns, {seconds:.0f} s")
    for column in ("", "encoded", "WER %", "difference from one decoding", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in encoded.items():
        cells = ["", "", ""]
        if name in compared["models"]:
            cells[0] = f"{100 * compared['models'][name]['wer']:.2f}"
        if name in compared["against_baseline"]:
            difference = compared["against_baseline"][name]
            cells[1] = f"{100 * difference['value']:+.2f}"
            cells[2] = f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}"
        table.add_row(name, f"{times:.1f}", *cells)
    return table


def summary(compared: Comparison, encoded: dict[str, float]) -> dict[str, Any]:
    """Return the line of JSON; WERs in percent, differences in points."""
    difference = compared["against_baseline"][PIECES]
    return {
        "wer": {name: round(100 * score["wer"], 3) for name, score in compared["models"].items()},
        "pieces_minus_one_decoding": round(100 * difference["value"], 3),
        "pieces_minus_one_decoding_ci95": [round(100 * difference[end], 3) for end in ("low", "high")],
        "encoded": {name: round(times, 2) for name, times in encoded.items()},
    }


if __name__ == "__main__":
    one_line_errors.run(main)
