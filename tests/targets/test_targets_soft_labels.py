import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batch_rows import at_targets
from tiny_run import Model

from askd_ray.audio.decode import decode, duration_s
from askd_ray.audio.logmel import log_mel_padded
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels, check_labels, read_labels, write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_table, read_utterances, to_table, waveform_of, write_table
from askd_ray.divergence.kinds import forward_kl
from askd_ray.errors import AskdError
from askd_ray.models.load import load_whisper
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.references import TopK
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.train.inputs import make_batch_loader

K = 8


def recipe(weights: Path, **teacher: Any) -> Recipe:
    return Recipe.model_validate({"teacher": {"model": str(weights), **teacher}})


@pytest.fixture(scope="module")
def utterances(speech: Path) -> list[Utterance]:
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()[::180]]
    clips = [(row, (speech / row["audio"]).read_bytes()) for row in rows]
    return [
        Utterance(r["audio"], audio, r["audio"], r["text"], duration_s(decode(audio)), "", "en", "ivr", "train", "")
        for r, audio in clips
    ]


@pytest.fixture(scope="module")
def labels(utterances: list[Utterance], weights: Path, tiny_en: Model) -> list[SoftLabels]:
    model, tokens = tiny_en
    return label(model, tokens, utterances, recipe(weights, top_k=K, batch_size=3))


def test_labels_equal_the_distribution_of_the_teacher(
    utterances: list[Utterance], labels: list[SoftLabels], weights: Path, tiny_en: Model
):
    """The teacher as its own student has no divergence; a teacher-forced pass gives the same loss."""
    model, tokens = tiny_en
    for utterance, made in zip(utterances, labels, strict=True):
        prompt = tokens.prompt()
        log_mel = log_mel_padded([waveform_of(utterance)])
        with torch.no_grad():
            hidden = WindowedWhisper(model)(log_mel, torch.tensor([[*prompt, *made.target_ids[:-1]]])).hidden[0]
            log_q = torch.log_softmax(model.proj_out(hidden[len(prompt) - 1 :]), -1)
        targets = torch.from_numpy(made.target_ids.astype(np.int64))
        arrays = (made.top_ids.astype(np.int64), made.top_log_probs, made.rest_log_prob, made.token_loss)
        cached = TopK(*(torch.from_numpy(a.copy()) for a in arrays)).distribution(slice(None), targets, 1.0)
        assert forward_kl(cached.log_p, cached.of_student(log_q)).max().item() < 1e-4
        assert torch.nn.functional.nll_loss(log_q, targets).item() == pytest.approx(made.teacher_loss, abs=1e-3)
        assert tokens.decode(made.target_ids.tolist()) == utterance.text and made.target_ids[-1] == tokens.end


def test_probabilities_sum_to_one(labels: list[SoftLabels]):
    for made in labels:
        mass = np.exp(made.top_log_probs.astype(np.float64)).sum(1) + np.exp(made.rest_log_prob.astype(np.float64))
        np.testing.assert_allclose(mass, 1.0, atol=5e-3)
        assert (np.diff(made.top_log_probs.astype(np.float32), axis=1) <= 0).all()


def test_labels_of_a_teacher_in_float16_are_near_those_in_float32(labelled: Recipe):
    model, tokens = load_whisper(labelled.teacher.model)
    clips = read_utterances(Run(labelled).shards, "train")[:5]
    full, half = (label(m, tokens, clips, labelled) for m in (model, copy.deepcopy(model).half()))
    for of_full, of_half in zip(full, half, strict=True):
        assert of_full.target_ids.tolist() == of_half.target_ids.tolist() and len(of_half.target_ids)
        for name in ("top_log_probs", "rest_log_prob", "token_loss"):
            expected, found = (getattr(made, name).astype(np.float32) for made in (of_full, of_half))
            np.testing.assert_allclose(found, expected, atol=2e-2)
        mass = np.exp(of_half.top_log_probs.astype(float)).sum(1) + np.exp(of_half.rest_log_prob.astype(float))
        np.testing.assert_allclose(mass, 1.0, atol=5e-3)  # the probabilities are computed in float32


def test_token_takes_up_to_200_bytes_at_k_32(utterances: list[Utterance], weights: Path, tiny_en: Model):
    model, tokens = tiny_en
    made = label(model, tokens, utterances[:1], recipe(weights, top_k=32))[0]
    n_bytes = sum(getattr(made, n).nbytes for n in ("top_ids", "top_log_probs", "rest_log_prob", "token_loss"))
    assert n_bytes / len(made.target_ids) <= 200


def test_too_long_text_has_empty_labels(utterances: list[Utterance], weights: Path, tiny_en: Model):
    model, tokens = tiny_en
    long = Utterance(**{**vars(utterances[0]), "text": "nine " * 500})
    made = label(model, tokens, [long, utterances[0]], recipe(weights, top_k=K))
    assert len(made[0].target_ids) == 0 and made[0].top_ids.shape == (0, K) and made[0].left_out == "too long"
    assert len(made[1].target_ids) > 0


def test_online_teacher_writes_only_targets(
    utterances: list[Utterance], labels: list[SoftLabels], weights: Path, tiny_en: Model
):
    model, tokens = tiny_en
    made = label(model, tokens, utterances, recipe(weights, online=True))
    for one, with_soft in zip(made, labels, strict=True):
        np.testing.assert_array_equal(one.target_ids, with_soft.target_ids)
        assert one.top_ids.shape == (len(one.target_ids), 0)


def test_labels_round_trip_and_check_the_key(
    utterances: list[Utterance], labels: list[SoftLabels], weights: Path, tmp_path: Path
):
    key = label_key(recipe(weights, top_k=K))
    write_table(tmp_path / "shard.parquet", to_table(utterances))
    write_labels(tmp_path / "labels.parquet", labels, key)
    check_labels(tmp_path / "labels.parquet", tmp_path / "shard.parquet", key)
    for again, made in zip(read_labels(tmp_path / "labels.parquet", K), labels, strict=True):
        assert again.prompt_ids == made.prompt_ids and again.teacher_loss == made.teacher_loss
        for name in ("target_ids", "top_ids", "top_log_probs", "rest_log_prob", "token_loss"):
            np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    for name, value in (("teacher", "another"), ("top_k", 16), ("prompt", [1])):
        with pytest.raises(AskdError, match=f"stale soft labels .* {name} "):
            check_labels(tmp_path / "labels.parquet", tmp_path / "shard.parquet", {**key, name: value})
    (tmp_path / "labels.parquet").write_bytes((tmp_path / "labels.parquet").read_bytes()[:200])
    with pytest.raises(AskdError, match="damaged"):
        check_labels(tmp_path / "labels.parquet", tmp_path / "shard.parquet", key)


@pytest.fixture(scope="module")
def with_states(utterances: list[Utterance], weights: Path, tiny_en: Model) -> list[SoftLabels]:
    return label(*tiny_en, utterances, keeping_states(weights, "all"))


def keeping_states(weights: Path, states: str) -> Recipe:
    return Recipe.model_validate({"teacher": {"model": str(weights), "top_k": K}, "targets": {"states": states}})


def test_states_are_those_of_a_forward_pass(
    utterances: list[Utterance], labels: list[SoftLabels], with_states: list[SoftLabels], tiny_en: Model
):
    """Every decoder layer's output, at the positions that predict the target tokens; the last is normed."""
    model, tokens = tiny_en
    for utterance, made, without in zip(utterances, with_states, labels, strict=True):
        prompt = tokens.prompt()
        log_mel = log_mel_padded([waveform_of(utterance)])
        ids = torch.tensor([[*prompt, *made.target_ids[:-1]]])
        with torch.no_grad():
            output = model(input_features=log_mel, decoder_input_ids=ids, output_hidden_states=True)
        expected = torch.stack([h[0, len(prompt) - 1 :] for h in output.decoder_hidden_states[1:]], dim=1)
        assert made.states.dtype == np.float16 and made.states.shape == (len(made.target_ids), 4, 384)
        assert without.states.shape == (len(made.target_ids), 0, 0)
        np.testing.assert_allclose(made.states, expected.numpy(), atol=5e-3, rtol=2e-3)
        logits = model.proj_out(torch.from_numpy(made.states[:, -1].astype(np.float32)))
        np.testing.assert_allclose(
            torch.log_softmax(logits, -1).gather(1, torch.from_numpy(made.top_ids.astype(np.int64))).detach().numpy(),
            made.top_log_probs,
            atol=3e-2,
        )


def test_states_round_trip_and_serve_recipes_that_read_fewer(
    utterances: list[Utterance], with_states: list[SoftLabels], weights: Path, tmp_path: Path
):
    file, shard = tmp_path / "labels.parquet", tmp_path / "shard.parquet"
    write_table(shard, to_table(utterances))
    made = [*with_states[:-1], dataclasses.replace(with_states[-1], has_teacher=False)]
    write_labels(file, made, label_key(keeping_states(weights, "all")))
    for states in ("none", "last", "all"):
        check_labels(file, shard, label_key(keeping_states(weights, states)))
    for n_layers in (0, 1, 4):
        for again, one in zip(read_labels(file, K, (n_layers, 384 if n_layers else 0)), made, strict=True):
            expected = one.states[:, 4 - n_layers :] if n_layers else np.zeros((len(one.target_ids), 0, 0))
            np.testing.assert_array_equal(again.states, expected)
            assert again.has_teacher == one.has_teacher


def test_labels_without_states_are_stale_for_a_recipe_that_keeps_them(
    utterances: list[Utterance], labels: list[SoftLabels], weights: Path, tmp_path: Path
):
    file, shard = tmp_path / "labels.parquet", tmp_path / "shard.parquet"
    write_table(shard, to_table(utterances))
    for made_with, asked in (("none", "last"), ("last", "all")):
        write_labels(file, labels, label_key(keeping_states(weights, made_with)))
        with pytest.raises(AskdError, match=f"stale soft labels .* states .*, the recipe asks for {asked}"):
            check_labels(file, shard, label_key(keeping_states(weights, asked)))


def test_labels_that_an_earlier_version_wrote_are_read(labels: list[SoftLabels], tmp_path: Path):
    """They have no column of states."""
    write_labels(tmp_path / "labels.parquet", labels, {"top_k": K})
    table = read_table(tmp_path / "labels.parquet")
    write_table(tmp_path / "labels.parquet", table.drop_columns(["states"]))
    for again, made in zip(read_labels(tmp_path / "labels.parquet", K), labels, strict=True):
        np.testing.assert_array_equal(again.top_log_probs, made.top_log_probs)
        assert again.has_teacher and again.states.shape == (len(made.target_ids), 0, 0)


def test_states_too_large_for_float16_are_refused(utterances: list[Utterance], weights: Path, tiny_en: Model):
    model = copy.deepcopy(tiny_en[0])
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.bias[7] = 1e5
    with pytest.raises(AskdError, match=r"a decoder state of .* is not finite in float16 \(largest: 1\d{5}"):
        label(model, tiny_en[1], utterances[:1], keeping_states(weights, "all"))
    (made,) = label(model, tiny_en[1], utterances[:1], keeping_states(weights, "last"))
    assert np.isfinite(made.states).all()


def test_empty_text_is_left_out(utterances: list[Utterance], weights: Path, tiny_en: Model):
    """Shards of a run with pseudo-labels may hold rows without one."""
    model, tokens = tiny_en
    without = Utterance(**{**vars(utterances[0]), "text": ""})
    (made,) = label(model, tokens, [without], recipe(weights, top_k=K))
    assert len(made.target_ids) == 0 and made.left_out == "no reference"


@pytest.mark.full
def test_loss_begins_after_the_prompt(utterances: list[Utterance], weights: Path, tiny_en: Model, tmp_path: Path):
    """A batch from disk has prompt and text, and the teacher's forward pass on it gives the label's probabilities."""
    previous = "Welcome to the voice mail system. " * 12
    with_prompt = Recipe.model_validate(
        {
            "runs_root": str(tmp_path),
            "teacher": {"model": str(weights), "top_k": K},
            "targets": {"prompt": previous},
            "window": {"padded_share": 1.0},
            "augment": {"spec": {"freq_masks": 0, "time_masks": 0}},
            "train": {"batching": {"audio_s": 120.0}, "epochs": 1},
        }
    )
    model, tokens = tiny_en
    prompt = tokens.prompt("en", previous)
    assert len(prompt) > 80 and prompt[0] == tokens.id_of("<|startofprev|>")
    run = Run(with_prompt)
    write_table(run.shards / "train-00000-of-00001.parquet", to_table(utterances))
    made = label(model, tokens, utterances, with_prompt)
    write_labels(run.labels / "train-00000-of-00001.parquet", made, label_key(with_prompt))
    loader = make_batch_loader(with_prompt, n_mels=80)
    (batch,) = (
        b
        for task in tasks_from(length_grouped_sampler(loader.rows(), loader), DataCursor(), 0, 1)
        for b in loader.batches(task)
    )
    by_id = {u.id: m for u, m in zip(utterances, made, strict=True)}
    with torch.no_grad():
        decoded = WindowedWhisper(model)(torch.from_numpy(batch.log_mel), torch.from_numpy(batch.decoder_ids))
        logits = model.proj_out(decoded.hidden)
    for i, name in enumerate(batch.ids):
        ids = by_id[name].target_ids.tolist()
        first, last = len(prompt) - 1, len(prompt) - 1 + len(ids)
        assert batch.decoder_ids[i, :last].tolist() == [*prompt, *ids[:-1]]
        assert batch.targets[batch.rows == i].tolist() == ids
        assert at_targets(batch, i).tolist() == list(range(first, last))
        loss = torch.nn.functional.cross_entropy(logits[i, first:last], torch.tensor(ids), reduction="none")
        np.testing.assert_allclose(loss.numpy(), batch.token_loss[batch.rows == i], atol=2e-2)
    assert batch.n_tokens == sum(len(m.target_ids) for m in made)
