"""The target texts: references, or pseudo-labels, which are the teacher's transcripts."""

from collections.abc import Sequence
from dataclasses import dataclass

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.engine import Decoding, Engine, Transcript
from askd_ray.models.load import ctranslate2_folder
from askd_ray.targets.filter import failed_filter, matching_part
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import usable_device


@dataclass(frozen=True)
class Target:
    """The target tokens of an utterance, without prompt and end token; ``left_out`` is the reason of an exclusion."""

    token_ids: tuple[int, ...]
    left_out: str


def teacher_engine(recipe: Recipe, threads: int = 0) -> Engine:
    """Return an engine of the teacher with the recipe's prompt and beam. Its windows are those of the soft labels:
    padded to 30 s.

    The weights keep their precision (float32 on a CPU): in int8 the teacher would differ from that of the soft labels.
    """
    targets = recipe.targets
    return Engine(
        ctranslate2_folder(recipe.teacher.model),
        compute_type="default",
        threads=threads,
        device=usable_device(recipe.train.workers.gpu),
        window=None,
        decoding=Decoding(targets.beam_size, targets.timestamps, targets.prompt),
    )


def targets_of(
    utterances: Sequence[Utterance], recipe: Recipe, tokens: Tokens, engine: Engine | None = None
) -> list[Target]:
    """Return the targets of utterances, in their order: their texts, or the teacher's filtered transcripts.

    The target of a clip without speech is empty. The teacher transcribes with ``engine``, by default
    :func:`teacher_engine` of the recipe.

    Raises :class:`AskdError` for a language that the teacher does not know, and for audio that cannot be decoded.
    """
    targets = {i: _text_target(u, tokens) for i, u in enumerate(utterances)}
    pseudo = [i for i, u in enumerate(utterances) if is_pseudo_labelled(u, recipe)]
    engine = engine or (teacher_engine(recipe) if pseudo else None)
    for language in sorted({utterances[i].language for i in pseudo}):
        rows = [i for i in pseudo if utterances[i].language == language]
        assert engine is not None
        transcripts = engine.transcribe([waveform_of(utterances[i]) for i in rows], language)
        for i, transcript in zip(rows, transcripts, strict=True):
            targets[i] = _pseudo_target(utterances[i], transcript, recipe, tokens)
    return [targets[i] for i in range(len(utterances))]


def is_pseudo_labelled(utterance: Utterance, recipe: Recipe) -> bool:
    """Whether the teacher transcribes an utterance. Nobody else knows the words of a crop."""
    if utterance.derived == "non_speech":
        return False
    return recipe.targets.kind == "pseudo" or utterance.derived == "crop"


def _text_target(utterance: Utterance, tokens: Tokens) -> Target:
    if utterance.text or utterance.derived == "non_speech":
        return Target(tuple(tokens.encode(utterance.text)) if utterance.text else (), "")
    return Target((), "no reference")


def _pseudo_target(utterance: Utterance, transcript: Transcript, recipe: Recipe, tokens: Tokens) -> Target:
    """Return a filtered transcript; for a crop of an utterance with a text, the part of this text that it matches."""
    if utterance.derived == "crop" and utterance.text:
        part = matching_part(utterance.text, transcript.text, utterance.language) if transcript.ended else ""
        return Target(tuple(tokens.encode(part)), "") if part else Target((), "not a part of the reference")
    return Target(transcript.token_ids, failed_filter(recipe.targets, utterance, transcript))
