"""Dev scores during training: every rank decodes its share, and word errors are summed, not averaged over batches."""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.distributed as dist

from askd_ray.audio.units import DecodingWindow
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.schema import Utterance
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.text.error_rate import ErrorCounts, count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.train.context import Context

_BATCH_SIZE = 8  # on a CPU, larger batches lose more by padding and finished rows than they gain


@torch.no_grad()
def dev_errors(
    student: StudentModel,
    student_kind: StudentKind,
    utterances: Sequence[Utterance],
    window: DecodingWindow,
    context: Context,
) -> dict[str, ErrorCounts]:
    """Return the word errors of greedy transcripts in trimmed windows, by domain, summed over all ranks.

    Every rank makes exactly one all-reduce at the end, so ranks with fewer utterances cannot block the others.
    """
    was_training = student.training
    student.eval()
    rank_utterances = utterances[context.rank :: context.world_size]
    counts = {domain: ErrorCounts() for domain in sorted({u.domain for u in utterances})}
    for batch, log_mel in evaluation_windows(rank_utterances, window, student.n_mels, _BATCH_SIZE):
        # One decode per language, because the prompt contains the language.
        for language in sorted({u.language for u in batch}):
            rows = [i for i, u in enumerate(batch) if u.language == language]
            transcripts = student_kind.transcribe(student, log_mel[rows].to(context.device), language)
            normalize = normalizer(language)
            for i, transcript in zip(rows, transcripts, strict=True):
                errors = count_word_errors([normalize(batch[i].text)], [normalize(transcript)])
                counts[batch[i].domain] += errors
    student.train(was_training)
    sums = [[c.substitutions, c.deletions, c.insertions, c.n_reference] for c in counts.values()]
    totals = torch.tensor(sums, device=context.device)  # NCCL cannot reduce tensors on the CPU
    if context.world_size > 1:
        dist.all_reduce(totals)
    return {domain: ErrorCounts(*total) for domain, total in zip(counts, totals.tolist(), strict=True)}


def dev_metrics(errors: Mapping[str, ErrorCounts], ood_domains: Collection[str]) -> dict[str, float]:
    """Return ``dev_wer`` over all words.

    With ``ood_domains`` also return ``dev_wer/ood`` over these domains, ``dev_wer/in_domain`` over the others, and
    ``dev_wer/domain/NAME`` of each domain.
    """
    wers = {"dev_wer": sum(errors.values(), ErrorCounts()).rate}
    if ood_domains:
        for name, is_ood in (("in_domain", False), ("ood", True)):
            part = [counts for domain, counts in errors.items() if (domain in ood_domains) == is_ood]
            wers[f"dev_wer/{name}"] = sum(part, ErrorCounts()).rate
        wers |= {f"dev_wer/domain/{domain}": counts.rate for domain, counts in errors.items()}
    return wers
