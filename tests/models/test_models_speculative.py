import copy
from pathlib import Path

import pytest
import torch
from small_run import utterances
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES, window_samples
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.generate import greedy
from askd_ray.models.load import load_whisper
from askd_ray.models.speculative import SpeculativeResult, check_vocabularies, speculate
from askd_ray.text.tokens import Tokens, max_tokens

Whisper = WhisperForConditionalGeneration


@pytest.fixture(scope="module")
def teacher(weights: Path) -> tuple[Whisper, Tokens]:
    return load_whisper(str(weights))


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Waveform]:
    return [waveform_of(u) for u in utterances(speech, 3)]


@pytest.fixture(scope="module")
def written(teacher: tuple[Whisper, Tokens], clips: list[Waveform]) -> list[list[int]]:
    """The teacher's greedy tokens."""
    return [greedy(*teacher, padded(clip), teacher[1].prompt())[0] for clip in clips]


def padded(clip: Waveform) -> torch.Tensor:
    return log_mel_windows([clip], [PADDED_SAMPLES])


def trimmed(clip: Waveform) -> torch.Tensor:
    return log_mel_windows([clip], [window_samples(len(clip), 0.3)])


def perturbed(model: Whisper, scale: float) -> Whisper:
    """A copy with two decoder layers and noise on their weights."""
    worse, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    worse.model.decoder.layers = worse.model.decoder.layers[:2]
    with torch.no_grad():
        for weight in worse.model.decoder.layers.parameters():
            weight += scale * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return worse


def test_a_draft_like_the_teacher_saves_its_passes(teacher, clips, written):
    model, tokens = teacher
    for clip, expected in zip(clips, written, strict=True):
        found = speculate(model, model, tokens, (padded(clip), padded(clip)), tokens.prompt())
        assert found.token_ids == expected
        assert found.n_accepted == found.n_drafted >= len(expected) + 1 - found.n_passes  # with the end token
        assert found.n_passes == -(-(len(expected) + 1) // 6)  # five drafted tokens and one of the teacher per pass


def test_in_the_window_that_the_draft_was_trained_on(teacher, clips, written):
    model, tokens = teacher
    found = [speculate(model, model, tokens, (padded(c), trimmed(c)), tokens.prompt()) for c in clips]
    assert [f.token_ids for f in found] == written
    assert sum(f.n_passes for f in found) < sum(map(len, written))


@pytest.mark.parametrize("n_drafted", [1, 3, 8])
def test_a_bad_draft_changes_nothing_but_the_work(teacher, clips, written, n_drafted: int):
    model, tokens = teacher
    worse, accepted = perturbed(model, 0.3), 0
    for clip, expected in zip(clips[:2], written, strict=False):
        found = speculate(model, worse, tokens, (padded(clip), trimmed(clip)), tokens.prompt(), n_drafted)
        assert found.token_ids == expected
        assert found.n_passes + found.n_accepted == pytest.approx(len(expected) + 1, abs=1)
        assert found.n_accepted < 0.7 * found.n_drafted <= 0.7 * n_drafted * found.n_passes
        accepted += found.n_accepted
    assert accepted > 0 or n_drafted == 1  # otherwise the test does not cover a kept cache


def test_a_teacher_that_does_not_stop_is_stopped_at_the_same_token(teacher, clips):
    model, tokens = copy.deepcopy(teacher[0]), teacher[1]
    model.generation_config.suppress_tokens = [*model.generation_config.suppress_tokens, tokens.end]
    window = trimmed(clips[0][:16_000])
    expected = greedy(model, tokens, window, tokens.prompt())[0]
    assert len(expected) == max_tokens(1.3)
    for n_drafted in (1, 4):
        found = speculate(model, perturbed(model, 0.1), tokens, (window, window), tokens.prompt(), n_drafted)
        assert found.token_ids == expected


def test_counts_of_a_known_case(teacher, clips, written):
    """A draft model that always proposes the end token: the teacher rejects it until the text ends."""
    model, tokens = teacher
    mute = copy.deepcopy(model)
    mute.proj_out = torch.nn.Linear(model.config.d_model, model.config.vocab_size)
    torch.nn.init.zeros_(mute.proj_out.weight)
    torch.nn.init.zeros_(mute.proj_out.bias).data[tokens.end] = 1.0
    found = speculate(model, mute, tokens, (padded(clips[0]), trimmed(clips[0])), tokens.prompt())
    n_tokens = len(written[0])
    assert found.token_ids == written[0]
    # The end token is suppressed at the beginning: there it proposes the first allowed id, then the end token.
    assert found == SpeculativeResult(written[0], n_drafted=n_tokens + 2, n_accepted=1, n_passes=n_tokens + 1)


def test_models_of_different_vocabularies(weights: Path, tmp_path: Path):
    text = (weights / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('"<|fr|>"', '"<|fx|>"'), encoding="utf-8")
    check_vocabularies(Tokens(weights), Tokens(weights))
    with pytest.raises(AskdError, match=r"cannot draft for .*: speculative decoding needs models of one vocabulary"):
        check_vocabularies(Tokens(weights), Tokens(tmp_path))
