"""The stage `evaluate` of an LLM student: what the audio tells it, 1-of-100 retrieval, and its word error rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.evaluate import Normalizer
from askd_ray.config.load import with_absolute_paths
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.schema import Utterance
from askd_ray.evaluation.audio_use import CONDITIONS, ClipScores, retrieve, score_clips
from askd_ray.evaluation.sets import EvalSet, print_left_out, read_sets
from askd_ray.evaluation.significance import Array, draw, interval
from askd_ray.files import write_json
from askd_ray.models.llm_student import LlmStudent, LlmStudentKind
from askd_ray.progress import Bar, Table, bar, console
from askd_ray.results.audio_use import (
    AudioUse,
    AudioUseScores,
    Estimate,
    Retrieval,
    audio_use_table,
    estimate_in_percent,
)
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import usable_device, use_threads

N_CANDIDATES = 100
"""The number of transcripts among which retrieval looks for that of a clip."""

AUDIO_USE = "audio_use.json"
"""The file of the scores, in the run's folder of the stage."""

_FORMAT = 1  # of the scores
_BATCH_SIZE = 8


def evaluate_llm(recipe: Recipe, force: bool = False) -> AudioUseScores:
    """Score a run's LLM student on the recipe's split and sets; write and return the scores.

    Raises :class:`AskdError` without a student, and for an unusable set.
    """
    run = Run(with_absolute_paths(recipe))
    sets, left_out = read_sets(run)
    print_left_out(left_out)
    chosen = [recipe.evaluate.normalizer, [[s.name, s.in_domain, s.fingerprint] for s in sets]]
    key = stage_key(_FORMAT, chosen, run.key("distill"))

    def work() -> Result:
        run.fetch("distill/best")
        use_threads()
        student, kind = _load(run.recipe, run)
        with bar("evaluate", sum(len(one.utterances) for one in sets), "clip") as progress:
            parts = [_score_set(student, kind, one, run.recipe, progress) for one in sets]
        pools = {
            name: [part for part in parts if part.of.in_domain == is_in_domain]
            for name, is_in_domain in (("in_domain", True), ("out_of_domain", False))
        }
        found = {name: _retrieval(student, pool, run.recipe) for name, pool in pools.items() if pool}
        scores: AudioUseScores = {
            "sets": {part.of.name: audio_use([part]) for part in parts},
            "pools": {name: audio_use(pool) for name, pool in pools.items() if pool},
            "retrieval": {name: one for name, one in found.items() if one is not None},
            "left_out": left_out,
        }
        write_json(run.path / "evaluate" / AUDIO_USE, scores)
        return cast(Result, scores)

    run.fetch("evaluate")
    shown = str(run.place / "evaluate" / AUDIO_USE)
    done = run.finished("evaluate", key)
    result = run_stage(StageWork(run, "evaluate", key, done, work, lambda _: shown, ("evaluate",)), force)
    scores = cast(AudioUseScores, result)
    console.print(table(scores), *(retrieval_line(name, one) for name, one in scores["retrieval"].items()))
    return scores


@dataclass(frozen=True)
class SetUse:
    """A scored set: ``errors`` and ``words`` (n_clips,) of greedy transcripts against normalised references."""

    of: EvalSet
    scores: ClipScores
    errors: NDArray[np.int64]
    words: NDArray[np.int64]

    @cached_property
    def nats_draws(self) -> tuple[Array, Array]:
        """Nats in each condition ``(1 + n_draws, 3)`` and tokens of bootstrap samples of the clips."""
        drawn = draw(self.scores.nats, self.scores.tokens, crc32(self.of.name.encode()))
        return drawn.errors, drawn.words

    @cached_property
    def error_draws(self) -> tuple[Array, Array]:
        """Errors and words of the same samples."""
        drawn = draw(self.errors[:, None], self.words, crc32(self.of.name.encode()))
        return drawn.errors, drawn.words


def audio_use(parts: Sequence[SetUse]) -> AudioUse:
    """Return the scores of some sets together; each set is resampled separately."""
    nats, tokens = (reduce(add, arrays) for arrays in zip(*(part.nats_draws for part in parts), strict=True))
    errors, words = (reduce(add, arrays) for arrays in zip(*(part.error_draws for part in parts), strict=True))
    by_condition = dict(zip(CONDITIONS, (nats / tokens).T, strict=True))
    seconds = sum(clip.duration_s for part in parts for clip in part.of.utterances)
    return {
        "clips": sum(len(part.of.utterances) for part in parts),
        "minutes": seconds / 60,
        "tokens": int(tokens[0, 0]),
        "words": int(words[0, 0]),
        "nats": {name: _estimate(drawn) for name, drawn in by_condition.items()},
        "difference": {
            name: _estimate(by_condition[name] - by_condition["right"]) for name in CONDITIONS if name != "right"
        },
        "states_per_s": sum(int(part.scores.states.sum()) for part in parts) / seconds,
        "wer": _estimate((errors / np.maximum(words, 1))[:, 0]),
    }


def table(scores: AudioUseScores) -> Table:
    """Return the scores as a table."""
    shown = Table(title="Nats a reference token with the clip's audio, that of another clip, and none (95 %); WER in %")
    head, rows = audio_use_table(scores)
    for number, column in enumerate(head):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def retrieval_line(name: str, found: Retrieval) -> str:
    """Return the result of retrieval in a line."""
    n, raw, ratio = found["clips"], found["log_prob"], found["log_prob_ratio"]
    return (
        f"retrieval, {name.replace('_', ' ')}: {estimate_in_percent(raw)} % of {n} clips find their transcript among "
        f"{n}; {estimate_in_percent(ratio)} % without the log-probability that a text has in any case"
    )


def _load(recipe: Recipe, run: Run) -> tuple[LlmStudent, LlmStudentKind]:
    compressor = recipe.student.compressor
    assert compressor.kind != "none", "the recipe checks this"
    kind = LlmStudentKind(recipe, compressor)
    student = kind.load(run.student, 0)
    student.to(usable_device(recipe.train.workers.gpu))
    return student, kind


def _score_set(student: LlmStudent, kind: LlmStudentKind, chosen: EvalSet, recipe: Recipe, progress: Bar) -> SetUse:
    progress.note(chosen.name)
    clips, window = chosen.utterances, DecodingWindow.of(recipe.window)
    transcripts = _transcripts(clips, window, student, kind, progress)
    counts = [_errors(clip, transcripts[clip.id], recipe.evaluate.normalizer) for clip in clips]
    errors, words = np.array(counts, np.int64).T
    return SetUse(chosen, score_clips(student, clips, window), errors, words)


def _transcripts(
    clips: Sequence[Utterance], window: DecodingWindow, student: LlmStudent, kind: LlmStudentKind, progress: Bar
) -> dict[str, str]:
    device, dtype = student.opening.device, student.embedder.map.weight.dtype
    transcripts: dict[str, str] = {}
    for batch, log_mel in evaluation_windows(clips, window, student.n_mels, _BATCH_SIZE):
        texts = kind.transcribe(student, log_mel.to(device, dtype), batch[0].language)
        transcripts |= {clip.id: text for clip, text in zip(batch, texts, strict=True)}
        progress.advance(len(batch))
    return transcripts


def _errors(clip: Utterance, transcript: str, kind: Normalizer) -> tuple[int, int]:
    normalize: Callable[[str], str] = normalizer(clip.language, kind)
    counts = count_word_errors([normalize(clip.text)], [normalize(transcript)])
    return counts.substitutions + counts.deletions + counts.insertions, counts.n_reference


def _retrieval(student: LlmStudent, parts: Sequence[SetUse], recipe: Recipe) -> Retrieval | None:
    """Return the retrieval among clips of different texts, spread over the sets; None if there are too few."""
    clips = sorted((clip for part in parts for clip in part.of.utterances), key=lambda clip: crc32(clip.id.encode()))
    of_text = {clip.text.strip().lower(): clip for clip in clips}
    if len(of_text) < N_CANDIDATES:
        return None
    found = retrieve(student, list(of_text.values())[:N_CANDIDATES], DecodingWindow.of(recipe.window))
    drawn = draw(found.astype(np.int64), np.ones(len(found), np.int64), seed=0).rates
    return {"clips": len(found), "log_prob": _estimate(drawn[:, 0]), "log_prob_ratio": _estimate(drawn[:, 1])}


def _estimate(drawn: Array) -> Estimate:
    low, high = interval(drawn[1:])
    return {"value": float(drawn[0]), "low": low, "high": high}
