"""Compares our evaluation with stock faster-whisper: same transcripts, and how fast?

    python benchmarks/evaluate_speed.py [--data FOLDER] [--clips N] [--model NAME] [--quick] [--json]

Both systems use the same files, Whisper weights and number of threads; greedy, int8, 30 s windows. `askd evaluate`
decodes clips in batches and also returns token probabilities and the served texts, which are not compared here;
faster-whisper decodes clip by clip, as users do. Each
system has a separate process, and they take turns of eight clips. Both go from encoded audio to text, and the texts
are normalised and scored in the same way.

--data takes a folder of Parquet files (Hugging Face convention); without it, the IVR prompts. --json prints one line of
JSON at the end.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import one_line_errors
from rich.table import Table
from speech_rows import clips

from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.evaluation.isolated import Isolated
from askd_ray.evaluation.systems import open_system
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.stock import StockWhisper
from askd_ray.progress import bar, console
from askd_ray.results.texts import percent
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import n_cores

TURN_CLIPS, PAUSE_S = 8, 0.3  # OpenMP's threads wait actively for 0.2 s
NAMES = {"ours": "askd evaluate", "stock": "faster-whisper"}


class Ours:
    """Decodes clips in the way of `askd evaluate`."""

    def __init__(self, reference: str, threads: int):
        self._system = open_system(reference, threads)

    def transcribe(self, rows: Sequence[Utterance]) -> list[str]:
        """Return the texts of clips of one language."""
        transcripts = self._system.transcribe([waveform_of(u) for u in rows], rows[0].language)
        return [(both.raw or both.served).text for both in transcripts]


class Stock:
    """faster-whisper with the settings of `askd evaluate`, also without timestamp tokens, which change texts."""

    def __init__(self, folder: str, threads: int):
        self._model = StockWhisper(Path(folder), threads, timestamps=False)

    def transcribe(self, rows: Sequence[Utterance]) -> list[str]:
        """Return the texts of clips."""
        return [self._model.transcribe(u.audio, u.language) for u in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--model", default="wheel:tiny.en")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, threads = clips(options.data, 24 if options.quick else options.clips), n_cores()
    texts: dict[str, list[str]] = {name: [] for name in NAMES}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    with (
        Isolated(Ours, options.model, threads) as ours,
        Isolated(Stock, str(ctranslate2_folder(options.model)), threads) as stock,
        bar("turns", len(rows), "clip") as progress,
    ):
        systems = {"ours": ours, "stock": stock}
        for system in systems.values():
            system.call("transcribe", rows[:1])
        for turn, start in enumerate(range(0, len(rows), TURN_CLIPS)):
            turn_clips = rows[start : start + TURN_CLIPS]
            for name in NAMES if turn % 2 else reversed(NAMES):
                time.sleep(PAUSE_S)
                begun = time.perf_counter()
                texts[name] += systems[name].call("transcribe", turn_clips)
                times[name].append(time.perf_counter() - begun)
            progress.advance(len(turn_clips))
    references = _normalised(rows, [u.text for u in rows])
    wers = {
        name: count_word_errors(references, _normalised(rows, hypotheses)).rate for name, hypotheses in texts.items()
    }
    ratios = [stock_s / our_s for stock_s, our_s in zip(times["stock"], times["ours"], strict=True)]
    audio_s = sum(u.duration_s for u in rows)
    table = Table(title=f"{len(rows)} clips, mean {audio_s / len(rows):.1f} s, {options.model}, {threads} threads")
    for column in ("", "WER", "RTFx"):
        table.add_column(column, justify="right" if column else "left")
    for name, shown in NAMES.items():
        table.add_row(shown, f"{percent(wers[name])} %", f"{audio_s / sum(times[name]):.1f}")
    console.print(table)
    console.print(f"{median(ratios):.2f} times as fast in the median turn ({min(ratios):.2f} to {max(ratios):.2f})")
    result = {
        "wer_diff": round(100 * (wers["ours"] - wers["stock"]), 3),
        "speed_ratio": round(median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "wer": {name: round(100 * wer, 3) for name, wer in wers.items()},
        "same_texts": sum(a == b for a, b in zip(*(_normalised(rows, t) for t in texts.values()), strict=True)),
        "clips": len(rows),
    }
    if options.json:
        print(json.dumps(result))


def _normalised(rows: Sequence[Utterance], texts: Sequence[str]) -> list[str]:
    return [normalizer(u.language)(text).strip() for u, text in zip(rows, texts, strict=True)]


if __name__ == "__main__":
    one_line_errors.run(main)
