"""Does a draft pay? Decoding with drafts on ONNX Runtime against greedy decoding in CTranslate2.

    python benchmarks/readers.py [--student FOLDER] [--model NAME] [--data FOLDER] [--clips N] [--quick] [--json]

--student takes the folder of a hybrid student (a Whisper with ctc_head.safetensors): its CTC head writes the drafts,
and bounds the texts. Without it the drafts are simulated: the greedy text of --model with some of its words changed
(--changed), so the time of a head is missing. Both engines: int8, the same threads, one clip at a time, in separate
processes, in turn, in trimmed windows: a student's, or at least 8 s, since stock models repeat themselves in shorter
ones. `identical` counts the texts that are those of the same ONNX session, one token at a time, over all clips. Times
and WER are of clips whose greedy texts end: a loop is easily drafted. Without --data: the IVR prompts. --json prints
one line of JSON.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.table import Table
from speech_rows import clips

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.isolated import Isolated
from askd_ray.models.bound import token_limit
from askd_ray.models.ctc import HEAD_FILE
from askd_ray.models.draft import Draft
from askd_ray.models.draft_decoding import Verified
from askd_ray.models.draft_engine import DraftEngine, EncodedClip
from askd_ray.models.engine import Engine
from askd_ray.models.hybrid_onnx import write_hybrid_onnx
from askd_ray.models.load import ctranslate2_folder
from askd_ray.progress import bar, console
from askd_ray.results.texts import percent
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import max_tokens
from askd_ray.torch_setup import n_cores

TRIMMED = DecodingWindow(silence_s=0.3)
MODERATE = DecodingWindow(silence_s=0.3, min_s=8.0)  # a stock Whisper repeats itself in most shorter windows
TURN_CLIPS, PAUSE_S = 8, 0.3  # OpenMP's threads wait actively for 0.2 s
MAX_ENTROPY = 0.3  # nats, of the relaxed mode
CTRANSLATE2, GREEDY, EXACT, RELAXED = "CTranslate2, greedy", "ONNX, greedy", "ONNX, draft", "ONNX, relaxed draft"


@dataclass(frozen=True)
class Decoded:
    """A text, its tokens, the decoder passes and the time from the waveform to the tokens."""

    text: str
    token_ids: tuple[int, ...]
    n_passes: int
    seconds: float
    ended: bool


class Greedy:
    """Greedy decoding in CTranslate2."""

    def __init__(self, folder: str, threads: int, window: DecodingWindow):
        self._engine = Engine(Path(folder), threads=threads, window=window)

    def decode(self, waveform: Waveform) -> Decoded:
        """Decode a clip."""
        begun = time.perf_counter()
        transcript = self._engine.transcribe([waveform])[0]
        seconds = time.perf_counter() - begun
        ids, ended = transcript.token_ids, transcript.ended
        return Decoded(transcript.text, ids, len(ids) + ended, seconds, ended)


class Drafted:
    """Decoding on ONNX Runtime, with the drafts of a CTC head, or with given ones."""

    def __init__(self, folder: str, threads: int, window: DecodingWindow):
        torch.set_num_threads(1)  # torch computes the log-mel only; its threads would wait actively
        self._exact = DraftEngine(Path(folder), threads=threads, window=window)
        self._relaxed = DraftEngine(Path(folder), threads=threads, window=window, max_entropy=MAX_ENTROPY)

    def limits(self, waveform: Waveform) -> tuple[int, int]:
        """Return the largest number of tokens of a clip, without and with the bound that CTC puts on it."""
        clip = self._exact.encode(waveform)
        longest = max_tokens(clip.window_s)
        return longest, longest if clip.draft is None else token_limit(clip.draft, clip.window_s)

    def greedy(self, waveform: Waveform) -> Decoded:
        """Decode a clip, one token in each pass, with the bound, if there is one."""
        begun = time.perf_counter()
        clip = self._exact.encode(waveform)
        limit = max_tokens(clip.window_s) if clip.draft is None else token_limit(clip.draft, clip.window_s)
        found = self._exact.greedy(clip, limit=limit)
        return self._decoded(found, limit, begun)

    def decode(self, waveform: Waveform, draft: str | None, relaxed: bool) -> Decoded:
        """Decode a clip with a draft; None is that of the CTC head."""
        engine = self._relaxed if relaxed else self._exact
        given = None
        if draft is not None:
            ids = engine.tokens.encode(draft) if draft else []
            given = Draft(tuple(ids), (float("inf"),) * len(ids), len(ids))
        begun = time.perf_counter()
        clip: EncodedClip = engine.encode(waveform)
        found = engine.decode(clip, draft=given)
        return self._decoded(found, max_tokens(clip.window_s), begun)

    def _decoded(self, found: Verified, limit: int, begun: float) -> Decoded:
        seconds, ids = time.perf_counter() - begun, found.token_ids
        return Decoded(self._exact.tokens.decode(list(ids)), ids, found.n_passes, seconds, len(ids) < limit)


def simulated_draft(text: str, share: float, rng: np.random.Generator) -> str:
    """Return a text with a share of its words changed: a third of these is dropped, doubled or replaced."""
    words = list[str]()
    for word in text.split():
        kind = rng.integers(3) if rng.random() < share else None
        words += [word] if kind is None else [[], [word, word], [word[::-1]]][kind]
    return " ".join(words)


def measure(
    rows: Sequence[Utterance], peer: Isolated, drafted: Isolated, names: Sequence[str], changed: float | None
) -> dict[str, list[Decoded]]:
    """Return what each system decodes, in turns; ``changed`` is the share of changed words of a simulated draft."""
    found: dict[str, list[Decoded]] = {name: [] for name in names}
    waveforms, rng = [waveform_of(u) for u in rows], np.random.default_rng(0)
    calls = [drafted.call("greedy", w) for w in waveforms]
    drafts = [None if changed is None else simulated_draft(d.text, changed, rng) for d in calls]
    with bar("turns", len(rows), "clip") as progress:
        for turn, start in enumerate(range(0, len(rows), TURN_CLIPS)):
            turn_clips = range(start, min(start + TURN_CLIPS, len(rows)))
            for name in names if turn % 2 else reversed(names):
                time.sleep(PAUSE_S)
                for i in (turn_clips[0], *turn_clips):  # the first one wakes the threads and is not counted
                    if name == CTRANSLATE2:
                        decoded = peer.call("decode", waveforms[i])
                    elif name == GREEDY:
                        decoded = drafted.call("greedy", waveforms[i])
                    else:
                        decoded = drafted.call("decode", waveforms[i], drafts[i], name == RELAXED)
                    found[name].append(decoded)
                del found[name][-len(turn_clips) - 1]
            progress.advance(len(turn_clips))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--model", default="wheel:tiny.en")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--changed", type=float, default=0.15)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    student: Path | None = options.student
    if student is not None and not (student / HEAD_FILE).is_file():
        raise AskdError(f"--student {student}: no {HEAD_FILE} there; a hybrid student has one")
    reference = options.model if student is None else str(student)
    rows, threads = clips(options.data, 20 if options.quick else options.clips), n_cores()
    names = [CTRANSLATE2, GREEDY, EXACT, *([RELAXED] if student is not None else [])]
    window = MODERATE if student is None else TRIMMED
    with tempfile.TemporaryDirectory() as scratch:
        write_hybrid_onnx(reference, Path(scratch) / "onnx", "int8")
        with (
            Isolated(Greedy, str(ctranslate2_folder(reference)), threads, window) as peer,
            Isolated(Drafted, str(Path(scratch) / "onnx"), threads, window) as drafted,
        ):
            found = measure(rows, peer, drafted, names, options.changed if student is None else None)
            limits = [drafted.call("limits", waveform_of(u)) for u in rows]
    identical = sum(a.token_ids == b.token_ids for a, b in zip(found[EXACT], found[GREEDY], strict=True))
    drafts = f"simulated drafts ({percent(options.changed)} % of words changed)" if student is None else "CTC drafts"
    ended = [i for i in range(len(rows)) if found[CTRANSLATE2][i].ended and found[GREEDY][i].ended]
    if not ended:
        raise AskdError(f"{reference}: no greedy text of the {len(rows)} clips ends")
    rows, found = [rows[i] for i in ended], {name: [decoded[i] for i in ended] for name, decoded in found.items()}
    title = f"{len(rows)} of {len(limits)} clips, {reference}, {threads} threads, {drafts}"
    console.print(results_table(title, rows, found))
    console.print(f"{identical} of {len(limits)} texts with drafts are those of greedy decoding in the same session")
    seconds = {name: median(d.seconds for d in decoded) for name, decoded in found.items()}
    result = {
        "identical": identical,
        "of": len(limits),
        "draft_latency_ratio": round(seconds[CTRANSLATE2] / seconds[EXACT], 3),
        "timed_clips": len(rows),
        "simulated": student is None,
        "median_ms": {name: round(1000 * s, 1) for name, s in seconds.items()},
        "passes": {name: sum(d.n_passes for d in decoded) for name, decoded in found.items()},
        "shorter_limits": sum(bounded < longest for longest, bounded in limits),
    }
    if options.json:
        print(json.dumps(result))


def results_table(title: str, rows: Sequence[Utterance], found: dict[str, list[Decoded]]) -> Table:
    """Return the table of results."""
    table = Table(title=title)
    for column in ("", "median ms", "CTranslate2 / it", "passes a clip", "WER"):
        table.add_column(column, justify="right" if column else "left")
    references = _normalised(rows, [u.text for u in rows])
    peer_s = median(d.seconds for d in found[CTRANSLATE2])
    for name, decoded in found.items():
        seconds = median(d.seconds for d in decoded)
        wer = count_word_errors(references, _normalised(rows, [d.text for d in decoded])).rate
        passes = sum(d.n_passes for d in decoded) / len(decoded)
        table.add_row(name, f"{1000 * seconds:.0f}", f"{peer_s / seconds:.2f}", f"{passes:.1f}", f"{percent(wer)} %")
    return table


def _normalised(rows: Sequence[Utterance], texts: Sequence[str]) -> list[str]:
    return [normalizer(u.language)(text).strip() for u, text in zip(rows, texts, strict=True)]


if __name__ == "__main__":
    main()
