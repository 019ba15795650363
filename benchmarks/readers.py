"""CTC against the decoder: how fast CTC alone is, and whether drafts for the decoder pay.

    python benchmarks/readers.py [--student FOLDER] [--ctc FOLDER] [--compressor RECIPE] [--model NAME]
                                 [--data FOLDER] [--split dev|train] [--clips N] [--quick] [--json]

--student takes the folder of a student with a decoder, which is compared with greedy decoding in CTranslate2; without
it: --model. If it is a hybrid student (a Whisper with ctc_head.safetensors), its head writes the drafts and bounds the
texts, and the table has a row for each threshold of the relaxed mode. Without a head the drafts are simulated: the
greedy text with some of its words changed (--changed), so the time of a head is missing.

--ctc takes the folder of a CTC student, for the row "CTC alone". Without it that is the encoder of a hybrid student
with its head, or an untrained head of 3,875 classes, which writes blanks only, on the encoder of the other model:
nearly all time of a CTC student is that of its encoder, which does not depend on the weights ("ctc_trained": false).

All engines: int8, the same threads, one clip at a time, in separate processes, in turn, in the same trimmed windows: a
student's, or at least 8 s, since stock models repeat themselves in shorter ones. `identical` counts the texts that are
those of the same ONNX session, one token at a time, over all clips. Times and WER are of clips whose greedy texts end:
a loop is easily drafted. Without --data: the IVR prompts. --quick takes a few clips. --json prints one line of JSON:

- draft_latency_ratio: the median time of a clip in CTranslate2, over that with exact drafts
- ctc_rtfx_ratio: the audio seconds a second of CTC alone, over those of CTranslate2
- compressor_wer_gain_at_6: as in benchmarks/compressor.py, of the students that it has trained for the recipe
  --compressor; null without it
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import one_line_errors
import torch
from compressor import gain_of_trained
from rich.table import Table
from speech_rows import clips

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.evaluation.isolated import Isolated
from askd_ray.models.bound import token_limit
from askd_ray.models.ctc import HEAD_FILE, CtcHead, CtcModel, initial_head, is_ctc_student, load_head, save_ctc
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx
from askd_ray.models.draft import Draft
from askd_ray.models.draft_decoding import Verified
from askd_ray.models.draft_engine import DraftEngine
from askd_ray.models.engine import Engine
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.load import ctranslate2_folder, load_whisper
from askd_ray.progress import bar, console
from askd_ray.results.texts import percent
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import max_tokens
from askd_ray.text.units import BLANK, CtcVocabulary
from askd_ray.torch_setup import n_cores

TRIMMED = DecodingWindow(silence_s=0.3)
MODERATE = DecodingWindow(silence_s=0.3, min_s=8.0)  # a stock Whisper repeats itself in most shorter windows
TURN_CLIPS, PAUSE_S = 8, 0.3  # OpenMP's threads wait actively for 0.2 s
N_CLIPS, QUICK_CLIPS = 96, 12
N_UNTRAINED_CLASSES = 3_875  # those of two hours of read speech
ENTROPIES = (0.1, 0.3, 0.6, 1.0)  # nats, of the relaxed mode; 0 is exact
CTRANSLATE2, CTC, GREEDY, EXACT = "CTranslate2, greedy", "ONNX, CTC alone", "ONNX, greedy", "ONNX, exact draft"


@dataclass(frozen=True)
class Decoded:
    """A text, its tokens, the decoder passes and the time from the waveform to the tokens."""

    text: str
    token_ids: tuple[int, ...]
    n_passes: int
    seconds: float
    ended: bool


class Whole:
    """Decoding of whole clips, in CTranslate2, or of CTC alone in ONNX Runtime."""

    def __init__(self, kind: type[Engine] | type[CtcEngine], folder: str, threads: int, window: DecodingWindow):
        torch.set_num_threads(1)  # torch computes the log-mel only; its threads would wait actively
        self._engine = kind(Path(folder), threads=threads, window=window)
        self._has_decoder = kind is Engine

    def decode(self, waveform: Waveform) -> Decoded:
        """Decode a clip."""
        begun = time.perf_counter()
        transcript = self._engine.transcribe([waveform])[0]
        seconds = time.perf_counter() - begun
        ids, ended = transcript.token_ids, transcript.ended
        return Decoded(transcript.text, ids, (len(ids) + ended) * self._has_decoder, seconds, ended)


class Drafted:
    """Decoding on ONNX Runtime, with the drafts of a CTC head, or with given ones."""

    def __init__(self, folder: str, threads: int, window: DecodingWindow):
        torch.set_num_threads(1)
        self._engine = DraftEngine(Path(folder), threads=threads, window=window)

    def limits(self, waveform: Waveform) -> tuple[int, int]:
        """Return the largest number of tokens of a clip, without and with the bound that CTC puts on it."""
        clip = self._engine.encode(waveform)
        longest = max_tokens(clip.window_s)
        return longest, longest if clip.draft is None else token_limit(clip.draft, clip.window_s)

    def greedy(self, waveform: Waveform) -> Decoded:
        """Decode a clip, one token in each pass, with the bound, if there is one."""
        begun = time.perf_counter()
        clip = self._engine.encode(waveform)
        limit = max_tokens(clip.window_s) if clip.draft is None else token_limit(clip.draft, clip.window_s)
        return self._decoded(self._engine.greedy(clip, limit=limit), limit, begun)

    def decode(self, waveform: Waveform, draft: str | None, max_entropy: float | None) -> Decoded:
        """Decode a clip with a draft; None is that of the CTC head."""
        self._engine.max_entropy = max_entropy
        given = None
        if draft is not None:
            ids = self._engine.tokens.encode(draft) if draft else []
            given = Draft(tuple(ids), (float("inf"),) * len(ids), len(ids))
        begun = time.perf_counter()
        clip = self._engine.encode(waveform)
        return self._decoded(self._engine.decode(clip, draft=given), max_tokens(clip.window_s), begun)

    def _decoded(self, found: Verified, limit: int, begun: float) -> Decoded:
        seconds, ids = time.perf_counter() - begun, found.token_ids
        ended = len(ids) < max(limit, 1)
        return Decoded(self._engine.tokens.decode(list(ids)), ids, found.n_passes, seconds, ended)


def write_ctc_engine(ctc: Path | None, reference: str, target: Path) -> bool:
    """Write the int8 engine of CTC alone; return whether its head is trained.

    ``ctc`` None: the encoder of a Whisper with the head in its folder, or with an untrained one.
    """
    trained = ctc is not None or (Path(reference) / HEAD_FILE).is_file()
    if ctc is None:
        ctc = target.with_name("ctc")
        whisper, tokens = load_whisper(reference)
        if trained:
            head = load_head(Path(reference))
        else:
            head = silent_head(whisper.proj_out.weight)
        save_ctc(CtcModel(whisper.model.encoder, head), tokens, ctc)
    write_onnx(ctc, target, "int8")
    return trained


def silent_head(embeddings: torch.Tensor) -> CtcHead:
    """Return a head that writes blanks only: scores of tokens at random positions would take time."""
    vocabulary = CtcVocabulary(tuple(range(N_UNTRAINED_CLASSES - 1)))
    head = initial_head(vocabulary, embeddings)
    with torch.no_grad():
        head.transform.bias[0] = 1e4
        head.projection[:, 0] = 0.0
        head.projection[BLANK, 0] = 1.0
    return head


def simulated_draft(text: str, share: float, rng: np.random.Generator) -> str:
    """Return a text with a share of its words changed: a third of these is dropped, doubled or replaced."""
    words = list[str]()
    for word in text.split():
        kind = rng.integers(3) if rng.random() < share else None
        words += [word] if kind is None else [[], [word, word], [word[::-1]]][kind]
    return " ".join(words)


def relaxed(max_entropy: float) -> str:
    """Return the name of the relaxed mode with a threshold."""
    return f"ONNX, draft relaxed to {max_entropy:g}"


def systems_of(
    rows: Sequence[Utterance], engines: tuple[Isolated, Isolated, Isolated], changed: float | None
) -> dict[str, Callable[[int], Decoded]]:
    """Return how each system decodes a clip by its number; ``changed`` is the share of changed words of a draft."""
    peer, ctc, drafted = engines
    waveforms, rng = [waveform_of(u) for u in rows], np.random.default_rng(0)
    drafts: list[str | None] = [None] * len(rows)
    if changed is not None:
        drafts = [simulated_draft(drafted.call("greedy", w).text, changed, rng) for w in waveforms]
    systems: dict[str, Callable[[int], Decoded]] = {
        CTRANSLATE2: lambda i: peer.call("decode", waveforms[i]),
        CTC: lambda i: ctc.call("decode", waveforms[i]),
        GREEDY: lambda i: drafted.call("greedy", waveforms[i]),
        EXACT: lambda i: drafted.call("decode", waveforms[i], drafts[i], None),
    }
    for entropy in ENTROPIES if changed is None else ():
        systems[relaxed(entropy)] = lambda i, entropy=entropy: drafted.call("decode", waveforms[i], None, entropy)
    return systems


def measure(systems: Mapping[str, Callable[[int], Decoded]], n_clips: int) -> dict[str, list[Decoded]]:
    """Return what each system decodes, in turns."""
    found: dict[str, list[Decoded]] = {name: [] for name in systems}
    with bar("turns", n_clips, "clip") as progress:
        for turn, start in enumerate(range(0, n_clips, TURN_CLIPS)):
            turn_clips = range(start, min(start + TURN_CLIPS, n_clips))
            for name in systems if turn % 2 else reversed(systems):
                time.sleep(PAUSE_S)
                systems[name](turn_clips[0])  # wakes the threads and is not counted
                found[name] += [systems[name](i) for i in turn_clips]
            progress.advance(len(turn_clips))
    return found


def main() -> None:
    options = parse_options()
    student: Path | None = options.student
    if options.ctc is not None and not is_ctc_student(options.ctc):
        raise AskdError(f"--ctc {options.ctc}: no CTC student there; `student.reader=ctc` trains one")
    # First: a missing training should not be noticed after the measurement.
    gain = None if options.compressor is None else gain_of_trained(options.compressor)
    has_head = student is not None and (student / HEAD_FILE).is_file()
    reference = options.model if student is None else str(student)
    rows, threads = clips(options.data, QUICK_CLIPS if options.quick else options.clips, options.split), n_cores()
    window = MODERATE if student is None else TRIMMED
    with tempfile.TemporaryDirectory() as scratch:
        of_ctc, of_drafts = Path(scratch) / "ctc-int8", Path(scratch) / "hybrid-int8"
        trained = write_ctc_engine(options.ctc, reference, of_ctc)
        write_fused_onnx(reference, of_drafts, "int8")
        with (
            Isolated(Whole, Engine, str(ctranslate2_folder(reference)), threads, window) as peer,
            Isolated(Whole, CtcEngine, str(of_ctc), threads, window) as ctc,
            Isolated(Drafted, str(of_drafts), threads, window) as drafted,
        ):
            found = measure(systems_of(rows, (peer, ctc, drafted), None if has_head else options.changed), len(rows))
            limits = [drafted.call("limits", waveform_of(u)) for u in rows]
    identical = sum(a.token_ids == b.token_ids for a, b in zip(found[EXACT], found[GREEDY], strict=True))
    ended = [i for i in range(len(rows)) if found[CTRANSLATE2][i].ended and found[GREEDY][i].ended]
    if not ended:
        raise AskdError(f"{reference}: no greedy text of the {len(rows)} clips ends")
    timed, rows = {name: [decoded[i] for i in ended] for name, decoded in found.items()}, [rows[i] for i in ended]
    drafts = "CTC drafts" if has_head else f"simulated drafts ({percent(options.changed)} % of words changed)"
    title = f"{len(rows)} of {len(limits)} clips, {reference}, {threads} threads, windows of {window}, {drafts}"
    untrained = {} if trained else {CTC: "untrained"}
    console.print(results_table(title, rows, timed, untrained))
    console.print(f"{identical} of {len(limits)} texts with drafts are those of greedy decoding in the same session")
    if options.json:
        about = {"simulated": not has_head, "ctc_trained": trained}
        bounds = {"shorter_limits": sum(bounded < longest for longest, bounded in limits)}
        head = {"identical": identical, "of": len(limits)}
        of_clips = summary(rows, timed)
        if not trained:
            of_clips["wer"][CTC] = None
        print(json.dumps(head | of_clips | {"compressor_wer_gain_at_6": gain} | about | bounds))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--ctc", type=Path)
    parser.add_argument("--compressor")
    parser.add_argument("--model", default="wheel:tiny.en")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", choices=("dev", "train"), default="dev")
    parser.add_argument("--clips", type=int, default=N_CLIPS)
    parser.add_argument("--changed", type=float, default=0.15)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def results_table(
    title: str, rows: Sequence[Utterance], found: Mapping[str, Sequence[Decoded]], without_wer: Mapping[str, str]
) -> Table:
    """Return the table of results."""
    table = Table(title=title)
    for column in ("", "median ms", "CTranslate2 / it", "audio s a second", "passes a clip", "WER"):
        table.add_column(column, justify="right" if column else "left")
    ratios, rates, wers = latency_ratios(found), audio_rates(rows, found), word_error_rates(rows, found)
    for name, decoded in found.items():
        passes = sum(d.n_passes for d in decoded) / len(decoded)
        times = f"{1000 * median(d.seconds for d in decoded):.1f}", f"{ratios[name]:.2f}", f"{rates[name]:.1f}"
        table.add_row(name, *times, f"{passes:.1f}", without_wer.get(name, f"{percent(wers[name])} %"))
    return table


def summary(rows: Sequence[Utterance], found: Mapping[str, Sequence[Decoded]]) -> dict[str, Any]:
    """Return the numbers of the line of JSON that come from the timed clips."""
    ratios, rates, wers = latency_ratios(found), audio_rates(rows, found), word_error_rates(rows, found)
    curve = {f"{e:g}": relaxed(e) for e in ENTROPIES if relaxed(e) in found}
    return {
        "ctc_rtfx_ratio": round(rates[CTC] / rates[CTRANSLATE2], 3),
        "draft_latency_ratio": round(ratios[EXACT], 3),
        "relaxed": {e: {"wer": round(wers[n], 4), "latency_ratio": round(ratios[n], 3)} for e, n in curve.items()},
        "timed_clips": len(rows),
        "wer": {name: round(wer, 4) for name, wer in wers.items()},
        "median_ms": {name: round(1000 * median(d.seconds for d in decoded), 1) for name, decoded in found.items()},
        "passes": {name: sum(d.n_passes for d in decoded) for name, decoded in found.items()},
    }


def latency_ratios(found: Mapping[str, Sequence[Decoded]]) -> dict[str, float]:
    """Return how many times longer a clip takes in CTranslate2, by medians."""
    seconds = {name: median(d.seconds for d in decoded) for name, decoded in found.items()}
    return {name: seconds[CTRANSLATE2] / s for name, s in seconds.items()}


def audio_rates(rows: Sequence[Utterance], found: Mapping[str, Sequence[Decoded]]) -> dict[str, float]:
    """Return the audio seconds that each system decodes a second."""
    audio_s = sum(u.duration_s for u in rows)
    return {name: audio_s / sum(d.seconds for d in decoded) for name, decoded in found.items()}


def word_error_rates(rows: Sequence[Utterance], found: Mapping[str, Sequence[Decoded]]) -> dict[str, float]:
    """Return the WER of each system."""
    references = normalised(rows, [u.text for u in rows])
    hypotheses = {name: normalised(rows, [d.text for d in decoded]) for name, decoded in found.items()}
    return {name: count_word_errors(references, texts).rate for name, texts in hypotheses.items()}


def normalised(rows: Sequence[Utterance], texts: Sequence[str]) -> list[str]:
    """Return texts as they are scored."""
    return [normalizer(u.language)(text).strip() for u, text in zip(rows, texts, strict=True)]


if __name__ == "__main__":
    one_line_errors.run(main)
