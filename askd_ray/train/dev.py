"""Dev scores during training: every rank decodes its share, and word errors are summed, not averaged over batches."""

import copy
import math
from collections.abc import Collection, Mapping

import torch
import torch.distributed as dist

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.train import Selection
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.dev import DevClips, DevGroup, DevPart
from askd_ray.data.schema import DerivedKind
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.text.error_rate import ErrorCounts, count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import inference_dtype
from askd_ray.train.context import Context

_BATCH_SIZE = {"cpu": 8, "cuda": 64}  # on a CPU, larger batches lose more by finished rows than they gain
_THREADS = {"cpu": 1, "cuda": 4}  # that decode audio: a GPU is faster than one of them
_SLICES: dict[DerivedKind, str] = {"crop": "dev_wer/short", "stitched": "dev_wer/stitched"}
WORDS_PER_MIN = "dev_words_per_min"
"""The metric of the clips without speech: transcribed words a minute of audio."""


def rank_part(context: Context) -> DevPart:
    """Return the part of dev that a rank decodes."""
    return DevPart(context.rank, context.world_size, _BATCH_SIZE[context.device.type])


@torch.no_grad()
def dev_errors(
    student: StudentModel,
    student_kind: StudentKind,
    dev: DevClips,
    window: DecodingWindow,
    context: Context,
) -> dict[DevGroup, ErrorCounts]:
    """Return the word errors of greedy transcripts in trimmed windows, by group, summed over all ranks.

    Each rank decodes its part of dev (:func:`rank_part`), on a GPU with a copy of the student in float16. Every rank
    makes exactly one all-reduce at the end, so ranks with fewer utterances cannot block the others.
    """
    was_training = student.training
    student.eval()
    device = context.device
    dev_student = in_precision(student, inference_dtype(device))
    dtype = next(dev_student.parameters()).dtype
    counts = {group: ErrorCounts() for group in sorted(dev.groups)}
    windows = evaluation_windows(dev.clips, window, student.n_mels, _BATCH_SIZE[device.type], _THREADS[device.type])
    for batch, log_mel in windows:
        # One decode per language, because the prompt contains the language.
        for language in sorted({u.language for u in batch}):
            rows = [i for i, u in enumerate(batch) if u.language == language]
            transcripts = student_kind.transcribe(dev_student, log_mel[rows].to(device, dtype), language)
            normalize = normalizer(language)
            for i, transcript in zip(rows, transcripts, strict=True):
                errors = count_word_errors([normalize(batch[i].text)], [normalize(transcript)])
                counts[DevGroup.of(batch[i])] += errors
    student.train(was_training)
    sums = [[c.substitutions, c.deletions, c.insertions, c.n_reference] for c in counts.values()]
    totals = torch.tensor(sums, device=device)  # NCCL cannot reduce tensors on the CPU
    if context.world_size > 1:
        dist.all_reduce(totals)
    return {group: ErrorCounts(*total) for group, total in zip(counts, totals.tolist(), strict=True)}


def in_precision(student: StudentModel, dtype: torch.dtype) -> StudentModel:
    """Return a student in a precision: itself, or a copy.

    Autocast would convert all weights for each token, which takes longer than to use them.
    """
    if next(student.parameters()).dtype == dtype:
        return student
    return copy.deepcopy(student).to(dtype)


def dev_metrics(
    errors: Mapping[DevGroup, ErrorCounts], silent_min: float, ood_domains: Collection[str]
) -> dict[str, float]:
    """Return ``dev_wer`` over all words of the dev utterances, and the scores of the derived clips that there are.

    These are ``dev_wer/short``, ``dev_wer/stitched``, and ``dev_words_per_min`` of ``silent_min`` minutes without
    speech. With ``ood_domains`` also return ``dev_wer/ood`` over these domains, ``dev_wer/in_domain`` over the others,
    and ``dev_wer/domain/NAME`` of each domain.
    """
    by_domain = {group.domain: counts for group, counts in errors.items() if not group.derived}
    wers = {"dev_wer": sum(by_domain.values(), ErrorCounts()).rate}
    by_kind = {group.derived: counts for group, counts in errors.items() if group.derived}
    wers |= {name: by_kind[kind].rate for kind, name in _SLICES.items() if kind in by_kind}
    if "non_speech" in by_kind:
        wers[WORDS_PER_MIN] = by_kind["non_speech"].insertions / silent_min
    if ood_domains:
        for name, is_ood in (("in_domain", False), ("ood", True)):
            part = [counts for domain, counts in by_domain.items() if (domain in ood_domains) == is_ood]
            wers[f"dev_wer/{name}"] = sum(part, ErrorCounts()).rate
        wers |= {f"dev_wer/domain/{domain}": counts.rate for domain, counts in by_domain.items()}
    return wers


def dev_score(metrics: Mapping[str, float], settings: Selection) -> float:
    """Return the score that chooses the best student, lower is better: the sum of :class:`Selection`."""
    weights = {
        _SLICES["crop"]: settings.short,
        _SLICES["stitched"]: settings.stitched,
        WORDS_PER_MIN: settings.words_per_min,
    }
    return metrics["dev_wer"] + math.fsum(w * metrics[name] for name, w in weights.items() if name in metrics)
