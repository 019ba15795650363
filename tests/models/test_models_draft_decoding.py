"""With a draft, whatever it is, the text is that of greedy decoding."""

import hashlib
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import FRAMES_PER_S, SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.data.shards import waveform_of
from askd_ray.models.draft import EMPTY, Draft
from askd_ray.models.draft_decoding import DraftOptions, TorchDecoder, Verified, decode_with_draft
from askd_ray.models.generate import greedy
from askd_ray.models.load import load_whisper
from askd_ray.models.windows import encode
from askd_ray.text.tokens import max_tokens

END, PROMPT = 5, (6, 7)


def draft_of(ids: Sequence[int], entropy: float = 9.0) -> Draft:
    return Draft(tuple(ids), (entropy,) * len(ids), len(ids))


class DecoderOfTable:
    """A decoder that writes one of five tokens or ends, by a hash of all tokens before; its cache is a list."""

    def __init__(self, seed: int):
        self._seed, self._cache, self.n_passes = seed, list[int](), 0

    def after(self, before: Sequence[int]) -> int:
        value = hashlib.sha256(repr((self._seed, tuple(before[-3:]), len(before) // 4)).encode()).digest()[0]
        return value % 5 if value < 240 else END

    def greedy_after(self, n_kept: int, ids: Sequence[int], n_prompt: int) -> list[int]:
        assert n_kept <= len(self._cache) and (n_kept == 0 or n_kept >= n_prompt)
        self.n_passes += 1
        self._cache = [*self._cache[:n_kept], *ids]
        ends = range(max(n_kept + 1, n_prompt), len(self._cache) + 1)
        best = [self.after(self._cache[:n]) for n in ends]
        return best[: 1 + self._seed % 7] if self._seed % 2 else best  # it need not return all

    def greedy(self, limit: int) -> list[int]:
        written = list[int]()
        while len(written) < limit and (token := self.after([*PROMPT, *written])) != END:
            written.append(token)
        return written


DRAFTS = st.lists(st.integers(0, 5), max_size=30)
EDITS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["drop", "add", "change"]), st.integers(0, 5)), max_size=6
)


def edited(ids: Sequence[int], edits: Sequence[tuple[int, str, int]]) -> list[int]:
    """Return tokens with some of them dropped, added or changed."""
    found = list(ids)
    for at, kind, token in edits:
        place = at % (len(found) + 1)
        found[place : place + (kind != "add")] = [] if kind == "drop" else [token]
    return found


@given(seed=st.integers(0, 999), limit=st.integers(0, 40), ids=DRAFTS, ngram_size=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_any_draft_gives_the_greedy_text(seed: int, limit: int, ids: list[int], ngram_size: int):
    decoder = DecoderOfTable(seed)
    expected = decoder.greedy(limit)
    found = decode_with_draft(decoder, PROMPT, END, draft_of(ids), DraftOptions(limit, None, ngram_size))
    assert list(found.token_ids) == expected
    assert found.n_passes == decoder.n_passes <= len(expected) + (len(expected) < limit)
    assert 0 <= found.n_accepted <= len(expected)
    # Each pass writes one token that no draft has, except the last one if it ends the text.
    assert found.n_accepted + found.n_passes - (len(expected) < limit) == len(expected)


@given(seed=st.integers(0, 999), limit=st.integers(1, 40), edits=EDITS)
@settings(max_examples=200, deadline=None)
def test_a_nearly_right_draft_needs_few_passes(seed: int, limit: int, edits: list[tuple[int, str, int]]):
    decoder = DecoderOfTable(seed)
    expected = decoder.greedy(limit)
    found = decode_with_draft(decoder, PROMPT, END, draft_of(edited(expected, edits)), DraftOptions(limit))
    assert list(found.token_ids) == expected
    if not edits and seed % 2 == 0:
        assert found.n_passes == 1


@given(seed=st.integers(0, 999), limit=st.integers(0, 40), ids=st.lists(st.integers(0, 4), max_size=30))
@settings(max_examples=100, deadline=None)
def test_relaxed_with_sure_drafts_takes_them(seed: int, limit: int, ids: list[int]):
    decoder = DecoderOfTable(seed)
    sure = decode_with_draft(decoder, PROMPT, END, draft_of(ids, 0.1), DraftOptions(limit, max_entropy=0.5))
    if ids:
        assert sure == Verified(tuple(ids[:limit]), 0, min(len(ids), limit))
    # No token is below the threshold: relaxed is exact.
    unsure = decode_with_draft(decoder, PROMPT, END, draft_of(ids, 0.5), DraftOptions(limit, max_entropy=0.5))
    assert unsure == decode_with_draft(decoder, PROMPT, END, draft_of(ids), DraftOptions(limit))


def test_relaxed_asks_the_decoder_where_ctc_is_unsure():
    decoder = next(d for d in map(DecoderOfTable, range(99)) if len(d.greedy(9)) == 9)
    ids, right = [4, 4, 4, 4, 4, 4], decoder.after([*PROMPT, 4, 4])
    draft = Draft(tuple(ids), (0.1, 0.1, 2.0, 0.1, 0.1, 0.1), 6)
    found = decode_with_draft(decoder, PROMPT, END, draft, DraftOptions(9, max_entropy=0.5))
    assert found.n_passes >= 1
    assert found.token_ids[:2] == (4, 4)
    assert (found.token_ids[2:3] or (END,)) == (right,)


@pytest.fixture(scope="module")
def wild_model(tiny_model: Path) -> Model:
    """A Whisper of random weights that writes other tokens at other positions, and not one again and again."""
    model, tokens = load_whisper(str(tiny_model))
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.mul_(60.0)
    return model, tokens


def greedy_and_decoder(model: Model, log_mel: torch.Tensor) -> tuple[list[int], TorchDecoder, int]:
    whisper, tokens = model
    expected = greedy(whisper, tokens, log_mel, tokens.prompt())[0]
    with torch.no_grad():
        states = encode(whisper.model.encoder, log_mel).states
    return expected, TorchDecoder(whisper, states), max_tokens(log_mel.shape[-1] / FRAMES_PER_S)


@cache
def of_noise(model: Model, seed: int, n_frames: int) -> tuple[list[int], TorchDecoder, int]:
    log_mel = torch.randn(1, 80, n_frames, generator=torch.Generator().manual_seed(seed))
    return greedy_and_decoder(model, log_mel)


@given(data=st.data(), seed=st.integers(0, 1), n_frames=st.sampled_from([2, 40]))
@settings(max_examples=12, deadline=None)
def test_random_whisper_with_any_draft(wild_model: Model, data: st.DataObject, seed: int, n_frames: int):
    expected, decoder, limit = of_noise(wild_model, seed, n_frames)
    assert len(set(expected)) > 3
    tokens = wild_model[1]
    some = st.lists(st.integers(0, tokens.end - 1) | st.sampled_from(expected), max_size=60)
    ids = data.draw(some | EDITS.map(lambda edits: edited(expected, edits)) | some.map(lambda end: [*expected, *end]))
    found = decode_with_draft(decoder, tokens.prompt(), tokens.end, draft_of(ids), DraftOptions(limit))
    assert list(found.token_ids) == expected
    if ids == expected:
        assert found.n_passes == 1


def test_the_prompt_may_have_a_text(wild_model: Model):
    whisper, tokens = wild_model
    log_mel = torch.randn(1, 80, 40, generator=torch.Generator().manual_seed(5))
    prompt = tokens.prompt("en", "an earlier text")
    expected = greedy(whisper, tokens, log_mel, prompt)[0]
    _, decoder, limit = greedy_and_decoder(wild_model, log_mel)
    for draft in (EMPTY, draft_of(expected), draft_of(expected[1:])):
        found = decode_with_draft(decoder, prompt, tokens.end, draft, DraftOptions(limit))
        assert list(found.token_ids) == expected


def test_limit_zero_asks_nobody(wild_model: Model):
    decoder = TorchDecoder(wild_model[0], torch.full((1, 4, 32), torch.nan))
    assert decode_with_draft(decoder, PROMPT, END, draft_of([1, 2]), DraftOptions(0)) == Verified((), 0, 0)


@pytest.mark.slow
def test_tiny_en_on_real_clips_with_perturbed_drafts(tiny_en: Model, speech: Path):
    tokens = tiny_en[1]
    rng, prompt, n_passes, n_tokens = np.random.default_rng(0), tokens.prompt(), 0, 0
    for clip in [waveform_of(u) for u in utterances(speech, 3)]:
        window = DecodingWindow(silence_s=0.3).samples(len(clip), 80)
        log_mel = log_mel_windows([clip], [window])
        expected, decoder, limit = greedy_and_decoder(tiny_en, log_mel)
        assert limit == max_tokens(window / SAMPLE_RATE_HZ)
        words = tokens.decode(expected).split()
        wrong = [w if rng.random() > 0.2 else "banana" for w in words]
        shorter = [w for w in words if rng.random() > 0.2]
        doubled = list(itertools.chain.from_iterable([w, w] if rng.random() < 0.2 else [w] for w in words))
        for text in (words, wrong, shorter, doubled, [w.lower().strip(".,") for w in words]):
            ids = tokens.encode(" ".join(text))
            found = decode_with_draft(decoder, prompt, tokens.end, draft_of(ids), DraftOptions(limit))
            assert list(found.token_ids) == expected, " ".join(text)
            n_passes, n_tokens = n_passes + found.n_passes, n_tokens + len(expected) + 1
    assert n_passes < 0.5 * n_tokens
