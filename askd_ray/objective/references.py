"""Reference distributions for the student: cached top-k labels, or another model's whole distribution."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn import functional

from askd_ray.divergence.buckets import clamp_to_finite, to_buckets
from askd_ray.text.units import BLANK


@dataclass(frozen=True)
class Distribution:
    """A reference distribution at some target tokens: log-probabilities at the run's temperature.

    ``log_p`` is (n_tokens, n_vocab), or (n_tokens, k + 1) over the tokens ``top_ids`` (n_tokens, k) and the rest.
    ``token_loss`` (n_tokens,) is the reference's cross-entropy of the targets at temperature 1, in nats. ``in_rest``
    (n_tokens, n_vocab), if given, marks the classes that are not apart from the rest, which is class 0 then. ``empty``
    (n_tokens, k + 1), if given, marks the buckets whose token has another bucket.
    """

    log_p: torch.Tensor
    top_ids: torch.Tensor | None
    token_loss: torch.Tensor
    in_rest: torch.Tensor | None = None
    empty: torch.Tensor | None = None

    def of_student(self, log_q: torch.Tensor) -> torch.Tensor:
        """Reduce the student's log-probabilities ``(n_tokens, n_vocab)`` to the tokens or buckets of ``log_p``."""
        if self.in_rest is not None:
            rest = log_q.masked_fill(~self.in_rest, -torch.inf).logsumexp(dim=-1, keepdim=True)
            return clamp_to_finite(torch.cat([rest, log_q.masked_fill(self.in_rest, -torch.inf)[:, 1:]], dim=1))
        return log_q if self.top_ids is None else to_buckets(log_q, self.top_ids, self.empty)


class Reference(Protocol):
    """A reference for all target tokens of a batch. It gives a few rows at a time: whole distributions are large."""

    @property
    def states(self) -> Mapping[int, torch.Tensor]:
        """Decoder states ``(n_tokens, d_model)`` by the teacher's layer; empty if nothing compares them."""
        ...

    def distribution(self, rows: slice, targets: torch.Tensor, temperature: float) -> Distribution:
        """Return the distribution at the target tokens ``rows``, whose ids are ``targets``."""
        ...


@dataclass(frozen=True)
class TopK:
    """Top-k labels of ``n_tokens`` tokens, computed at the run's temperature.

    ``ids`` and ``log_probs`` (n_tokens, k), ``rest`` and ``token_loss`` (n_tokens,); ``states`` by the teacher's layer.
    A log-probability of -inf marks a slot whose token is in another slot.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor
    token_loss: torch.Tensor
    states: Mapping[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])

    def distribution(self, rows: slice, targets: torch.Tensor, temperature: float) -> Distribution:
        """Return the buckets, normalised again because float16 has rounded them."""
        buckets = torch.cat([self.log_probs[rows], self.rest[rows, None]], dim=1).float()
        log_p = clamp_to_finite(buckets.log_softmax(dim=-1))
        return Distribution(log_p, self.ids[rows], self.token_loss[rows], empty=buckets == -torch.inf)


@dataclass(frozen=True)
class UnitLabels:
    """Top-k labels as distributions over the units of a CTC head: of the first units of their tokens.

    ``first`` (n_vocab,) has the class of each token's first unit, or the blank. What the labels do not name is the
    rest; on the student's side it is the blank and all classes that no label names.
    """

    labels: TopK
    first: torch.Tensor
    n_classes: int
    states: Mapping[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])

    def distribution(self, rows: slice, targets: torch.Tensor, temperature: float) -> Distribution:
        """Return the distributions over classes."""
        of_tokens = self.labels.distribution(rows, targets, temperature)
        assert of_tokens.top_ids is not None
        p = of_tokens.log_p.exp()
        by_class = p.new_zeros(len(p), self.n_classes).scatter_add(1, self.first[of_tokens.top_ids], p[:, :-1])
        by_class[:, BLANK] += p[:, -1]
        in_rest = by_class == 0.0
        in_rest[:, BLANK] = True
        return Distribution(clamp_to_finite(by_class.log()), None, of_tokens.token_loss, in_rest)


@dataclass(frozen=True)
class Dense:
    """Another model's whole distribution, from its last hidden states ``(n_tokens, d_model)`` and its projection.

    ``states``: its decoder states by the teacher's layer.
    """

    hidden: torch.Tensor
    projection: torch.Tensor
    states: Mapping[int, torch.Tensor] = field(default_factory=dict[int, torch.Tensor])

    @torch.no_grad()
    def distribution(self, rows: slice, targets: torch.Tensor, temperature: float) -> Distribution:
        """Return the log-softmax over the vocabulary."""
        logits = functional.linear(self.hidden[rows], self.projection).float()
        token_loss = functional.cross_entropy(logits, targets, reduction="none")
        return Distribution(torch.log_softmax(logits / temperature, dim=-1), None, token_loss)
