"""What is lost by keeping k tokens: KL(top-k and rest) against the dense one, from the teacher to a student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.units import PADDED_SAMPLES, window_samples
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels, read_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, to_utterances, waveform_of
from askd_ray.errors import AskdError
from askd_ray.location import PathOrUri
from askd_ray.models.load import load_whisper
from askd_ray.models.student import build_student
from askd_ray.progress import Table
from askd_ray.targets.buckets import to_buckets
from askd_ray.targets.soft_labels import forced_logits
from askd_ray.torch_setup import usable_device, use_threads

KEPT = (8, 16, 32, 64)
"""The k that are always reported; the recipe's own comes beside them."""

SAMPLE = 8
"""Utterances that the report of a run looks at: a few seconds' work."""


@dataclass(frozen=True)
class KlLost:
    """The mean KL of a token with k tokens and the rest in one bucket, and with the whole vocabulary, in nats."""

    k: int
    kept: float
    dense: float

    @property
    def nats(self) -> float:
        """How much of the dense KL the buckets do not see; never below 0 (data processing inequality)."""
        return self.dense - self.kept

    @property
    def share(self) -> float:
        """The part of the dense KL that is lost."""
        return self.nats / self.dense if self.dense else 0.0


@torch.no_grad()
def kl_lost(
    teacher: WhisperForConditionalGeneration,
    student: WhisperForConditionalGeneration,
    utterances: Sequence[Utterance],
    labels: Sequence[SoftLabels],
    recipe: Recipe,
) -> list[KlLost]:
    """Return what each of :data:`KEPT` and the recipe's ``teacher.top_k`` lose, by rising k, over all target tokens.

    The teacher hears the padded window, the student the trimmed one, both forced along the labels' targets, at the
    recipe's temperature. Utterances that are left out count nothing. [] where no token is left.

    Raises :class:`AskdError` when the two have different vocabularies.
    """
    if teacher.config.vocab_size != student.config.vocab_size:
        sizes = f"{student.config.vocab_size} tokens, the teacher's {teacher.config.vocab_size}"
        raise AskdError(f"student.init = {recipe.student.init!r}: its vocabulary has {sizes}: they must be the same")
    ks = sorted({*KEPT, recipe.teacher.top_k})
    dense, kept, n_tokens = 0.0, dict.fromkeys(ks, 0.0), 0
    for utterance, label in zip(utterances, labels, strict=True):
        if label.left_out:
            continue
        waveform = waveform_of(utterance)
        window = window_samples(len(waveform), recipe.window.silence_s)
        (of_teacher,) = forced_logits(teacher, [waveform], [PADDED_SAMPLES], [label])
        (of_student,) = forced_logits(student, [waveform], [window], [label])
        log_p = torch.log_softmax(of_teacher / recipe.objective.temperature.start, dim=-1)
        log_q = torch.log_softmax(of_student / recipe.objective.temperature.start, dim=-1)
        ids = log_p.topk(max(ks), dim=-1).indices
        n_tokens += len(log_p)
        dense += _kl(log_p, log_q)
        for k in ks:
            kept[k] += _kl(to_buckets(log_p, ids[:, :k]), to_buckets(log_q, ids[:, :k]))
    return [KlLost(k, kept[k] / n_tokens, dense / n_tokens) for k in ks] if n_tokens else []


def measure(recipe: Recipe, shard: PathOrUri, labels: PathOrUri) -> list[KlLost]:
    """Return :func:`kl_lost` of the recipe's teacher and its untrained student on a sample of a shard.

    That is its first :data:`SAMPLE` utterances that are not left out. Needs labels that have passed their check.
    """
    use_threads()
    rows = zip(to_utterances(read_table(shard)), read_labels(labels, recipe.teacher.top_k), strict=True)
    sample = [row for row in rows if not row[1].left_out][:SAMPLE]
    student, _ = build_student(recipe.student, recipe.teacher.model)
    teacher, _ = load_whisper(recipe.teacher.model)
    for model in (student, teacher):
        cast(torch.nn.Module, model).to(usable_device(recipe.train.use_gpu))
    return kl_lost(teacher, student, [u for u, _ in sample], [made for _, made in sample], recipe)


def kl_table(report: Sequence[KlLost]) -> Table:
    """Return the report as a table: what k tokens and the rest lose of the dense KL."""
    dense = f"{report[0].dense:.3g}" if report else "-"
    table = Table(title=f"KL lost to top-k, of {dense} nats a token (teacher to untrained student)")
    for column in ("k", "nats a token", "share"):
        table.add_column(column, justify="right")
    for lost in report:
        table.add_row(str(lost.k), f"{lost.nats:.2g}", f"{lost.share:.2%}")
    return table


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Return KL(p || q) in nats, summed over tokens."""
    return float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64))
