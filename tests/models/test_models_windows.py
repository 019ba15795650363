"""The layers that we call ourselves give what transformers gives."""

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.models.load import load_whisper
from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import decode, encode


@pytest.fixture
def model(tiny_model: Path) -> WhisperForConditionalGeneration:
    return load_whisper(str(tiny_model))[0].train()


def random_log_mel(n_rows: int, n_frames: int) -> torch.Tensor:
    return torch.randn(n_rows, 80, n_frames, generator=torch.Generator().manual_seed(0))


def random_ids(n_rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 50_000, (n_rows, length), generator=torch.Generator().manual_seed(1))


def test_decoder_equals_that_of_transformers_bit_for_bit(model: WhisperForConditionalGeneration):
    log_mel, ids = random_log_mel(3, 120), random_ids(3, 11)
    states = encode(model, log_mel).states.detach()
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
