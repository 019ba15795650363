"""The CTC head: how it begins, and its file."""

from pathlib import Path

import pytest
import torch
from tiny_run import Model
from torch.nn import functional

from askd_ray.errors import AskdError
from askd_ray.models.ctc import HEAD_FILE, CtcHead, initial_head, load_head, save_head
from askd_ray.text.units import BLANK, CtcVocabulary


def probs_of(head: CtcHead, states: torch.Tensor) -> torch.Tensor:
    return functional.linear(head(states), head.projection).softmax(dim=-1)


@torch.no_grad()
def test_an_untrained_head_gives_most_to_the_blank_and_tells_units_apart(tiny_en: Model):
    vocabulary = CtcVocabulary.of(range(1000, 4600))
    head = initial_head(vocabulary, tiny_en[0].proj_out.weight)
    torch.manual_seed(0)
    probs = probs_of(head, torch.randn(500, 384))  # the encoder's states have elements of this size
    blank, units = probs[:, BLANK], probs[:, BLANK + 1 :]
    assert (probs.argmax(dim=-1) == BLANK).float().mean() > 0.95
    assert 0.1 < blank.mean() < 0.9  # the others still learn
    spread = (units / units.sum(dim=-1, keepdim=True)).log().std(dim=-1).mean()
    assert 0.5 < spread < 2.0, "logits of units must differ, or the head first learns the blank alone"


@torch.no_grad()
def test_head_file_gives_the_same_head_without_the_norms_of_training(tiny_en: Model, tmp_path: Path):
    vocabulary = CtcVocabulary.of(range(1000, 1100))
    head = initial_head(vocabulary, tiny_en[0].proj_out.weight).read_intermediate(2)
    save_head(head, tmp_path)
    loaded = load_head(tmp_path)
    states = torch.randn(3, 384)
    assert loaded.vocabulary == vocabulary and torch.equal(probs_of(loaded, states), probs_of(head, states))
    assert len(loaded.norms) == 0
    (tmp_path / HEAD_FILE).write_bytes(b"damaged")
    with pytest.raises(AskdError, match="cannot be loaded as the head of a CTC student"):
        load_head(tmp_path)
