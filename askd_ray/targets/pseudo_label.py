"""The target texts: references, or pseudo-labels, which are the teacher's transcripts."""

from dataclasses import dataclass

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.models.engine import Engine
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.transcript import Decoding, Transcript
from askd_ray.targets.filter import failed_filter, matching_part
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import usable_device


@dataclass(frozen=True)
class Target:
    """The target tokens of an utterance, without prompt and end token; ``left_out`` is the reason of an exclusion."""

    token_ids: tuple[int, ...]
    left_out: str


def teacher_engine(recipe: Recipe, threads: int = 0) -> Engine:
    """Return an engine of the teacher with the recipe's prompt and beam, for windows of 30 s.

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


def is_pseudo_labelled(utterance: Utterance, recipe: Recipe) -> bool:
    """Whether the teacher transcribes an utterance. Nobody else knows the words of a crop."""
    if utterance.derived == "non_speech":
        return False
    return recipe.targets.kind == "pseudo" or utterance.derived == "crop"


def text_target(utterance: Utterance, tokens: Tokens) -> Target:
    """Return the text of an utterance; that of a clip without speech is empty."""
    if utterance.text or utterance.derived == "non_speech":
        return Target(tuple(tokens.encode(utterance.text)) if utterance.text else (), "")
    return Target((), "no reference")


def pseudo_target(utterance: Utterance, transcript: Transcript, recipe: Recipe, tokens: Tokens) -> Target:
    """Return a filtered transcript. That of a crop of an utterance with a text must be a part of this text.

    Where other clips have their references, such a crop gets its part of the reference, as that writes it.
    """
    if utterance.derived == "crop" and utterance.text:
        part = matching_part(utterance.text, transcript.text, utterance.language) if transcript.ended else ""
        if not part:
            return Target((), "not a part of the reference")
        return Target(transcript.token_ids if recipe.targets.kind == "pseudo" else tuple(tokens.encode(part)), "")
    return Target(transcript.token_ids, failed_filter(recipe.targets, utterance, transcript))
