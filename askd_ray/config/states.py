"""The recipe's ``objective.hidden_states`` and ``decoder_states``: losses between states of student and teacher."""

from typing import Annotated, Literal

from pydantic import Field

from askd_ray.config.section import Positive, Section


class NoHiddenStates(Section):
    """No loss between encoder states."""

    kind: Literal["none"] = "none"
    """Which loss between encoder states of student and teacher."""


class HiddenStatesLoss(Section):
    """A loss between encoder states of student and teacher; it needs ``teacher.online``.

    If the widths differ, a projection is trained with the student and dropped at the end.
    """

    kind: Literal["mse", "cosine"] = "mse"
    """Which loss between encoder states of student and teacher: the mean squared error, or 1 - cosine similarity."""
    weight: Positive = 1.0
    """Its weight in the loss."""
    layers: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = ((-1, -1),)
    """Pairs of a student layer and a teacher layer; -1 is after the last."""


HiddenStates = Annotated[NoHiddenStates | HiddenStatesLoss, Field(discriminator="kind")]
"""The loss between encoder states."""


class NoDecoderStates(Section):
    """No loss between decoder states."""

    kind: Literal["none"] = "none"
    """Which loss between decoder states."""


class DecoderStatesLoss(Section):
    """A loss between the student's decoder states and the teacher's in its padded window (docs/objective.md).

    It needs ``targets.states`` or ``teacher.online``. If the widths differ, a projection is trained with the student
    and dropped at the end.
    """

    kind: Literal["mse", "cosine"] = "mse"
    """Which loss between decoder states: the mean squared error, or 1 - cosine similarity, summed over layers."""
    scale: Positive = 1.0
    """The factor of the whole term."""
    layers: Literal["all", "last"] | Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = "all"
    """``all``: each student layer and the teacher layer that it was made of, the last with the last; ``last``: only the
    last, after the final layer norm; or pairs of a student layer and a teacher layer; -1 is the last."""
    self_teacher: bool = False
    """Also match the self-teacher's states, with its weight b."""


DecoderStates = Annotated[NoDecoderStates | DecoderStatesLoss, Field(discriminator="kind")]
"""The loss between decoder states."""
