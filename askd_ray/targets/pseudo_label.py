"""Pseudo-labels: the teacher's transcript of a clip becomes the training target."""

from collections.abc import Sequence
from dataclasses import dataclass

from askd_ray.audio.units import PADDED_S, DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.engine import Decoding, Engine
from askd_ray.models.load import ctranslate2_folder
from askd_ray.targets.filter import failed_filter
from askd_ray.torch_setup import usable_device


@dataclass(frozen=True)
class Target:
    """The target tokens of an utterance, without prompt and end token; ``left_out`` is the reason of an exclusion."""

    token_ids: tuple[int, ...]
    left_out: str


def teacher_engine(recipe: Recipe, threads: int = 0) -> Engine:
    """Return an engine of the teacher with the recipe's prompt and beam. Its windows are those of the soft labels:
    30 s, with silence after the clip.

    The weights keep their precision (float32 on a CPU): in int8 the teacher would differ from that of the soft labels.
    """
    targets = recipe.targets
    return Engine(
        ctranslate2_folder(recipe.teacher.model),
        compute_type="default",
        threads=threads,
        device=usable_device(recipe.train.workers.gpu),
        window=DecodingWindow(PADDED_S),
        decoding=Decoding(targets.beam_size, targets.timestamps, targets.prompt),
    )


def pseudo_label(engine: Engine, utterances: Sequence[Utterance], recipe: Recipe) -> list[Target]:
    """Transcribe utterances in their languages and filter the transcripts; the targets are in the same order.

    Raises :class:`AskdError` for a language that the teacher does not know, and for audio that cannot be decoded.
    """
    targets: dict[int, Target] = {}
    for language in sorted({u.language for u in utterances}):
        rows = [i for i, u in enumerate(utterances) if u.language == language]
        transcripts = engine.transcribe([waveform_of(utterances[i]) for i in rows], language)
        for i, transcript in zip(rows, transcripts, strict=True):
            left_out = failed_filter(recipe.targets, utterances[i], transcript)
            targets[i] = Target(transcript.token_ids, left_out)
    return [targets[i] for i in range(len(utterances))]
