"""The rules of ``student.reader``: nothing may be set for a part that the student does not have."""

from collections.abc import Sequence

from askd_ray.config.objective import Objective
from askd_ray.config.presets import CTC_PRESETS
from askd_ray.config.student import Student
from askd_ray.config.targets import Targets
from askd_ray.config.train import FrozenUntil, Optimization

_WITH_DECODER = ("encoder", "decoder", "embeddings")
_GROUPS = {
    "whisper": _WITH_DECODER,
    "llm": _WITH_DECODER,
    "ctc": ("encoder", "decoder"),
    "hybrid": (*_WITH_DECODER, "head"),
}
"""The groups of parameters of each reader's student, as the optimizer names them."""


def check_reader(
    student: Student, objective: Objective, targets: Targets, optimizer: Optimization, online_teacher: bool
) -> None:
    """Check the sections of a recipe against ``student.reader``.

    Raises :class:`ValueError` for a setting that its readers would ignore or that they do not support.
    """
    reader = student.reader
    if reader != "hybrid":
        one_reader = f"student.reader = {reader} has one reader"
        objective.refuse_unread(["ctc_weight"], one_reader)
        optimizer.refuse_unread(["head_lr"], one_reader)
        optimizer.frozen_until.refuse_unread(["head"], one_reader)
    _check_frozen(_GROUPS[reader], optimizer.frozen_until)
    if reader in ("whisper", "llm"):
        _check_without_head(student, objective)
        if reader == "llm":
            _check_with_llm(student, objective, targets, online_teacher)
        return
    _check_with_head(student, objective, targets, online_teacher)
    if reader == "ctc":
        _check_without_decoder(student, objective, targets, optimizer)


def _check_frozen(groups: Sequence[str], frozen_until: FrozenUntil) -> None:
    if min(getattr(frozen_until, group) for group in groups) > 0.0:
        *others, last = groups
        raise ValueError(f"frozen_until freezes {', '.join(others)} and {last} at the start: one must be 0")


def _check_without_head(student: Student, objective: Objective) -> None:
    if objective.preset in CTC_PRESETS:
        raise ValueError(f"objective.preset {objective.preset} trains a CTC head: set student.reader=ctc or hybrid")
    if objective.intermediate.kind != "none":
        raise ValueError(f"objective.intermediate would be ignored: student.reader = {student.reader} has no CTC head")


def _check_with_llm(student: Student, objective: Objective, targets: Targets, online_teacher: bool) -> None:
    reader = "student.reader = llm"
    if online_teacher:
        raise ValueError(f"{reader} learns from cached soft labels: set teacher.online=false")
    if targets.kind != "reference":
        raise ValueError(f"{reader}: its LLM reads references: set targets.kind=reference")
    student.refuse_unread(["decoder_layers"], f"{reader} has no decoder")
    targets.refuse_unread(["prompt", "states", "timestamps"], f"{reader} has no decoder")
    if objective.decoder_states.kind != "none":
        raise ValueError(f"objective.decoder_states would be ignored: {reader} has no decoder")


def _check_with_head(student: Student, objective: Objective, targets: Targets, online_teacher: bool) -> None:
    reader = f"student.reader = {student.reader}"
    if online_teacher:
        raise ValueError(f"{reader} learns from cached soft labels: set teacher.online=false")
    if objective.has_self_teacher and objective.self_teacher.kind == "previous_epoch":
        raise ValueError(
            f"{reader}: objective.self_teacher previous_epoch keeps the distributions of a decoder's tokens; use "
            "snapshot, ema or best"
        )
    if student.shrink:
        raise ValueError(f"{reader}: student.shrink needs student.reader=whisper")
    if targets.timestamps:
        raise ValueError(f"{reader}: targets.timestamps are tokens of a decoder; a CTC head gives times without them")


def _check_without_decoder(student: Student, objective: Objective, targets: Targets, optimizer: Optimization) -> None:
    ignored = "student.reader = ctc has no decoder"
    student.refuse_unread(["decoder_layers"], ignored)
    targets.refuse_unread(["prompt"], ignored)
    optimizer.refuse_unread(["embedding_lr"], ignored)
    optimizer.frozen_until.refuse_unread(["embeddings"], ignored)
    if objective.decoder_states.kind != "none":
        raise ValueError(f"objective.decoder_states would be ignored: {ignored}")
