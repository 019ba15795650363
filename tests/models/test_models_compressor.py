"""Compressors: how many states they give, that rows do not depend on one another, and their initial values."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.config.student import STRIDES, CompressorSettings
from askd_ray.models.compressor import PoolingCompressor, build_compressor
from askd_ray.models.hfq_former import HfqFormer
from askd_ray.models.load import load_config
from askd_ray.models.state_compressor import StateCompressor
from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import inside_windows, mask_of_keys

KINDS = ("pooling", "hfq")
WIDTH, N_HEADS = 32, 2
WINDOWS = (1, 50, 1500, 51, 80)  # encoder positions: one, and 30 s


def made(kind: str, stride: int) -> StateCompressor:
    """A compressor whose parameters are all random, so that each of them matters."""
    torch.manual_seed(0)
    compressor = PoolingCompressor(WIDTH, stride) if kind == "pooling" else HfqFormer(WIDTH, N_HEADS, stride)
    with torch.no_grad():
        for parameter in compressor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return compressor.eval()


def encoder_output(windows: tuple[int, ...], seed: int = 1) -> EncoderOutput:
    """Random states in windows of some positions, with noise after them, as an encoder leaves it."""
    values = torch.randn(len(windows), max(windows), WIDTH, generator=torch.Generator().manual_seed(seed))
    if len(set(windows)) == 1:
        return EncoderOutput(values)
    inside = inside_windows(torch.tensor(windows), max(windows))
    return EncoderOutput(values, inside=inside, key_mask=mask_of_keys(inside, values))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(n_frames=st.integers(2, 3000), other=st.integers(2, 3000), rate=st.sampled_from(sorted(STRIDES)))
def test_a_window_of_any_length_has_one_state_for_each_stride(kind: str, n_frames: int, other: int, rate: float):
    stride = CompressorSettings.model_validate({"kind": kind, "rate": rate}).stride
    windows, compressor = (n_frames // 2, other // 2), made(kind, stride)
    expected = [-(-n // stride) for n in windows]
    for n, n_states in zip(windows, expected, strict=True):
        assert compressor(encoder_output((n,))).states.shape == (1, n_states, WIDTH)
    if windows[0] != windows[1]:
        together = compressor(encoder_output(windows))
        assert together.states.shape == (2, max(expected), WIDTH) and torch.isfinite(together.states).all()
        assert together.inside is not None and together.key_mask is not None
        assert together.inside.sum(dim=1).tolist() == expected
        assert torch.equal(together.key_mask[:, 0, 0] == 0.0, together.inside)


def test_a_rate_is_the_states_a_second():
    assert all(rate == round(50 / stride, 2) for rate, stride in STRIDES.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [2, 8, 30])
def test_rows_equal_those_alone_in_their_windows(kind: str, stride: int):
    compressor, encoded = made(kind, stride), encoder_output(WINDOWS)
    together = compressor(encoded)
    assert together.inside is not None
    losses, expected = list[torch.Tensor](), list[torch.Tensor]()
    for row, n in enumerate(WINDOWS):
        alone = compressor(EncoderOutput(encoded.states[row : row + 1, :n])).states
        found = together.states[row : row + 1, : alone.shape[1]]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        losses.append(found.sin().mean())
        expected.append(alone.sin().mean())
    parameters = list(compressor.parameters())
    gradients, exact = (torch.autograd.grad(sum(rows), parameters) for rows in (losses, expected))
    for (name, _), one, other in zip(compressor.named_parameters(), gradients, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)
        assert one.abs().max() > 0.0, name


@pytest.mark.parametrize("kind", KINDS)
def test_without_masks_a_shorter_row_would_differ(kind: str):
    compressor, encoded = made(kind, 8), encoder_output((51, 80))
    masked, unmasked = compressor(encoded).states, compressor(EncoderOutput(encoded.states)).states
    assert (masked[0, :7] - unmasked[0, :7]).abs().max() > 1e-3
    torch.testing.assert_close(masked[1], unmasked[1], atol=1e-5, rtol=1e-5)


def test_pooling_begins_with_means_of_neighbours():
    states = torch.arange(10.0).repeat_interleave(WIDTH).reshape(1, 10, WIDTH)
    pooled = PoolingCompressor(WIDTH, 4)(EncoderOutput(states)).states
    assert pooled[0, :, 0].tolist() == [1.5, 5.5, 8.5]  # the last mean is over two states


def test_parameter_counts(tiny_model: Path):
    config = load_config(str(tiny_model))

    def count(kind: str, rate: float) -> int:
        compressor = build_compressor(CompressorSettings.model_validate({"kind": kind, "rate": rate}), config)
        return sum(parameter.numel() for parameter in compressor.parameters())

    d = config.d_model
    assert count("pooling", 6.25) == d**2 + d
    assert count("hfq", 1.67) == 33 * d**2 + 49 * d + 4 * N_HEADS + (3 * 80 + 50) * d
    assert count("hfq", 6.25) == 33 * d**2 + 49 * d + 4 * N_HEADS + (3 * 301 + 188) * d


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind: str, dtype: torch.dtype):
    """With autocast as in training, and with all weights in the type as on dev."""
    compressor, encoded = made(kind, 8), encoder_output((51, 80))
    exact = compressor(encoded).states
    with torch.autocast("cpu", dtype):
        rough = compressor(encoded)
    assert rough.key_mask is not None and rough.key_mask.dtype == dtype
    whole = compressor.to(dtype)(EncoderOutput(encoded.states[1:].to(dtype))).states
    for found, expected in ((rough.states[0, :7], exact[0, :7]), (rough.states[1:], exact[1:]), (whole, exact[1:])):
        torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)
