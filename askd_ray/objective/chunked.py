"""Losses over a large vocabulary in chunks of tokens: memory never holds all logits of a batch at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from askd_ray.torch_setup import gpu_memory_bytes

_CPU_CHUNK_TOKENS = 64  # logits of one chunk: 64 x 51,865 x 4 B = 13 MB a tensor, which stays in a cache
_MIN_GPU_CHUNK_TOKENS, _MAX_GPU_CHUNK_TOKENS = 2048, 4096  # fewer would launch more kernels, each too small for a GPU
_MEMORY_SHARE = 1 / 16  # of a GPU's memory, for the logits of a chunk and what is computed of them
_BYTES_PER_LOGIT = 32  # about eight float32 tensors of the logits' shape exist at the same time


def chunk_tokens_of(device: torch.device, n_vocab: int) -> int:
    """Return the number of target tokens per chunk on a device.

    It depends on the size of a GPU's memory and not on what is free, so that a resumed run repeats its sums exactly.
    """
    if device.type != "cuda":
        return _CPU_CHUNK_TOKENS
    return gpu_chunk_tokens(gpu_memory_bytes(device), n_vocab)


def gpu_chunk_tokens(memory_bytes: int, n_vocab: int) -> int:
    """Return the number of target tokens per chunk on a GPU with this memory: a multiple of 256, 2,048 to 4,096."""
    n_tokens = int(memory_bytes * _MEMORY_SHARE) // (n_vocab * _BYTES_PER_LOGIT) // 256 * 256
    return min(max(n_tokens, _MIN_GPU_CHUNK_TOKENS), _MAX_GPU_CHUNK_TOKENS)


SumsOf = Callable[[torch.Tensor, torch.Tensor | None, slice], torch.Tensor]
"""Maps the logits ``(n, n_vocab)`` of the target tokens ``rows``, and their task losses ``(n,)`` if these are not
cross-entropies, to sums ``(n_sums,)``; the first is the loss."""


def chunked_sums(
    hidden: torch.Tensor,
    projection: torch.Tensor,
    sums_of: SumsOf,
    chunk_tokens: int | None = None,
    task_loss: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, with a gradient, and all sums ``(n_sums,)`` in float64, without one.

    ``hidden`` (n_tokens, d_model), ``projection`` (n_vocab, d_model). The forward pass computes each chunk's logits and
    their gradient, and keeps only the gradients of ``hidden`` and ``projection`` for the backward pass. Results and
    number of multiplications are the same as without chunks. Without tokens, the loss and its gradients are 0.
    ``chunk_tokens`` None: :func:`chunk_tokens_of` the device. ``task_loss`` (n_tokens,) also gets its gradient.
    """
    chunk_tokens = chunk_tokens or chunk_tokens_of(hidden.device, len(projection))
    loss, sums = _ChunkedSums.apply(hidden, projection, task_loss, sums_of, chunk_tokens)  # pyright: ignore[reportGeneralTypeIssues]
    return loss, sums


class _ChunkedSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        projection: torch.Tensor,
        task_loss: torch.Tensor | None,
        sums_of: SumsOf,
        chunk_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        to_hidden, to_projection = ctx.needs_input_grad[:2]
        grads_hidden, grads_task, grad_projection = list[torch.Tensor](), list[torch.Tensor](), None
        parts: list[torch.Tensor] = []
        for start in range(0, max(1, len(hidden)), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = functional.linear(hidden[rows], projection).requires_grad_(to_hidden or to_projection)
            with torch.enable_grad():
                task = None if task_loss is None else task_loss[rows].detach().requires_grad_(logits.requires_grad)
                sums = sums_of(logits, task, rows)
                parts.append(sums.detach().double())
                if not logits.requires_grad:
                    continue
                inputs = [logits] if task is None else [logits, task]
                # With no divergence in the loss, a task loss is all of it, and the logits have no part in it.
                grad, *of_task = torch.autograd.grad(sums[0], inputs, materialize_grads=task is not None)
                grads_task += of_task
            if to_hidden:
                grads_hidden.append((grad @ projection).to(hidden.dtype))
            if to_projection:
                grad_projection = _add_product(grad_projection, grad, hidden[rows])
        total = torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
        grad_hidden = (torch.cat(grads_hidden) if len(grads_hidden) > 1 else grads_hidden[0]) if to_hidden else None
        grad_projection = None if grad_projection is None else grad_projection.to(projection.dtype)
        ctx.gradients = grad_hidden, grad_projection, torch.cat(grads_task) if grads_task else None
        ctx.mark_non_differentiable(total)
        return total[0].float(), total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients  # scaled in place, so a second backward pass cannot use them
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grads[0])
        return (*gradients, None, None)


def _add_product(total: torch.Tensor | None, grad: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return ``total + grad.T @ hidden`` in float32; ``total`` may be changed, and None is 0.

    A GPU multiplies in the precision of ``grad``, and adds in float32.
    """
    if grad.is_cuda and grad.dtype != torch.float32:
        product = torch.mm(grad.t(), hidden.to(grad.dtype), out_dtype=torch.float32)
        return product if total is None else total.add_(product)
    with torch.autocast(grad.device.type, enabled=False):
        grad, hidden = grad.float(), hidden.float()
        return grad.t() @ hidden if total is None else total.addmm_(grad.t(), hidden)
