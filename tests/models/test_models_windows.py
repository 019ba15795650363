"""The layers that we call ourselves give what transformers gives."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.models.load import load_whisper
from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import WindowedWhisper, decode, encode


@pytest.fixture
def model(tiny_model: Path) -> WhisperForConditionalGeneration:
    return load_whisper(str(tiny_model))[0].train()


def random_log_mel(n_rows: int, n_frames: int) -> torch.Tensor:
    return torch.randn(n_rows, 80, n_frames, generator=torch.Generator().manual_seed(0))


def random_ids(n_rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (n_rows, length), generator=torch.Generator().manual_seed(1))


def test_decoder_equals_that_of_transformers_bit_for_bit(model: WhisperForConditionalGeneration):
    log_mel, ids = random_log_mel(3, 120), random_ids(3, 11)
    states = encode(model.model.encoder, log_mel).states.detach()
    ours = decode(model, ids, EncoderOutput(states))
    found = torch.autograd.grad(ours[-1].square().sum(), list(model.model.decoder.parameters()))
    decoder = model.model.decoder
    reference = decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False, output_hidden_states=True)
    expected = torch.autograd.grad(reference.last_hidden_state.square().sum(), list(decoder.parameters()))
    assert len(ours) == len(decoder.layers)
    assert torch.equal(ours[-1], reference.last_hidden_state)
    for one, other in zip(ours, reference.hidden_states[1:], strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


WINDOWS = (2, 100, 3000, 102, 160)  # frames: one position, and 30 s


def mixed(windows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random log-mels in windows of their lengths, with zeros after them."""
    log_mel, frames = random_log_mel(len(windows), max(windows)), torch.tensor(windows)
    return log_mel * (torch.arange(max(windows)) < frames[:, None])[:, None], frames


def row_loss(hidden: torch.Tensor, encoded: EncoderOutput, n_positions: int) -> torch.Tensor:
    """A loss that reads the states of one row in its window."""
    states = [encoded.states, *encoded.tapped]
    return hidden.square().mean() + sum(s[:, :n_positions].sin().mean() for s in states)


def test_rows_equal_those_alone_in_their_windows(model: WhisperForConditionalGeneration):
    (log_mel, frames), ids = mixed(WINDOWS), random_ids(len(WINDOWS), 9)
    network = WindowedWhisper(model, tapped_layers=[0])
    together = network(log_mel, ids, frames)
    assert together.encoded.inside is not None
    assert together.encoded.inside.sum(dim=1).tolist() == [n // 2 for n in WINDOWS]
    losses, expected = list[torch.Tensor](), list[torch.Tensor]()
    for row, n_frames in enumerate(WINDOWS):
        one = slice(row, row + 1)
        alone = network(log_mel[one, :, :n_frames], ids[one])
        n_positions = n_frames // 2
        for found, states in (
            (together.hidden[one], alone.hidden),
            (together.encoded.states[one, :n_positions], alone.encoded.states),
            (together.encoded.tapped[0][one, :n_positions], alone.encoded.tapped[0]),
        ):
            torch.testing.assert_close(found, states, atol=1e-5, rtol=0)
        of_row = EncoderOutput(together.encoded.states[one], (together.encoded.tapped[0][one],))
        losses.append(row_loss(together.hidden[one], of_row, n_positions))
        expected.append(row_loss(alone.hidden, alone.encoded, n_positions))
    trained = [p for p in model.model.parameters() if p.requires_grad]
    found, exact = (torch.autograd.grad(sum(rows), trained) for rows in (losses, expected))
    for one_gradient, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one_gradient, other, atol=1e-5, rtol=1e-4)


def test_without_a_mask_a_shorter_row_would_differ(model: WhisperForConditionalGeneration):
    (log_mel, frames), ids = mixed([100, 160]), random_ids(2, 9)
    network = WindowedWhisper(model)
    masked, unmasked = network(log_mel, ids, frames).hidden, network(log_mel, ids).hidden
    assert (masked[0] - unmasked[0]).abs().max() > 1e-3
    torch.testing.assert_close(masked[1], unmasked[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_the_mask(model: WhisperForConditionalGeneration, dtype: torch.dtype):
    (log_mel, frames), ids = mixed([100, 160]), random_ids(2, 9)
    exact = WindowedWhisper(model)(log_mel, ids, frames).hidden
    with torch.autocast("cpu", dtype):
        rough = WindowedWhisper(model)(log_mel, ids, frames).hidden
    torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_made_as_attention_takes_them(model: WhisperForConditionalGeneration, dtype: torch.dtype):
    """In the type of its matrices and with aligned rows: no layer has to convert or copy them."""
    (log_mel, frames), network = mixed([90, 150]), WindowedWhisper(model)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        encoded = network.encode(log_mel, frames)
    mask, inside = encoded.key_mask, encoded.inside
    assert mask is not None and inside is not None and mask.dtype == dtype
    assert mask.shape == (2, 1, 1, 75) and all(stride % 8 == 0 for stride in mask.stride()[:-1])
    assert torch.equal(mask[:, 0, 0] == 0.0, inside) and torch.isneginf(mask[:, 0, 0][~inside]).all()


def test_layer_norms_before_attention_are_cast_once(model: WhisperForConditionalGeneration):
    network = WindowedWhisper(WindowedWhisper(model).whisper)
    norms = [layer.get_submodule("self_attn_layer_norm") for layer in network.layers()]
    assert all(len(norm._forward_hooks) == 1 for norm in norms)
    states = torch.randn(1, 3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(norm(states).dtype == torch.bfloat16 for norm in norms)
    assert all(norm(states).dtype == torch.float32 for norm in norms)
