"""Losses over a large vocabulary in chunks of tokens: memory never holds all logits of a batch at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

CHUNK_TOKENS = 64
"""Target tokens per chunk. Logits of one chunk: 64 x 51,865 x 4 B = 13 MB a tensor."""

SumsOf = Callable[[torch.Tensor, slice], torch.Tensor]
"""Maps the logits ``(n, n_vocab)`` of the target tokens ``rows`` to sums ``(n_sums,)``; the first is the loss."""


def chunked_sums(
    hidden: torch.Tensor, projection: torch.Tensor, sums_of: SumsOf, chunk_tokens: int = CHUNK_TOKENS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, with a gradient, and all sums ``(n_sums,)`` in float64, without one.

    ``hidden`` (n_tokens, d_model), ``projection`` (n_vocab, d_model). The forward pass computes each chunk's logits and
    their gradient, and keeps only the gradients of ``hidden`` and ``projection`` for the backward pass. Results and
    number of multiplications are the same as without chunks. Without tokens, the loss and its gradients are 0.
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
        del ctx.gradients  # scaled in place, so a second backward pass cannot use them
        for gradient in (grad_hidden, grad_projection):
            if gradient is not None:
                gradient.mul_(grads[0])
        return grad_hidden, grad_projection, None, None
