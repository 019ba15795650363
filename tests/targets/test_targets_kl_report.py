from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from small_run import utterances
from tiny_run import Model
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import DecodingWindow
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels, write_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import to_table, waveform_of, write_table
from askd_ray.divergence import kinds
from askd_ray.divergence.buckets import to_buckets
from askd_ray.errors import AskdError
from askd_ray.targets.kl_report import REPORTED_KS, KlLost, kl_lost, kl_table, measure
from askd_ray.targets.soft_labels import forced_logits, label, label_key

K = 5


@pytest.fixture(scope="module")
def recipe(weights: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "teacher": {"model": str(weights), "top_k": K},
            "student": {"decoder_layers": [0, 3]},
            "objective": {"temperature": {"start": 2.0}},
        }
    )


@pytest.fixture(scope="module")
def teacher(tiny_en: Model) -> WhisperForConditionalGeneration:
    return tiny_en[0]


@pytest.fixture(scope="module")
def rows(speech: Path, tiny_en: Model, recipe: Recipe) -> tuple[list[Utterance], list[SoftLabels]]:
    clips = utterances(speech, 2)
    return clips, label(*tiny_en, clips, recipe)


@pytest.mark.parametrize("k", [1, 4, 40])
def test_buckets_hold_all_mass(k: int):
    log_probs = torch.randn(7, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    buckets = to_buckets(log_probs, log_probs.topk(k).indices)
    assert buckets.shape == (7, k + 1)
    torch.testing.assert_close(buckets.exp().sum(-1), torch.ones(7))


def test_lost_kl_uses_the_divergence_of_the_objective(
    teacher: WhisperForConditionalGeneration, rows: tuple[list[Utterance], list[SoftLabels]], recipe: Recipe
):
    """Real Whisper as its own student in a trimmed window: both KLs agree with the objective's functions."""
    report = kl_lost(teacher, teacher, *rows, recipe)
    assert [lost.k for lost in report] == sorted({K, *REPORTED_KS})
    dense: list[torch.Tensor] = []
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        for utterance, made in zip(*rows, strict=True):
            clip = waveform_of(utterance)
            window = DecodingWindow.of(recipe.window).samples(len(clip), 80)
            windows = (log_mel_padded([clip]), log_mel_windows([clip], [window]))
            log_p, log_q = (torch.log_softmax(next(forced_logits(teacher, w, [made])) / 2.0, -1) for w in windows)
            ids = log_p.topk(K).indices
            dense.append(kinds.forward_kl(log_p, log_q))
            kept.append(kinds.forward_kl(to_buckets(log_p, ids), to_buckets(log_q, ids)))
    assert report[0].dense == pytest.approx(float(torch.cat(dense).mean()), rel=1e-4)
    assert report[0].kept == pytest.approx(float(torch.cat(kept).mean()), rel=1e-4)


def test_more_tokens_lose_less(
    teacher: WhisperForConditionalGeneration, rows: tuple[list[Utterance], list[SoftLabels]], recipe: Recipe
):
    report = kl_lost(teacher, teacher, *rows, recipe)
    nats = [lost.nats for lost in report]
    assert all(n > 0.0 for n in nats) and nats == sorted(nats, reverse=True)
    assert all(0.0 < lost.share < 1.0 and lost.dense == report[0].dense for lost in report)


def test_left_out_clips_are_not_counted(
    teacher: WhisperForConditionalGeneration, rows: tuple[list[Utterance], list[SoftLabels]], recipe: Recipe
):
    clips, labels = rows
    out = replace(labels[1], target_ids=labels[1].target_ids[:0], left_out="too long")
    assert kl_lost(teacher, teacher, clips, [labels[0], out], recipe) == kl_lost(
        teacher, teacher, clips[:1], labels[:1], recipe
    )
    assert kl_lost(teacher, teacher, clips[1:], [out], recipe) == []


@pytest.mark.full
def test_report_uses_the_student_of_the_run(
    rows: tuple[list[Utterance], list[SoftLabels]],
    recipe: Recipe,
    teacher: WhisperForConditionalGeneration,
    tmp_path: Path,
):
    clips, labels = rows
    write_table(tmp_path / "shard.parquet", to_table(clips))
    write_labels(tmp_path / "labels.parquet", labels, label_key(recipe))
    report = measure(recipe, tmp_path / "shard.parquet", tmp_path / "labels.parquet")
    assert (
        report[0].dense > kl_lost(teacher, teacher, clips, labels, recipe)[0].dense
    )  # the student has two layers less
    assert len(kl_table(report).rows) == len(report)


def test_other_vocabulary_is_refused(teacher: WhisperForConditionalGeneration, recipe: Recipe):
    other = cast(Any, SimpleNamespace(config=SimpleNamespace(vocab_size=51865)))
    with pytest.raises(AskdError, match="vocabulary has 51865 tokens, the teacher's 51864"):
        kl_lost(teacher, other, [], [], recipe)


def test_shares():
    lost = KlLost(8, kept=0.75, dense=1.0)
    assert (lost.nats, lost.share) == (0.25, 0.25)
    assert KlLost(8, 0.0, 0.0).share == 0.0
