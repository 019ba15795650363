"""CTC for the objective: its loss as the task loss of the target tokens, and the frame of each target token.

Soft labels are distributions at tokens, and CTC has distributions at positions of the encoder. The most plausible path
of the student's own CTC (forced alignment) gives each unit a run of positions; a token's label is compared with the
distribution at the position where the token's first unit is most probable. Labels on that path carry a teacher of
tokens over to CTC (Futami et al., arXiv 2209.02030); to compare all positions of two free CTC models would mislead
(arXiv 1904.08311).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from askd_ray.objective.tensors import TensorBatch
from askd_ray.objective.transfer import send
from askd_ray.text.ctc_alignment import class_spans
from askd_ray.text.units import BLANK, Segmenter


@dataclass(frozen=True)
class CtcTargets:
    """The texts of a batch as CTC classes: ``classes`` (batch, length), of which a row has ``lengths`` (batch,).

    ``first_units`` has for each row the number of the first unit of each of its tokens. The end token has no unit, and
    a clip without speech has no class. ``text_lengths`` (batch,) are the tokens of each row without its end token.
    """

    classes: torch.Tensor
    lengths: torch.Tensor
    text_lengths: torch.Tensor
    first_units: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, batch: TensorBatch, segmenter: Segmenter) -> "CtcTargets":
        """Return the texts of a batch in the units of a vocabulary."""
        rows, first_units = list[list[int]](), list[torch.Tensor]()
        for targets in batch.targets.cpu().split(batch.lengths):
            units = [segmenter.classes(token) for token in targets[:-1].tolist()]
            rows.append([c for classes in units for c in classes])
            first_units.append(torch.tensor([0, *map(len, units)]).cumsum(0)[:-1])
        classes = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
        for row, of_row in zip(rows, classes, strict=True):
            of_row[: len(row)] = torch.tensor(row)
        lengths, text_lengths = torch.tensor(list(map(len, rows))), torch.tensor([max(0, n - 1) for n in batch.lengths])
        device = batch.targets.device
        return cls(send(classes, device), send(lengths, device), send(text_lengths, device), tuple(first_units))


def ctc_log_probs(hidden: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Return float32 log-probabilities ``(batch, n_positions, n_classes)`` of a head's hidden states."""
    return functional.linear(hidden, projection).float().log_softmax(dim=-1)


def ctc_token_losses(
    log_probs: torch.Tensor, n_positions: torch.Tensor, targets: CtcTargets, batch: TensorBatch
) -> torch.Tensor:
    """Return the CTC loss of each utterance as a loss of its target tokens ``(n_tokens,)``, in nats.

    Its tokens have equal shares of it, and its end token has none. A clip without speech has only its end token, which
    has the whole loss: that of a path of blanks. The loss is infinite where a text has more tokens than its window has
    positions for.
    """
    losses = functional.ctc_loss(
        log_probs.transpose(0, 1), targets.classes, n_positions, targets.lengths, blank=BLANK, reduction="none"
    )
    per_token = losses / targets.text_lengths.clamp_min(1)
    number = torch.arange(len(batch.targets), device=losses.device)
    ends = batch.n_targets.cumsum(0).index_select(0, batch.rows)
    has_share = (number + 1 < ends) | (batch.per_token(targets.text_lengths) == 0)
    return batch.per_token(per_token) * has_share


@torch.no_grad()
def token_positions(
    log_probs: torch.Tensor, n_positions: torch.Tensor, targets: CtcTargets, batch: TensorBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the position of each target token ``(n_tokens,)``, and whether its distributions can be compared there.

    It is that of the token's first unit. Positions are counted in the flattened ``(batch * n_positions)``. An end token
    has no position of its own, and neither have the tokens of a text that its window is too short for: theirs are those
    of the window's start.
    """
    length = log_probs.shape[1]
    on_host = [t.cpu() for t in (log_probs, n_positions, targets.classes, targets.lengths)]
    positions = torch.zeros(len(batch.targets), dtype=torch.long)
    comparable = torch.zeros(len(batch.targets), dtype=torch.bool)
    start = 0
    for row, (n_targets, first_units) in enumerate(zip(batch.lengths, targets.first_units, strict=True)):
        probs, n, classes, n_classes = (t[row] for t in on_host)
        spikes = _spikes(probs[: int(n)], classes[: int(n_classes)])
        positions[start : start + n_targets] = row * length
        if len(spikes):
            text = slice(start, start + len(first_units))
            positions[text] += spikes[first_units]
            comparable[text] = True
        start += n_targets
    return send(positions, log_probs.device), send(comparable, log_probs.device)


def _spikes(log_probs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the position of each class of a text ``(n,)``: the most probable one of its run on the best path.

    Without a path, return nothing.
    """
    n_repeats = int((classes[1:] == classes[:-1]).sum())
    if not len(classes) or len(classes) + n_repeats > len(log_probs):
        return classes[:0]
    return torch.tensor(class_spans(log_probs.numpy(), tuple(classes.tolist())).peaks)
