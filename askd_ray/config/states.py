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


class NoIntermediate(Section):
    """The CTC head reads only the last encoder layer."""

    kind: Literal["none"] = "none"
    """Whether the CTC head also reads intermediate encoder layers in training."""


class IntermediateCtc(Section):
    """The CTC head also reads intermediate encoder layers, each after a norm of its own, and learns at each of them.

    The loss at a layer is the objective's, with CTC as the task (arXiv 2102.03216); with a teacher it is in the spirit
    of Inter-KD (arXiv 2211.15075), whose exact losses are not public. Only the last layer is decoded.
    """

    kind: Literal["ctc"] = "ctc"
    """Whether the CTC head also reads intermediate encoder layers in training."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (1,)
    """The encoder layers, from 0."""
    weight: Positive = 0.3
    """The weight of the mean of their losses in the loss."""
    self_kd: bool = False
    """The head after the last layer is the self-teacher of these layers, with the weight b (arXiv 2406.07909)."""


Intermediate = Annotated[NoIntermediate | IntermediateCtc, Field(discriminator="kind")]
"""The intermediate encoder layers that a CTC head reads."""


DecoderStates = Annotated[NoDecoderStates | DecoderStatesLoss, Field(discriminator="kind")]
"""The loss between decoder states."""
