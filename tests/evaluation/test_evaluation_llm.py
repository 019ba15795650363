"""What the evaluation says of LLM students: nats are those of the model, and a student that knows its clips is seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_run import CPU
from tiny_llm import of_llm
from tiny_run import WORDS, clip, record_as_labelled

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import DecodingWindow, samples_of
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.evaluation import llm_evaluate
from askd_ray.evaluation.audio_use import retrieve, score_clips
from askd_ray.evaluation.ray_evaluate import evaluate
from askd_ray.evaluation.sets import EvalSet
from askd_ray.files import read_json
from askd_ray.models.llm_student import LlmStudent, LlmStudentKind
from askd_ray.runs import Run
from askd_ray.train.build import build_loop, student_kind
from askd_ray.train.context import PlainContext
from askd_ray.train.report import publish


def trained(recipe: Recipe) -> LlmStudent:
    kind = student_kind(recipe)
    assert isinstance(kind, LlmStudentKind)
    student = kind.build(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.llm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()


@pytest.fixture(scope="module")
def clips() -> list[Utterance]:
    return [clip(40 + i, WORDS[i % len(WORDS)], "dev") for i in range(9)]


@torch.no_grad()
def nats_of(student: LlmStudent, text: str, of: Utterance | None, window: DecodingWindow) -> float:
    """The nats of a text after one clip, without batches or caches."""
    ids = [*student.tokens.encode(text), student.tokens.end]
    audio = None
    if of is not None:
        samples = window.samples(samples_of(of.duration_s), 80)
        audio = student.audio(log_mel_windows([waveform_of(of)], [samples], 80))
    closing = student.tokens.closing
    hidden = student.read(audio, torch.tensor([[*closing, *ids[:-1]]]))[0, len(closing) - 1 :]
    log_probs = (hidden @ student.projection.T).log_softmax(-1)
    return -float(log_probs[range(len(ids)), ids].double().sum())


def test_nats_are_those_of_each_clip_alone(labelled_llm: Recipe, clips: list[Utterance]):
    student, window = trained(labelled_llm), DecodingWindow.of(labelled_llm.window)
    scores = score_clips(student, clips, window)
    order = sorted(clips, key=lambda c: (c.duration_s, c.id))
    for i, one in enumerate(clips):
        place = order.index(one)
        following = [order[(place + n) % len(order)] for n in range(1, len(order))]
        wrong = next(other for other in following if other.text != one.text)
        expected = [nats_of(student, one.text, audio, window) for audio in (one, wrong, None)]
        np.testing.assert_allclose(scores.nats[i], expected, rtol=1e-4)
        assert scores.tokens[i] == len(student.tokens.encode(one.text)) + 1
        assert scores.states[i] == -(-window.samples(samples_of(one.duration_s), 80) // (2 * 160 * 4))


def test_retrieval_finds_the_text_with_the_fewest_nats(labelled_llm: Recipe, clips: list[Utterance]):
    student, window = trained(labelled_llm), DecodingWindow.of(labelled_llm.window)
    candidates = clips[:7]  # of different texts
    found = retrieve(student, candidates, window)
    without = np.array([nats_of(student, c.text, None, window) for c in candidates])
    for i, one in enumerate(candidates):
        given = np.array([nats_of(student, c.text, one, window) for c in candidates])
        assert found[i].tolist() == [given.argmin() == i, (given - without).argmin() == i]


def test_sets_and_their_pool_have_sums_and_paired_intervals(clips: list[Utterance]):
    rng = np.random.default_rng(0)
    parts: list[llm_evaluate.SetUse] = []
    for name, n in (("one", 40), ("other", 60)):
        rows = tuple(replace(clips[0], id=str(i)) for i in range(n))
        tokens = rng.integers(2, 9, n)
        hard = 5.0 * rng.random(n) * tokens  # a clip is hard in all conditions: only its difference is certain
        nats = np.stack([hard, hard + 0.5 * tokens, hard + 0.6 * tokens], axis=1)
        scores = llm_evaluate.ClipScores(nats, tokens, np.full(n, 5))
        parts.append(llm_evaluate.SetUse(EvalSet(name, True, rows), scores, rng.integers(0, 3, n), tokens))
    pool = llm_evaluate.audio_use(parts)
    nats, tokens = (sum(array.sum(0) for array in arrays) for arrays in zip(
        *((part.scores.nats, part.scores.tokens) for part in parts), strict=True)
    )  # fmt: skip
    assert pool["clips"] == 100 and pool["tokens"] == tokens
    np.testing.assert_allclose([e["value"] for e in pool["nats"].values()], nats / tokens)
    difference = pool["difference"]["wrong"]
    assert difference["value"] == pytest.approx(0.5) and difference["low"] == pytest.approx(0.5)
    assert pool["nats"]["right"]["high"] - pool["nats"]["right"]["low"] > 0.3
    assert pool["states_per_s"] == pytest.approx(5 / clips[0].duration_s)


def test_the_stage_scores_the_trained_student(labelled_llm: Recipe, tiny_llm: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(llm_evaluate, "N_CANDIDATES", 3)
    recipe = of_llm(
        labelled_llm,
        tiny_llm,
        evaluate={"split": "dev"},
        train={"optimizer": {"lr": 0.01, "embedding_lr": 0.01}, "epochs": 3},
    ).model_copy(update={"data_root": labelled_llm.runs_root, "runs_root": str(tmp_path)})
    run = Run(recipe)
    record_as_labelled(run)
    begun = run.begin("distill")
    summary = build_loop(recipe, PlainContext(CPU), run.distill, "key").run()
    run.finish("distill", "key", summary, begun)
    scores = evaluate(recipe)
    assert scores == read_json(run.path / "evaluate" / llm_evaluate.AUDIO_USE)
    assert set(scores) == {"sets", "pools", "retrieval", "left_out"} and list(scores["sets"]) == ["dev"]
    use = scores["pools"]["in_domain"]
    assert use["clips"] == 3 and scores["retrieval"]["in_domain"]["clips"] == 3
    assert use["nats"]["none"]["value"] - use["nats"]["right"]["value"] == pytest.approx(
        use["difference"]["none"]["value"]
    )
    publish(recipe)
    assert "| dev | 3 |" in (run.path / "report.md").read_text()
    assert evaluate(recipe) == scores  # the record, without another decoding
