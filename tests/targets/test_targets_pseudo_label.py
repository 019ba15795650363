from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels, check_labels, write_labels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import to_table, waveform_of, write_table
from askd_ray.errors import AskdError
from askd_ray.models.engine import Engine
from askd_ray.models.generate import greedy
from askd_ray.models.load import load_whisper
from askd_ray.models.transcript import Decoding, Transcript
from askd_ray.models.windows import encode
from askd_ray.targets.pseudo_label import teacher_engine
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.text.tokens import MAX_PROMPT_TOKENS

SOT, NO_TIMESTAMPS, PREVIOUS = 50257, 50362, 50360  # of the English-only vocabulary


def recipe(weights: Path, teacher: dict[str, Any] | None = None, **targets: Any) -> Recipe:
    settings = {"model": str(weights), "top_k": 8, **(teacher or {})}
    return Recipe.model_validate({"teacher": settings, "targets": {"kind": "pseudo", **targets}})


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Utterance]:
    """Real prompts without their texts."""
    return [replace(u, text="") for u in utterances(speech, 4)]


@pytest.fixture(scope="module")
def labels(tiny_en: Model, clips: list[Utterance], weights: Path) -> list[SoftLabels]:
    return label(*tiny_en, clips, recipe(weights))


def test_greedy_labels_equal_the_teacher(
    tiny_en: Model, labels: list[SoftLabels], clips: list[Utterance], weights: Path
):
    """CTranslate2 in float32 and torch give the same tokens, so no int8 copy makes the labels."""
    model, tokens = tiny_en
    waveforms = [waveform_of(u) for u in clips]
    make_transcript = Engine(weights, compute_type="float32", window=None).transcribe(waveforms)
    in_torch = greedy(model, tokens, log_mel_padded(waveforms), tokens.prompt())
    for made, transcript, ids in zip(labels, make_transcript, in_torch, strict=True):
        assert made.left_out == "" and made.prompt_ids == (SOT, NO_TIMESTAMPS)
        assert made.target_ids.tolist() == [*transcript.token_ids, tokens.end] == [*ids, tokens.end]


def test_soft_labels_follow_the_pseudo_labels(labels: list[SoftLabels], clips: list[Utterance]):
    tops = [(made.top_ids[:, 0] == made.target_ids).tolist() for made in labels]
    hits = [hit for row in tops for hit in row]
    assert sum(hits) >= 0.9 * len(hits)  # greedy takes the most likely token unless it is suppressed
    assert all(0.0 < made.teacher_loss < 1.0 for made in labels)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("timestamps", [False, True])
def test_mean_log_probability_of_the_tokens(
    tiny_en: Model, clips: list[Utterance], weights: Path, beam_size: int, timestamps: bool
):
    """The value for ``min_mean_log_prob``, with greedy and with beam search."""
    model, tokens = tiny_en
    engine = teacher_engine(recipe(weights, beam_size=beam_size, timestamps=timestamps))
    (make_transcript,) = engine.transcribe([waveform_of(clips[0])])
    prompt, ids = tokens.prompt(timestamps=timestamps), [*make_transcript.token_ids, tokens.end]
    with torch.no_grad():
        states = encode(model.model.encoder, log_mel_padded([waveform_of(clips[0])])).states
        decoder_ids = torch.tensor([[*prompt, *ids[:-1]]])
        logits = model.proj_out(model.model.decoder(input_ids=decoder_ids, encoder_hidden_states=states)[0])[0]
    logits = logits[len(prompt) - 1 :]
    logits[:, model.generation_config.suppress_tokens] = -torch.inf
    mean = float(logits.log_softmax(-1)[range(len(ids)), ids].mean())
    # Whisper's timestamp rules suppress tokens at some positions, so the others get more probability.
    assert mean - 1e-3 <= make_transcript.avg_logprob <= mean + (0.4 if timestamps else 0.02)


def test_beam_search(tiny_en: Model, clips: list[Utterance], labels: list[SoftLabels], weights: Path):
    model, tokens = tiny_en
    made = label(model, tokens, clips, recipe(weights, beam_size=4))
    engine = Engine(weights, compute_type="float32", window=None, decoding=Decoding(beam_size=4))
    expected = [[*t.token_ids, tokens.end] for t in engine.transcribe([waveform_of(u) for u in clips])]
    assert [m.target_ids.tolist() for m in made] == expected
    assert expected != [m.target_ids.tolist() for m in labels]


def test_timestamps(tiny_en: Model, clips: list[Utterance], labels: list[SoftLabels], weights: Path):
    _, tokens = tiny_en
    for made, without in zip(label(*tiny_en, clips, recipe(weights, timestamps=True)), labels, strict=True):
        assert made.prompt_ids == (SOT,)
        ids = made.target_ids.tolist()
        marks = [i for i in ids if i > NO_TIMESTAMPS]
        assert ids[0] == NO_TIMESTAMPS + 1 and len(marks) >= 2  # <|0.00|>, and where the speech ends
        assert marks == sorted(marks) and (marks[-1] - marks[0]) * 0.02 < 5.0  # the clips are shorter than 4 s
        assert ids[-1] == tokens.end
        text = tokens.decode(ids)
        assert "<|" not in text and text
        assert tokens.encode(text) == [i for i in ids if i < tokens.end]
        assert len(set(text.split()) & set(tokens.decode(without.target_ids.tolist()).split())) > 0


def test_prompt_precedes_the_transcript(
    tiny_en: Model, clips: list[Utterance], labels: list[SoftLabels], weights: Path
):
    _, tokens = tiny_en
    previous = "Thank you for calling. Please leave a message."
    made = label(*tiny_en, clips, recipe(weights, prompt=previous))
    for one in made:
        assert one.prompt_ids == (PREVIOUS, *tokens.encode(previous), SOT, NO_TIMESTAMPS)
    kept = [(a, b) for a, b in zip(made, labels, strict=True) if not a.left_out]
    assert len(kept) >= 2
    assert any(a.teacher_loss != b.teacher_loss for a, b in kept)  # the prompt changes the teacher's probabilities


def test_online_teacher_writes_only_targets(
    tiny_en: Model, clips: list[Utterance], labels: list[SoftLabels], weights: Path
):
    online = Recipe.model_validate({"teacher": {"model": str(weights), "online": True}, "targets": {"kind": "pseudo"}})
    for made, with_soft in zip(label(*tiny_en, clips, online), labels, strict=True):
        assert made.target_ids.tolist() == with_soft.target_ids.tolist()
        assert made.top_ids.shape == (len(made.target_ids), 0)


class Deaf(Engine):
    """A teacher with given transcripts."""

    def __init__(self, answers: dict[str, list[Transcript]]):
        self.answers = answers

    def transcribe_states(self, states: Any, languages: Sequence[str]) -> list[Transcript]:
        assert len(states) == len(languages)
        return [self.answers[language].pop(0) for language in languages]


def test_dropped_clips_are_empty_with_a_reason(tiny_en: Model, clips: list[Utterance], weights: Path):
    model, tokens = tiny_en

    def make_transcript(text: str, log_prob: float = -0.1, ended: bool = True) -> Transcript:
        return Transcript(text, tuple(tokens.encode(text)), log_prob, 0.0, ended)

    rows = [*clips, replace(clips[0], text="entirely other words"), replace(clips[1], text="hello")]
    rows = [replace(u, duration_s=1.0 + i / 10) for i, u in enumerate(rows)]  # the order in which they are labelled
    answers = [
        make_transcript("hello"),
        make_transcript("hello", log_prob=-3.0),
        make_transcript("no no no no no"),
        make_transcript("hello", ended=False),
        make_transcript("hello"),
        make_transcript("Hello!"),
    ]
    made = label(model, tokens, rows, recipe(weights), Deaf({"en": answers}))
    expected = ["", "min_mean_log_prob", "max_repeats", "no end", "max_wer", ""]
    assert [m.left_out for m in made] == expected
    for one in made:
        assert (len(one.target_ids) == 0) == bool(one.left_out)
        assert one.top_ids.shape == (len(one.target_ids), 8) == one.top_log_probs.shape
    assert Counter(m.left_out for m in made).total() == len(rows)


def test_labels_belong_to_the_clips_in_any_order(
    tiny_en: Model, clips: list[Utterance], labels: list[SoftLabels], weights: Path
):
    """Clips are labelled in batches by their duration; some of a batch have a reference or no speech."""
    rows = [replace(clips[0], id="silence", derived="non_speech"), *reversed(clips)]
    made = label(*tiny_en, rows, recipe(weights, teacher={"batch_size": 2}))
    assert made[0].target_ids.tolist() == [tiny_en[1].end] and not made[0].has_teacher
    for one, alone in zip(made[1:], reversed(labels), strict=True):
        assert one.target_ids.tolist() == alone.target_ids.tolist() and one.content_hash == alone.content_hash
        np.testing.assert_allclose(one.token_loss, alone.token_loss, atol=2e-3)


def test_too_long_prompt_is_refused(clips: list[Utterance], weights: Path):
    with pytest.raises(AskdError, match=rf"the prompt has 300 tokens: at most {MAX_PROMPT_TOKENS} are allowed"):
        teacher_engine(recipe(weights, prompt="nine " * 300))
    longest = teacher_engine(recipe(weights, prompt="nine " * MAX_PROMPT_TOKENS))
    assert len(longest.transcribe([waveform_of(clips[0])])) == 1


def test_labels_of_other_targets_are_stale(
    clips: list[Utterance], labels: list[SoftLabels], weights: Path, tmp_path: Path
):
    shard, file = tmp_path / "shard.parquet", tmp_path / "labels.parquet"
    write_table(shard, to_table(clips))
    write_labels(file, labels, label_key(recipe(weights)))
    check_labels(file, shard, label_key(recipe(weights)))
    changes: dict[str, Any] = {
        "timestamps": True,
        "beam_size": 2,
        "max_wer": None,
        "min_mean_log_prob": -0.5,
        "max_compression_ratio": 2.0,
        "max_repeats": 2,
        "chars_per_s": [1, 25],
        "prompt": "two\nlines",
    }
    for name, value in changes.items():
        with pytest.raises(AskdError, match=f"stale soft labels .* made with {name} ") as caught:
            check_labels(file, shard, label_key(recipe(weights, **{name: value})))
        assert "\n" not in str(caught.value)
    references = Recipe.model_validate({"teacher": {"model": str(weights), "top_k": 8}})
    with pytest.raises(AskdError, match="made with targets pseudo, the recipe asks for reference"):
        check_labels(file, shard, label_key(references))


@pytest.mark.slow
def test_another_language(clips: list[Utterance]):
    from askd_ray.fetch.weights import fetch_weights

    base = fetch_weights("base")
    model, tokens = load_whisper(str(base))
    clip = replace(clips[0], language="es")
    (made,) = label(model, tokens, [clip], recipe(base, min_mean_log_prob=None, chars_per_s=None))
    assert tokens.id_of("<|es|>") in made.prompt_ids and made.left_out == ""
    assert made.target_ids[-1] == tokens.end and len(made.target_ids) > 1
    with pytest.raises(AskdError, match=r"no token <\|xx\|>"):
        label(model, tokens, [replace(clip, language="xx")], recipe(base))
