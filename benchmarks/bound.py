"""Does the bound by CTC help? Texts of a hybrid student with and without it, where nobody speaks and on short clips.

    python benchmarks/bound.py --student FOLDER [--data FOLDER] [--split dev|train] [--noise PATTERN] [--clips N]
                               [--quick] [--json]

--student takes the folder of a hybrid student (a Whisper with ctc_head.safetensors). Its decoder writes greedy texts,
in int8, in trimmed windows, without a second decoding of doubtful texts. The bound (askd_ray/models/bound.py) limits
the tokens of a text by what CTC wrote, so a bounded text is the beginning of the text without a bound; the table has
the bound of the package and others. A runaway is a text that does not end before the limit of its window. "Lost" are
clips with speech whose text the bound makes empty. The last row is CTC alone.

Clips without speech are those of `askd evaluate`, with --noise PATTERN for recorded noises. Clips with speech come from
--data, a folder of Parquet files, or the IVR prompts: up to --clips below 2 s, and as many longer ones. --quick takes a
few of each. --json prints one line of JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import one_line_errors
import torch
from rich.table import Table
from speech_rows import clips

from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.non_speech import non_speech_clips
from askd_ray.models.bound import MARGIN, MIN_SLACK, token_limit
from askd_ray.models.ctc import HEAD_FILE
from askd_ray.models.draft import Draft
from askd_ray.models.draft_engine import DraftEngine
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.progress import bar, console
from askd_ray.results.texts import percent
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import Tokens, max_tokens

TRIMMED = DecodingWindow(silence_s=0.3)
SHORT_S = 2.0
N_CLIPS, QUICK_CLIPS = 200, 10
ALL_CLIPS = 1_000_000
BOUNDS = ((MARGIN, MIN_SLACK), (1.0, 0), (1.2, 4), (2.0, 8), (3.0, 16))  # margin and slack
NO_BOUND, CTC = "none", "CTC alone"


@dataclass(frozen=True)
class Written:
    """The greedy text of a clip without a bound, in tokens, and what CTC wrote."""

    token_ids: tuple[int, ...]
    draft: Draft
    window_s: float

    def bounded(self, name: str) -> tuple[int, ...]:
        """Return the tokens of the text with a bound."""
        if name == NO_BOUND:
            return self.token_ids
        if name == CTC:
            return self.draft.token_ids
        margin, slack = next(bound for bound in BOUNDS if name_of(*bound) == name)
        return self.token_ids[: token_limit(self.draft, self.window_s, margin, slack)]


def name_of(margin: float, slack: int) -> str:
    """Return what the table calls a bound."""
    return f"{margin:g} x CTC + {slack}"


NAMES = (NO_BOUND, *(name_of(*bound) for bound in BOUNDS), CTC)


def write(engine: DraftEngine, waveform: Waveform) -> Written:
    """Decode a clip without a bound."""
    clip = engine.encode(waveform)
    assert clip.draft is not None
    return Written(engine.greedy(clip).token_ids, clip.draft, clip.window_s)


def non_speech_scores(found: Sequence[Written], minutes: float, tokens: Tokens, name: str) -> dict[str, float]:
    """Return what is written where nobody speaks."""
    normalize = normalizer("en")
    words = [len(normalize(tokens.decode(list(w.bounded(name)))).split()) for w in found]
    return {
        "words_per_minute": sum(words) / minutes,
        "clips_with_words": sum(n > 0 for n in words),
        "runaways": sum(is_runaway(w, name) for w in found),
    }


def speech_scores(
    found: Sequence[Written], rows: Sequence[Utterance], tokens: Tokens, name: str
) -> dict[str, float | None]:
    """Return how the speech is written; the WER is None without clips."""
    references = [normalizer(u.language)(u.text) for u in rows]
    texts = [tokens.decode(list(w.bounded(name))) for w in found]
    hypotheses = [normalizer(u.language)(text) for u, text in zip(rows, texts, strict=True)]
    return {
        "wer": count_word_errors(references, hypotheses).rate if rows else None,
        "runaways": sum(is_runaway(w, name) for w in found),
        "lost": sum(bool(w.token_ids) and not w.bounded(name) for w in found),
    }


def is_runaway(written: Written, name: str) -> bool:
    """Whether a text reaches the limit of its window."""
    return name != CTC and len(written.bounded(name)) >= max_tokens(written.window_s)


def speech_rows(data: Path | None, split: str, n_clips: int) -> dict[str, list[Utterance]]:
    """Return up to ``n_clips`` of the short clips, spread evenly over all of them, and as many longer ones."""
    rows = clips(data, ALL_CLIPS, split)
    groups = {
        "short": [u for u in rows if u.duration_s < SHORT_S],
        "longer": [u for u in rows if u.duration_s >= SHORT_S],
    }
    return {
        name: [group[i] for i in np.linspace(0, len(group) - 1, min(n_clips, len(group))).round().astype(int)]
        for name, group in groups.items()
    }


def main() -> None:
    options = parse_options()
    if not (options.student / HEAD_FILE).is_file():
        raise AskdError(f"--student {options.student}: no {HEAD_FILE} there; a hybrid student has one")
    n_clips = QUICK_CLIPS if options.quick else options.clips
    silent = [clip.waveform for clip in non_speech_clips(options.noise)]
    silent = silent[:: -(-len(silent) // n_clips)] if options.quick else silent
    rows = speech_rows(options.data, options.split, n_clips)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        write_fused_onnx(str(options.student), Path(scratch) / "onnx", "int8")
        engine = DraftEngine(Path(scratch) / "onnx", window=TRIMMED)
        waveforms = {name: [waveform_of(u) for u in group] for name, group in rows.items()} | {"non_speech": silent}
        found: dict[str, list[Written]] = {name: [] for name in waveforms}
        with bar("decode", sum(map(len, waveforms.values())), "clip") as progress:
            for name, group in waveforms.items():
                for waveform in group:
                    found[name].append(write(engine, waveform))
                    progress.advance()
        tokens, minutes = engine.tokens, sum(map(duration_s, silent)) / 60
        scores = {
            name: {
                "non_speech": non_speech_scores(found["non_speech"], minutes, tokens, name),
                **{kind: speech_scores(found[kind], rows[kind], tokens, name) for kind in rows},
            }
            for name in NAMES
        }
    counts = {"non_speech": len(silent), **{kind: len(group) for kind, group in rows.items()}}
    console.print(as_table(scores, counts, minutes, options.student))
    if options.json:
        print(json.dumps({"bounds": scores, "clips": counts, "non_speech_minutes": round(minutes, 2)}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", choices=("dev", "train"), default="dev")
    parser.add_argument("--noise")
    parser.add_argument("--clips", type=int, default=N_CLIPS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def as_table(scores: dict[str, dict[str, Any]], counts: dict[str, int], minutes: float, student: Path) -> Table:
    """Return the table of results."""
    title = f"{student}: {counts['non_speech']} clips without speech ({minutes:.1f} min), {counts['short']} below "
    table = Table(title=f"{title}{SHORT_S:g} s, {counts['longer']} longer ones")
    columns = ("limit of tokens", "words a minute, no speech", "clips with words", "runaways")
    for column in (*columns, "WER, short", "runaways", "lost", "WER, longer", "runaways", "lost"):
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for name, kinds in scores.items():
        silent = kinds["non_speech"]
        row = [f"{silent['words_per_minute']:.1f}", f"{silent['clips_with_words']}", f"{silent['runaways']}"]
        for kind in ("short", "longer"):
            wer = kinds[kind]["wer"]
            row += ["" if wer is None else f"{percent(wer)} %", f"{kinds[kind]['runaways']}", f"{kinds[kind]['lost']}"]
        table.add_row(name, *row)
    return table


if __name__ == "__main__":
    one_line_errors.run(main)
