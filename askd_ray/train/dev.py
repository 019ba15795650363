"""Dev scores while training: every rank decodes its share, and words are counted, not averaged over batches."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from transformers import WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.schema import Utterance
from askd_ray.models.generate import greedy
from askd_ray.text.error_rate import ErrorCounts, count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import Tokens
from askd_ray.train.context import Context

_BATCH_SIZE = 8  # on a CPU, padding and rows that are finished cost more than larger batches save


def dev_errors(
    model: WhisperForConditionalGeneration,
    tokens: Tokens,
    utterances: Sequence[Utterance],
    recipe: Recipe,
    context: Context,
) -> ErrorCounts:
    """Return the word errors of greedy transcripts in trimmed windows, summed over all ranks.

    They start with the prompt that the recipe's targets start with: the student is asked for what it learns.

    Every rank ends with one all-reduce, whatever its share, so ranks with fewer utterances cannot hang the others.
    """
    was_training = model.training
    model.eval()
    mine = utterances[context.rank :: context.world_size]
    counts = ErrorCounts()
    for batch, log_mel in evaluation_windows(mine, recipe.window.silence_s, model.config.num_mel_bins, _BATCH_SIZE):
        # One decode a language: the prompt holds it.
        for language in sorted({u.language for u in batch}):
            rows = [i for i, u in enumerate(batch) if u.language == language]
            prompt = tokens.prompt(language, recipe.targets.prompt, recipe.targets.timestamps)
            ids = greedy(model, tokens, log_mel[rows].to(context.device), prompt)
            normalize = normalizer(language)
            references = [normalize(batch[i].text) for i in rows]
            counts += count_word_errors(references, [normalize(tokens.decode(row)) for row in ids])
    model.train(was_training)
    sums = [counts.substitutions, counts.deletions, counts.insertions, counts.n_reference]
    totals = torch.tensor(sums, device=context.device)  # NCCL knows no tensors on the CPU
    if context.world_size > 1:
        dist.all_reduce(totals)
    return ErrorCounts(*totals.tolist())
