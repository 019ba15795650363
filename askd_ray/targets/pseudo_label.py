"""Pseudo-labels: what the teacher itself hears in a clip becomes its target."""

from collections.abc import Sequence
from dataclasses import dataclass

from askd_ray.audio.units import PADDED_S
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.engine import Decoding, Engine
from askd_ray.models.load import ctranslate2_folder
from askd_ray.targets.filter import why_dropped
from askd_ray.torch_setup import usable_device


@dataclass(frozen=True)
class Target:
    """The text of an utterance in tokens, without prompt and end; ``left_out`` says why where it is not used."""

    token_ids: tuple[int, ...]
    left_out: str


def teacher_engine(recipe: Recipe, threads: int = 0) -> Engine:
    """Return the teacher as a decoder with the recipe's prompt and beam; its windows are those of the soft labels, 30 s
    with silence behind the clip.

    Its weights are used as they are (float32 on a CPU): int8 would be another teacher than the one of the soft labels.
    """
    targets = recipe.targets
    return Engine(
        ctranslate2_folder(recipe.teacher.model),
        compute_type="default",
        threads=threads,
        device=usable_device(recipe.train.use_gpu),
        silence_s=PADDED_S,
        decoding=Decoding(targets.beam_size, targets.timestamps, targets.prompt),
    )


def pseudo_label(engine: Engine, utterances: Sequence[Utterance], recipe: Recipe) -> list[Target]:
    """Decode utterances in their own languages and filter what came; the answers are in their order.

    Raises :class:`AskdError` for a language that the teacher does not know, and for audio that cannot be decoded.
    """
    made: dict[int, Target] = {}
    for language in sorted({u.language for u in utterances}):
        rows = [i for i, u in enumerate(utterances) if u.language == language]
        heard = engine.transcribe([waveform_of(utterances[i]) for i in rows], language)
        for i, transcript in zip(rows, heard, strict=True):
            left_out = why_dropped(recipe.targets, utterances[i], transcript)
            made[i] = Target(transcript.token_ids, left_out)
    return [made[i] for i in range(len(utterances))]
