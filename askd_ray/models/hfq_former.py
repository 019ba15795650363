"""A compressor of learnt queries at three temporal resolutions, after FastSLM's HFQ-Former."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from askd_ray.audio.units import PADDED_FRAMES
from askd_ray.models.state_compressor import Number, StateCompressor, States, ceil_div, identity_map, zero_outside
from askd_ray.models.windows import inside_windows, mask_of_keys

MAX_POSITIONS = PADDED_FRAMES // 2
"""The encoder positions of a padded window."""

_LINEAR_GELU = 6.0  # above minus this, GELU(x + 6) is x + 6, and the norm removes the 6
_SHARPNESS = 4.0  # initial: a Gaussian whose standard deviation is a quarter of the spacing of queries
_OF_QUERIES = 0.1  # the initial size of queries beside their sinusoids
_LONGEST_PERIOD = 10_000  # of Whisper's sinusoids, in radians


class LearntQueries(nn.Module):
    """Learnt queries that attend to states: d^2 + 5 d parameters, one for each head, and d for each query.

    As in FastSLM, queries and states are normalised and get sinusoids, and no projection of queries, keys or values.
    ``spacing`` is the time between two queries; a shorter window has the first ones. Ours: each head prefers states
    near the time of a query, by a learnt Gaussian; without it, queries begin with means of the whole window.
    """

    def __init__(self, width: int, n_heads: int, n_queries: int, spacing: float):
        super().__init__()
        self.n_heads, self.spacing = n_heads, spacing
        self.queries = nn.Parameter(torch.randn(n_queries, width) * 0.02)
        self.query_norm, self.states_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        nn.init.constant_(self.query_norm.weight, _OF_QUERIES)
        self.sharpness = nn.Parameter(torch.full((n_heads,), _SHARPNESS))
        self.map = identity_map(width)

    def forward(self, states: States, n_queries: int, inside: torch.Tensor | None) -> States:
        """Return what the first ``n_queries`` queries find; ``inside`` marks those in each row's window."""
        width = states.values.shape[-1]
        times = (torch.arange(n_queries, device=states.times.device) + 0.5) * self.spacing - 0.5
        values = self.states_norm(states.values)
        queries = self.query_norm(self.queries[:n_queries]) + sinusoids(times, width)
        keys = values + sinusoids(states.times, width)
        rows = queries.to(values.dtype).expand(len(values), -1, -1)
        distances = (times[:, None] - states.times) / self.spacing
        near = -0.5 * (self.sharpness[:, None, None] * distances).square()
        found = attend(rows, keys.to(values.dtype), values, self.n_heads, states.inside, near)
        return States(self.map(found), times, inside)


class Downsampling(nn.Module):
    """Two convolutions, the second with stride 2, each with a GELU, and a norm: 6 d^2 + 4 d parameters."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(width)
        for convolution, bias in ((self.conv1, _LINEAR_GELU), (self.conv2, 0.0)):
            nn.init.dirac_(convolution.weight)
            nn.init.constant_(convolution.get_parameter("bias"), bias)

    def forward(self, states: States) -> States:
        """Return states of half the length, rounded up; a convolution finds zeros after a row's window."""
        hidden, inside = zero_outside(states.values, states.inside), states.inside
        hidden = functional.gelu(self.conv1(hidden.transpose(1, 2))).transpose(1, 2)
        hidden = zero_outside(hidden, inside)
        hidden = functional.gelu(self.conv2(hidden.transpose(1, 2))).transpose(1, 2)
        return States(self.norm(hidden), states.times[::2], None if inside is None else inside[:, ::2])


class ProjectedAttention(nn.Module):
    """Multi-head attention: 4 d^2 + 3 d parameters. Its last map begins at 0, so at first it adds nothing."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.value, self.map = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, queries: torch.Tensor, states: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        """Return ``(batch, n_queries, d_model)``; ``inside`` marks the states in each row's window."""
        return self.map(attend(self.query(queries), self.key(states), self.value(states), self.n_heads, inside))


class QueryBlock(nn.Module):
    """Self-attention of queries, then cross-attention to states, no feed-forward part: 8 d^2 + 10 d parameters."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.self_attention, self.cross_attention = (ProjectedAttention(width, n_heads) for _ in range(2))
        self.self_norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: States, states: States) -> States:
        """Return the queries after both."""
        hidden = self.self_norm(queries.values)
        values = queries.values + self.self_attention(hidden, hidden, queries.inside)
        values = values + self.cross_attention(self.cross_norm(values), states.values, states.inside)
        return replace(queries, values=values)


class HfqFormer(StateCompressor):
    """Queries that attend to the encoder states at three temporal resolutions, after FastSLM (arXiv 2601.06199).

    From the released code: two :class:`Downsampling` give levels of 1/2 and 1/4 of the length. :class:`LearntQueries`
    attend to each level, 8 for 5 output queries, and the output queries attend to what these found. Two
    :class:`QueryBlock` then attend to the states of all levels, and a linear map gives the reader's width.

    Ours, so this reproduces no result of the paper: windows of any length, in which a sinusoid says the time of each
    query and state (there it numbers them); the Gaussians about these times; rates other than 1.67 states a second; the
    initial values, with which the decoder first reads means of normalised states about the time of each query, times
    ``scale`` (there they are random); Whisper's decoder as the reader.

    It has 33 d^2 + 49 d parameters, 4 for each head, and 5.8 d for each of the output queries of a padded window.
    """

    def __init__(self, width: int, n_heads: int, stride: int, scale: float = 1.0):
        super().__init__(stride)
        n_queries = ceil_div(MAX_POSITIONS, stride)
        self.level_queries = nn.ModuleList(
            LearntQueries(width, n_heads, _of_level(n_queries), spacing=stride * 5 / 8) for _ in range(3)
        )
        self.downsamplings = nn.ModuleList(Downsampling(width) for _ in range(2))
        self.output_queries = LearntQueries(width, n_heads, n_queries, spacing=stride)
        self.blocks = nn.ModuleList(QueryBlock(width, n_heads) for _ in range(2))
        self.map = identity_map(width, scale)

    def compress(self, encoded: States) -> torch.Tensor:
        """Return the states of the output queries."""
        n_queries = ceil_div(encoded.values.shape[1], self.stride)
        n_of_level = _of_level(n_queries)
        inside = of_level_inside = None
        if encoded.inside is not None:
            inside = self.windows(encoded.inside, n_queries)
            of_level_inside = inside_windows(_of_level(inside.sum(dim=1)), n_of_level)
        levels = [encoded]
        for downsampling in self.downsamplings:
            levels.append(downsampling(levels[-1]))
        pairs = zip(self.level_queries, levels, strict=True)
        found = joined([queries(level, n_of_level, of_level_inside) for queries, level in pairs])
        queries, all_levels = self.output_queries(found, n_queries, inside), joined(levels)
        for block in self.blocks:
            queries = block(queries, all_levels)
        return self.map(queries.values)


def _of_level(n_queries: Number) -> Number:
    """Return the number of queries at each level: FastSLM's 80 for 50 output queries, at other rates in proportion."""
    return ceil_div(8 * n_queries, 5)


def joined(parts: Sequence[States]) -> States:
    """Return states one after the other."""
    inside = [part.inside for part in parts if part.inside is not None]
    return States(
        torch.cat([part.values for part in parts], dim=1),
        torch.cat([part.times for part in parts]),
        torch.cat(inside, dim=1) if inside else None,
    )


def sinusoids(times: torch.Tensor, width: int) -> torch.Tensor:
    """Return Whisper's position embeddings ``(length, d_model)`` at times ``(length,)`` in encoder positions."""
    n = width // 2
    exponents = torch.arange(n, device=times.device) / (n - 1)
    angles = times[:, None] * torch.pow(1.0 / _LONGEST_PERIOD, exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    n_heads: int,
    inside: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return multi-head attention ``(batch, n_queries, d_model)``.

    ``inside`` marks the keys in each row's window; ``bias`` (n_heads, n_queries, n_keys) is added to the scores.
    """
    q, k, v = (part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    mask = None if inside is None else mask_of_keys(inside, queries)
    if bias is not None:
        bias = bias.to(q.dtype)[None]
        mask = bias if mask is None else mask + bias
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
