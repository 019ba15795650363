import pytest
import torch
from torch.nn import functional

from askd_ray.objective.chunked import chunk_tokens_of, chunked_sums, gpu_chunk_tokens

N_VOCAB, WIDTH = 17, 5


def losses(targets: torch.Tensor):
    def sums_of(logits: torch.Tensor, task_loss: torch.Tensor | None, rows: slice) -> torch.Tensor:
        ce = functional.cross_entropy(logits, targets[rows], reduction="sum")
        return torch.stack([ce + 0.1 * logits.square().sum(), ce])

    return sums_of


def parts(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden, projection = torch.randn(n, WIDTH, generator=g), torch.randn(N_VOCAB, WIDTH, generator=g)
    return hidden.requires_grad_(), projection.requires_grad_(), torch.randint(0, N_VOCAB, (n,), generator=g)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 64])
def test_chunks_change_neither_value_nor_gradient(chunk_tokens: int):
    hidden, projection, targets = parts(7)
    whole = losses(targets)(functional.linear(hidden, projection), None, slice(None))
    expected = torch.autograd.grad(2.0 * whole[0], (hidden, projection))
    loss, sums = chunked_sums(hidden, projection, losses(targets), chunk_tokens)
    torch.testing.assert_close(sums, whole.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss, whole[0])
    torch.testing.assert_close(torch.autograd.grad(2.0 * loss, (hidden, projection)), expected)


def test_without_tokens_loss_and_gradients_are_zero():
    hidden, projection, targets = parts(0)
    loss, sums = chunked_sums(hidden, projection, losses(targets))
    loss.backward()
    assert loss.item() == 0.0 and sums.tolist() == [0.0, 0.0]
    assert hidden.grad is not None and hidden.grad.shape == (0, WIDTH)
    assert projection.grad is not None and not projection.grad.any()


def test_a_frozen_projection_has_no_gradient_and_no_grad_mode_needs_none():
    hidden, projection, targets = parts(4)
    loss, _ = chunked_sums(hidden, projection.detach(), losses(targets))
    loss.backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    with torch.no_grad():
        again, _ = chunked_sums(hidden, projection, losses(targets))
    assert again.item() == loss.item() and not again.requires_grad


@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_half_precision_keeps_the_projection_s_gradient_in_float32(chunk_tokens: int):
    hidden, projection, targets = parts(7)
    loss, _ = chunked_sums(hidden, projection, losses(targets), chunk_tokens)
    exact = torch.autograd.grad(loss, (hidden, projection))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_sums(hidden, projection, losses(targets), chunk_tokens)
    for rough, expected in zip(torch.autograd.grad(loss, (hidden, projection)), exact, strict=True):
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, expected, atol=0.05, rtol=0.05)


def test_chunks_of_a_gpu_grow_with_its_memory():
    assert chunk_tokens_of(torch.device("cpu"), 51_865) == 64
    sizes = [gpu_chunk_tokens(gb * 1024**3, 51_865) for gb in (8, 24, 48, 80, 141, 300)]
    assert sizes == sorted(sizes) and sizes[0] == 2048 and sizes[-1] == 4096 and len(set(sizes)) > 2
    assert all(size % 256 == 0 for size in sizes)
