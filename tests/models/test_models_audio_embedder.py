"""What a language model reads of an encoder's states."""

import pytest
import torch
from torch.nn import functional

from askd_ray.models.audio_embedder import AudioEmbedder, UnitEmbedder, unit_embedder
from askd_ray.models.compressor import PoolingCompressor
from askd_ray.models.ctc import load_ctc
from askd_ray.models.llm import load_llm
from askd_ray.models.student import EncoderOutput

WIDTH = 4  # of the states, whose elements are the logits of three units, after that of the blank
EMBEDDINGS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])


def certain(classes: list[list[int]]) -> torch.Tensor:
    """States in which the head is certain of these classes."""
    return 50.0 * functional.one_hot(torch.tensor(classes), WIDTH).float()


def embedder(stride: int) -> AudioEmbedder:
    units = UnitEmbedder(torch.eye(WIDTH), torch.zeros(WIDTH), torch.eye(WIDTH), EMBEDDINGS)
    return AudioEmbedder(PoolingCompressor(WIDTH, stride), WIDTH, EMBEDDINGS, units).eval()


def test_a_unit_counts_once_and_blanks_are_not_read():
    read = embedder(2)(EncoderOutput(certain([[0, 1, 1, 1, 0, 0, 2, 0, 2, 2]])))
    torch.testing.assert_close(read.states, torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]))
    assert read.positions_inside.tolist() == [[True, True, True]]


def test_units_of_one_state_are_added():
    read = embedder(4)(EncoderOutput(certain([[1, 2, 0, 0, 0, 3, 1, 1]])))
    torch.testing.assert_close(read.states, torch.tensor([[[1.0, 1.0], [6.0, 5.0]]]))


def test_rows_have_as_many_states_as_units_and_none_of_their_padding():
    classes = [[1, 0, 2, 0, 3, 3], [0, 0, 0, 2, 1, 1]]
    inside = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    read = embedder(2)(EncoderOutput(certain(classes), inside=inside))
    assert read.positions_inside.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(read.states[0], EMBEDDINGS[1:])
    torch.testing.assert_close(read.states[1, 0], EMBEDDINGS[2])


def test_a_clip_without_units_has_no_states():
    read = embedder(2)(EncoderOutput(certain([[0, 0, 0, 0]])))
    assert not read.positions_inside.any()


def test_units_have_the_embeddings_of_the_llms_tokens_of_their_text(ctc_student, tiny_llm):
    (model, tokens), llm = load_ctc(ctc_student), load_llm(str(tiny_llm))
    weights = llm.model.model.embed_tokens.weight
    units = unit_embedder(model.head, tokens, llm.tokens, weights)
    assert not units.embeddings[0].any() and not any(buffer.requires_grad for buffer in units.buffers())
    for row, token_id in enumerate(model.head.vocabulary.token_ids, start=1):
        try:
            text = tokens.bytes_of(token_id).decode("utf-8")
        except UnicodeDecodeError:
            assert not units.embeddings[row].any()
        else:
            expected = weights[llm.tokens.encode(text)].mean(dim=0)
            torch.testing.assert_close(units.embeddings[row], expected)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_what_is_read_follows_the_heads_probabilities(ctc_student, tiny_llm, stride: int):
    """Without rises of probability between positions that are alike, nothing is read."""
    (model, tokens), llm = load_ctc(ctc_student), load_llm(str(tiny_llm))
    units = unit_embedder(model.head, tokens, llm.tokens, llm.model.model.embed_tokens.weight.detach())
    states = torch.randn(1, 1, 384).expand(-1, 20, -1)
    embedded, n_units = units(EncoderOutput(states), stride)
    assert embedded.shape == (1, -(-20 // stride), 64) and not embedded[:, 1:].any() and not n_units[:, 1:].any()
    assert 0.0 <= float(n_units[0, 0]) <= 1.0
