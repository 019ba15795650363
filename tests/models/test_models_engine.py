from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_padded, log_mel_windows
from askd_ray.audio.units import (
    PADDED_SAMPLES,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_POSITION,
    WINDOW_STEP_SAMPLES,
    DecodingWindow,
    samples_of,
)
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.engine import Engine
from askd_ray.models.generate import greedy
from askd_ray.models.transcript import Decoding
from askd_ray.models.windows import encode
from askd_ray.text.tokens import max_tokens

TRIMMED = DecodingWindow(silence_s=0.3)


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Waveform]:
    return [waveform_of(u) for u in utterances(speech, 8)]


@pytest.fixture(scope="module")
def trimmed(weights: Path) -> Engine:
    return Engine(weights, window=TRIMMED)


@pytest.fixture(scope="module")
def padded(weights: Path) -> Engine:
    return Engine(weights)


def test_no_clips(trimmed: Engine):
    assert trimmed.transcribe([]) == []


def test_text_is_independent_of_the_batch(trimmed: Engine, clips: list[Waveform]):
    # Clips of one length share a window; some are cut a little, and the clips are not sorted by length.
    same = [np.pad(clip, (0, 4 * SAMPLE_RATE_HZ - len(clip))) for clip in clips]
    mixed = [*clips, *(clip[: -1000 * (i % 3)] if i % 3 else clip for i, clip in enumerate(same))]
    together = trimmed.transcribe(mixed)
    alone = [trimmed.transcribe([clip])[0] for clip in mixed]
    assert [t.token_ids for t in together] == [t.token_ids for t in alone]
    assert [t.avg_logprob for t in together] == pytest.approx([t.avg_logprob for t in alone], abs=1e-3)


@pytest.mark.slow
def test_real_clips_in_padded_windows(padded: Engine, speech: Path):
    clips = utterances(speech, 2)
    transcripts = padded.transcribe([waveform_of(u) for u in clips], decoding=Decoding(no_speech=True))
    plain = padded.transcribe([waveform_of(u) for u in clips])
    assert plain == [replace(t, no_speech_prob=None) for t in transcripts]
    for utterance, transcript in zip(clips, transcripts, strict=True):
        words = {w.strip(".,").lower() for w in utterance.text.split()}
        assert len(words & {w.strip(".,").lower() for w in transcript.text.split()}) >= 0.6 * len(words)
        assert transcript.avg_logprob < 0.0
        assert transcript.no_speech_prob is not None and 0.0 <= transcript.no_speech_prob <= 1.0


@pytest.mark.slow
def test_avg_logprob_includes_the_end_token(weights: Path, tiny_en: Model, clips: list[Waveform]):
    transcript = Engine(weights, compute_type="float32").transcribe(clips[:1])[0]
    model, tokens = tiny_en
    prompt, target_ids = tokens.prompt(), [*transcript.token_ids, tokens.end]
    with torch.no_grad():
        states = encode(model.model.encoder, log_mel_padded(clips[:1])).states
        ids = torch.tensor([[*prompt, *target_ids[:-1]]])
        logits = model.proj_out(model.model.decoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state)[0]
    logits = logits[len(prompt) - 1 :]
    logits[:, model.generation_config.suppress_tokens] = -torch.inf
    logits[0, model.generation_config.begin_suppress_tokens] = -torch.inf
    expected = logits.log_softmax(-1)[range(len(target_ids)), target_ids].mean()
    assert transcript.avg_logprob == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("prompt", ["", "Thank you for calling. " * 25])
def test_endless_decoding_is_limited(weights: Path, speech: Path, prompt: str):
    # tiny.en was never trained on trimmed windows and repeats itself in some of them.
    waveforms = [waveform_of(u) for u in utterances(speech, 24)]
    engine = Engine(weights, window=TRIMMED, decoding=Decoding(prompt=prompt))
    transcripts = engine.transcribe(waveforms)
    lengths = [len(t.token_ids) for t in transcripts]
    assert max(n for n, t in zip(lengths, transcripts, strict=True) if not t.ended) == max(lengths)
    limits = [max_tokens(engine.window_samples(w) / SAMPLE_RATE_HZ) for w in waveforms]
    assert all(n <= limit for n, limit in zip(lengths, limits, strict=True))
    assert any(n == limit for n, limit in zip(lengths, limits, strict=True)), "no clip ran away: nothing was bounded"
    assert all(t.ended == (n < limit) for n, t, limit in zip(lengths, transcripts, limits, strict=True))


def test_states_with_the_shape_of_a_log_mel_are_refused(
    weights: Path, clips: list[Waveform], monkeypatch: pytest.MonkeyPatch
):
    engine = Engine(weights, window=TRIMMED)
    monkeypatch.setattr(engine, "window_samples", lambda waveform: 80 * SAMPLES_PER_POSITION)
    with pytest.raises(AssertionError, match="log-mel"):
        engine.transcribe(clips[:1])


@pytest.mark.slow
def test_engine_equals_the_decoder_in_every_window(weights: Path, tiny_en: Model, speech: Path):
    # CTranslate2 took the 80 states of a 1.6 s window for a log-mel of 80 bands, so the model got noise.
    engine = Engine(weights, compute_type="float32", window=TRIMMED)
    model, tokens = tiny_en
    talk = np.concatenate([waveform_of(u) for u in utterances(speech, 16)])
    steps = [*range(2, 26), *range(30, 151, 20)]  # of 0.2 s: each up to 5 s, then some
    windows: list[int] = []
    for n_steps in steps:
        clip = talk[: n_steps * WINDOW_STEP_SAMPLES - samples_of(0.3)]
        window = engine.window_samples(clip)
        transcript = engine.transcribe([clip])[0]
        expected = greedy(model, tokens, log_mel_windows([clip], [window]), tokens.prompt())[0]
        assert list(transcript.token_ids)[:20] == expected[:20], f"window of {window / SAMPLE_RATE_HZ:g} s"
        windows.append(window)
    assert windows == [(n + (n == 8)) * WINDOW_STEP_SAMPLES for n in steps]  # 1.6 s has 80 positions


@pytest.mark.slow
def test_engine_equals_the_decoder_in_minimal_windows(weights: Path, tiny_en: Model, clips: list[Waveform]):
    model, tokens = tiny_en
    engine = Engine(weights, compute_type="float32", window=DecodingWindow(silence_s=0.3, min_s=1.6))
    blips = [clip[: samples_of(seconds)] for clip, seconds in zip(clips, (0.1, 0.5, 1.0, 1.4), strict=False)]
    assert {engine.window_samples(blip) for blip in blips} == {samples_of(1.8)}  # 1.6 s has 80 positions
    log_mel = log_mel_windows(blips, [samples_of(1.8)] * len(blips))
    expected = greedy(model, tokens, log_mel, tokens.prompt())
    found = [list(transcript.token_ids) for transcript in engine.transcribe(blips)]
    assert [ids[:20] for ids in found] == [ids[:20] for ids in expected]


def test_max_tokens():
    assert [max_tokens(s) for s in (0.0, 1.7, 10.0, 30.0)] == [16, 41, 166, 224]


def test_clip_limit_is_30_s(trimmed: Engine):
    noise = np.random.default_rng(0).normal(0, 0.01, PADDED_SAMPLES + 1).astype(np.float32)
    assert len(trimmed.transcribe([noise[:-1]])) == 1
    with pytest.raises(AskdError, match=r"clip 1 is 30\.0 s long: at most 30 s"):
        trimmed.transcribe([noise[:100], noise])


def test_empty_clip_is_silence(trimmed: Engine):
    assert len(trimmed.transcribe([np.zeros(0, np.float32)])) == 1


def test_unknown_language_is_refused(trimmed: Engine):
    with pytest.raises(AskdError, match="English-only"):
        trimmed.transcribe([np.zeros(1600, np.float32)], "de")


def test_engine_keeps_torch_threads(trimmed: Engine):
    before = torch.get_num_threads()
    trimmed.transcribe([np.zeros(1600, np.float32)])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("missing", ["model.bin", "config.json", "tokenizer.json"])
def test_incomplete_folder_is_refused(weights: Path, tmp_path: Path, missing: str):
    for name in {"model.bin", "config.json", "tokenizer.json"} - {missing}:
        (tmp_path / name).symlink_to(weights / name)
    with pytest.raises(AskdError, match=missing):
        Engine(tmp_path)


def test_damaged_model_is_refused(weights: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(weights / name)
    (tmp_path / "model.bin").write_bytes((weights / "model.bin").read_bytes()[:100_000])
    with pytest.raises(AskdError, match="cannot be loaded by CTranslate2"):
        Engine(tmp_path)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("window", [None, TRIMMED])
def test_token_probabilities(weights: Path, clips: list[Waveform], window: DecodingWindow | None):
    settings = {"compute_type": "float32", "window": window}
    plain = Engine(weights, **settings).transcribe(clips)
    sure = Engine(weights, **settings, decoding=Decoding(confidence=True)).transcribe(clips)
    assert [t.text for t in sure] == [t.text for t in plain] == ["".join(t.token_texts).strip() for t in sure]
    assert all(t.token_probs == () for t in plain)
    for transcript in sure:
        assert len(transcript.token_probs) == len(transcript.token_texts) == len(transcript.token_ids)
        assert all(0.0 < p <= 1.0 for p in transcript.token_probs)
        if transcript.ended and window is None:
            # avg_logprob includes the end token, and its softmax leaves out suppressed tokens.
            assert np.log(transcript.token_probs).sum() == pytest.approx(
                transcript.avg_logprob * (len(transcript.token_ids) + 1), abs=0.6
            )
