"""Losses over a large vocabulary, a few tokens at a time: the logits of a batch never stand in memory as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

CHUNK_TOKENS = 64
"""Target tokens whose logits stand in memory together: 64 x 51,865 x 4 B = 13 MB a tensor."""

SumsOf = Callable[[torch.Tensor, slice], torch.Tensor]
"""Maps the logits ``(n, n_vocab)`` of the target tokens ``rows`` to sums ``(n_sums,)``; the first one is minimised."""


def chunked_sums(
    hidden: torch.Tensor, projection: torch.Tensor, sums_of: SumsOf, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, with its gradient, and all sums ``(n_sums,)`` in float64 without.

    ``hidden`` (n_tokens, d_model), ``projection`` (n_vocab, d_model). The logits' gradient is taken while their chunk
    is there, so that only the gradients of ``hidden`` and ``projection`` wait for the backward pass: the same numbers
    and the same number of multiplications as without chunks. Without tokens the loss is 0 and so are its gradients.
    """
    loss, sums = _ChunkedSums.apply(hidden, projection, sums_of, chunk_tokens)  # pyright: ignore[reportGeneralTypeIssues]
    return loss, sums


class _ChunkedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, projection: torch.Tensor, sums_of: SumsOf, chunk_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        to_hidden, to_projection = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if to_hidden else None
        grad_projection = torch.zeros_like(projection) if to_projection else None
        parts: list[torch.Tensor] = []
        for start in range(0, max(1, len(hidden)), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = functional.linear(hidden[rows], projection).requires_grad_(to_hidden or to_projection)
            with torch.enable_grad():
                sums = sums_of(logits, rows)
                parts.append(sums.detach().double())
                if not logits.requires_grad:
                    continue
                (grad,) = torch.autograd.grad(sums[0], logits)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ projection
            if grad_projection is not None:
                grad_projection.addmm_(grad.t().to(projection.dtype), hidden[rows].to(projection.dtype))
        total = torch.stack(parts).sum(dim=0)
        ctx.gradients = grad_hidden, grad_projection
        ctx.mark_non_differentiable(total)
        return total[0].float(), total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        grad_hidden, grad_projection = ctx.gradients
        del ctx.gradients  # scaled in place, so they serve once
        for gradient in (grad_hidden, grad_projection):
            if gradient is not None:
                gradient.mul_(grads[0])
        return grad_hidden, grad_projection, None, None
