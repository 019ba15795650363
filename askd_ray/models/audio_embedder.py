"""What a language model reads of an encoder's states: a vector of the size of a token embedding for each of them."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from askd_ray.models.ctc import CtcHead
from askd_ray.models.state_compressor import StateCompressor, ceil_div, zero_outside
from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import inside_windows
from askd_ray.text.chat import ChatTokens
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import BLANK

_MIN_UNITS = 0.5  # that the head expects in a state that the LLM reads


class UnitEmbedder(nn.Module):
    """The LLM's embeddings of the units that a trained CTC head finds at encoder positions; nothing in it is trained.

    A position has the sum of the units' embeddings, each times the rise of its probability since the position before:
    a unit that lasts counts once, and blanks not at all. LegoSLM (arXiv 2505.11352) weights an LLM's embeddings with
    CTC probabilities, too; there the CTC vocabulary is that of the LLM, here a unit has the mean embedding of the LLM's
    tokens of its text.

    ``weight``, ``bias`` and ``projection`` are those of the head (:class:`~askd_ray.models.ctc.CtcHead`);
    ``embeddings`` (n_classes, width of the LLM) are 0 for the blank.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    projection: torch.Tensor
    embeddings: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, projection: torch.Tensor, embeddings: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("projection", projection)
        self.register_buffer("embeddings", embeddings)

    def forward(self, encoded: EncoderOutput, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums ``(batch, ceil(n_positions / stride), width of the LLM)`` over each ``stride`` positions.

        The second value is the expected number of units in each of them ``(batch, ceil(n_positions / stride))``.
        """
        hidden = functional.linear(encoded.states, self.weight, self.bias)
        probs = functional.linear(hidden, self.projection).float().softmax(dim=-1)
        before = functional.pad(probs[:, :-1], (0, 0, 1, 0))
        rises = zero_outside((probs - before).clamp(min=0.0), encoded.inside)
        length = ceil_div(rises.shape[1], stride)
        padded = functional.pad(rises, (0, 0, 0, length * stride - rises.shape[1]))
        units = padded.unflatten(1, (length, stride)).sum(dim=2)
        return functional.linear(units, self.embeddings.T), units.sum(dim=-1) - units[..., BLANK]


class AudioEmbedder(nn.Module):
    """A compressor, and a linear map from its states to the LLM's width: the LLM reads them as token embeddings.

    With ``units`` their embeddings are added, the map begins with zeros, and only states in which there are units are
    left: about as many as words, whatever the compressor's rate (CTC-based compression, arXiv 2102.01578).
    """

    def __init__(
        self, compressor: StateCompressor, width: int, embeddings: torch.Tensor, units: UnitEmbedder | None = None
    ):
        super().__init__()
        self.compressor, self.norm, self.units = compressor, nn.LayerNorm(width), units
        self.map = nn.Linear(width, embeddings.shape[1])
        size = embeddings.float().square().mean().sqrt().item() if units is None else 0.0
        nn.init.normal_(self.map.weight, std=size * width**-0.5)
        nn.init.zeros_(self.map.bias)

    def forward(self, encoded: EncoderOutput) -> EncoderOutput:
        """Return embeddings ``(batch, n_states, width of the LLM)`` of encoder states."""
        compressed = self.compressor(encoded)
        mapped = self.map(self.norm(compressed.states))
        if self.units is None:
            return replace(compressed, states=mapped)
        embedded, n_units = self.units(encoded, self.compressor.stride)
        return _packed(mapped + embedded.to(mapped.dtype), n_units >= _MIN_UNITS)


def _packed(states: torch.Tensor, kept: torch.Tensor) -> EncoderOutput:
    """Return the states ``(batch, length, width)`` that are ``kept`` (batch, length), at the start of their rows."""
    counts = kept.sum(dim=1)
    length = max(1, int(counts.max()))
    first = kept.int().argsort(dim=1, descending=True, stable=True)[:, :length, None]
    return EncoderOutput(states.take_along_dim(first, dim=1), inside=inside_windows(counts, length))


@torch.no_grad()
def unit_embedder(head: CtcHead, tokens: Tokens, llm_tokens: ChatTokens, embeddings: torch.Tensor) -> UnitEmbedder:
    """Return the embedder of a head whose units are ``tokens``, for an LLM's token ``embeddings`` (n_vocab, width).

    Units that are no text of their own, such as a part of a character, have the embedding 0.
    """
    rows = torch.zeros(len(head.projection), embeddings.shape[1])
    for row, token_id in enumerate(head.vocabulary.token_ids, start=1):
        text = tokens.bytes_of(token_id).decode("utf-8", errors="ignore")
        if ids := llm_tokens.encode(text):
            rows[row] = embeddings[ids].float().mean(dim=0)
    return UnitEmbedder(head.transform.weight.data, head.transform.bias.data, head.projection.data, rows)
