"""The loss of top-k soft labels: KL from teacher to student over top-k and rest, compared with the dense KL."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels, read_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, to_utterances, waveform_of
from askd_ray.divergence.buckets import to_buckets
from askd_ray.divergence.kinds import forward_kl
from askd_ray.errors import AskdError
from askd_ray.location import PathOrUri
from askd_ray.models.layer_map import build_student
from askd_ray.models.vocabulary import vocabulary_of_init
from askd_ray.progress import Table
from askd_ray.targets.soft_labels import for_inference, forced_logits, load_teacher
from askd_ray.torch_setup import use_threads

REPORTED_KS = (8, 16, 32, 64)
"""The values of k in every report; the recipe's ``teacher.top_k`` is added."""

SAMPLE_UTTERANCES = 8
"""The number of utterances in the report of a run: a few seconds of work."""


@dataclass(frozen=True)
class KlLost:
    """The mean KL per token in nats: ``kept`` over k tokens and one bucket, ``dense`` over the whole vocabulary."""

    k: int
    kept: float
    dense: float

    @property
    def nats(self) -> float:
        """The part of the dense KL that the buckets miss, in nats; never below 0 (data processing inequality)."""
        return self.dense - self.kept

    @property
    def share(self) -> float:
        """The lost share of the dense KL."""
        return self.nats / self.dense if self.dense else 0.0


@torch.no_grad()
def kl_lost(
    teacher: WhisperForConditionalGeneration,
    student: WhisperForConditionalGeneration,
    utterances: Sequence[Utterance],
    labels: Sequence[SoftLabels],
    recipe: Recipe,
) -> list[KlLost]:
    """Return the loss of each k in :data:`REPORTED_KS` and of ``teacher.top_k``, by rising k, over all target tokens.

    The teacher gets the padded window and the student the trimmed one; both are forced along the labels' targets, at
    the recipe's temperature. Excluded utterances do not count. Returns [] if there is no token.

    Raises :class:`AskdError` when the models have different vocabularies.
    """
    if teacher.config.vocab_size != student.config.vocab_size:
        sizes = f"{student.config.vocab_size} tokens, the teacher's {teacher.config.vocab_size}"
        raise AskdError(f"student.init = {recipe.student.init!r}: its vocabulary has {sizes}: they must be the same")
    ks = sorted({*REPORTED_KS, recipe.teacher.top_k})
    dense, kept, n_tokens = 0.0, dict.fromkeys(ks, 0.0), 0
    for utterance, label in zip(utterances, labels, strict=True):
        if label.left_out:
            continue
        waveform = waveform_of(utterance)
        window = DecodingWindow.of(recipe.window).samples(len(waveform), student.config.num_mel_bins)
        n_mels = teacher.config.num_mel_bins, student.config.num_mel_bins
        (of_teacher,) = forced_logits(teacher, log_mel_padded([waveform], n_mels[0]), [label])
        (of_student,) = forced_logits(student, log_mel_windows([waveform], [window], n_mels[1]), [label])
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

    The sample is the first :data:`SAMPLE_UTTERANCES` utterances that are not excluded. The labels must be up to date.
    Returns [] for a ``student.init`` with fewer tokens.
    """
    if vocabulary_of_init(recipe) is not None:
        return []
    use_threads()
    rows = zip(to_utterances(read_table(shard)), read_labels(labels, recipe.teacher.top_k), strict=True)
    sample = [row for row in rows if row[1].has_teacher and not row[1].left_out][:SAMPLE_UTTERANCES]
    student, _ = build_student(recipe.student, recipe.teacher.model)
    for_inference(student, recipe)
    teacher, _ = load_teacher(recipe)
    return kl_lost(teacher, student, [u for u, _ in sample], [label for _, label in sample], recipe)


def kl_table(report: Sequence[KlLost]) -> Table:
    """Return the report as a table: the loss of each k."""
    dense = f"{report[0].dense:.3g}" if report else "-"
    table = Table(title=f"KL lost to top-k, of {dense} nats a token (teacher to untrained student)")
    for column in ("k", "nats a token", "share"):
        table.add_column(column, justify="right")
    for lost in report:
        table.add_row(str(lost.k), f"{lost.nats:.2g}", f"{lost.share:.2%}")
    return table


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """Return KL(p || q) in nats, summed over tokens."""
    return float(forward_kl(log_p.double(), log_q.double()).sum())
