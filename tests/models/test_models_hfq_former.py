"""The HFQ-Former's initial values and sinusoids; test_models_compressor.py has what all compressors keep."""

from pathlib import Path

import torch

from askd_ray.models.compressor import PoolingCompressor
from askd_ray.models.hfq_former import HfqFormer, sinusoids
from askd_ray.models.load import load_whisper
from askd_ray.models.student import EncoderOutput

WIDTH, N_HEADS = 32, 2


def test_hfq_begins_with_means_about_the_time_of_each_query():
    """Ours: a trained decoder can read these, unlike what random attention to the whole window gives."""
    torch.manual_seed(0)
    former, states = HfqFormer(WIDTH, N_HEADS, 8, scale=1.5), torch.randn(1, 400, WIDTH)
    states.requires_grad_()
    compressed = former(EncoderOutput(states)).states
    for number in (0, 10, 49):
        (of_states,) = torch.autograd.grad(compressed[0, number].square().sum(), states, retain_graph=True)
        weights = of_states[0].norm(dim=-1)
        near = (torch.arange(400) - (8 * number + 3.5)).abs() <= 8
        assert weights[near].sum() > 0.95 * weights.sum()
    normalised = torch.nn.functional.layer_norm(states.detach(), (WIDTH,))
    pooled = PoolingCompressor(WIDTH, 8)(EncoderOutput(1.5 * normalised)).states
    assert torch.nn.functional.cosine_similarity(compressed, pooled, dim=-1).mean() > 0.5


def test_sinusoids_are_those_of_whisper(tiny_model: Path):
    encoder = load_whisper(str(tiny_model))[0].model.encoder
    torch.testing.assert_close(
        sinusoids(torch.arange(1500), 32), encoder.embed_positions.weight.detach(), atol=1e-3, rtol=0
    )
