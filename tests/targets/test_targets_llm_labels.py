"""The labels of an LLM student: its LLM is forced along the transcript that it reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_llm import of_llm
from tiny_run import clip

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import check_labels, labels_match
from askd_ray.data.shards import train_paths
from askd_ray.errors import AskdError
from askd_ray.runs import Run
from askd_ray.targets.labeller import open_labeller
from askd_ray.targets.soft_labels import label_key
from askd_ray.text.chat import EXAMPLE


def test_labels_are_the_llms_log_probabilities_after_the_transcript(labelled_llm: Recipe):
    texts = ("press four", "one two three", "  thank you ", "")
    utterances = [replace(clip(i, text, "train"), text=text) for i, text in enumerate(texts)]
    labels = open_labeller(labelled_llm, 1)(utterances)
    assert [label.left_out for label in labels] == ["", "", "", "no reference"]
    llm = open_labeller(labelled_llm, 1).args[0]  # type: ignore[attr-defined]
    tokens = llm.tokens
    for text, label in zip(texts[:3], labels, strict=False):
        assert label.prompt_ids == tokens.closing and label.text == text.strip() == tokens.decode(label.target_ids)
        assert label.target_ids.tolist() == [*tokens.encode(text.strip()), tokens.end]
        turn = [*tokens.opening, *tokens.encode(f" {text.strip()}"), *tokens.closing]
        example = [*tokens.opening, *tokens.encode(f" {EXAMPLE}"), *tokens.closing, *tokens.encode(EXAMPLE)]
        prompt = [*example, tokens.end, *tokens.encode("\n"), *turn]
        ids = torch.tensor([[*prompt, *label.target_ids.tolist()]])
        with torch.no_grad():
            log_probs = llm.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        top = log_probs.topk(4).values
        np.testing.assert_allclose(label.top_log_probs, top.numpy(), atol=5e-3)
        np.testing.assert_allclose(np.exp(label.rest_log_prob), 1.0 - top.exp().sum(-1).numpy(), atol=5e-3)
        loss = -log_probs.gather(1, torch.from_numpy(label.target_ids.astype(np.int64))[:, None])[:, 0]
        np.testing.assert_allclose(label.token_loss, loss.numpy(), atol=5e-3)


def test_labels_of_a_whisper_or_of_another_llm_are_stale(labelled: Recipe, labelled_llm: Recipe, tmp_path: Path):
    run = Run(labelled_llm)
    shard = train_paths(run.shards)[0]
    assert labels_match(run.labels / shard.name, shard, label_key(labelled_llm))
    key = {**label_key(labelled_llm), "teacher": "other"}
    with pytest.raises(AskdError, match=r"stale soft labels in .*: made with teacher"):
        check_labels(run.labels / shard.name, shard, key)
    with pytest.raises(AskdError, match=r"stale soft labels in .*: made with teacher"):
        check_labels(run.labels / shard.name, shard, label_key(labelled))
    hotter = of_llm(labelled_llm, Path(labelled_llm.student.llm.model), objective={"temperature": {"start": 2.0}})
    assert label_key(hotter)["temperature"] == 2.0
