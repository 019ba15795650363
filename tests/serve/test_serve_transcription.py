from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.units import samples_of
from askd_ray.audio.vad import Span
from askd_ray.models.transcript import Transcript
from askd_ray.serve.transcription import Segment, Transcription, segments_of
from askd_ray.text.ngrams import compression_ratio


def span(start_s: float, end_s: float) -> Span:
    return Span(samples_of(start_s), samples_of(end_s))


def timed(pieces: list[str], times: list[float], language: str = "en") -> Transcript:
    ids, probs = tuple(range(len(pieces))), tuple(0.5 for _ in pieces)
    return Transcript("".join(pieces).strip(), ids, -0.3, 0.1, True, tuple(pieces), probs, tuple(times), language)


def test_segments_end_at_sentences_and_pauses():
    pieces = [" Hel", "lo", ",", " you", ".", " Who", " is", " there"]
    times = [0.0, 0.2, 0.4, 0.5, 0.9, 1.0, 1.3, 1.5, 4.0]
    chunk, speech = span(10.0, 14.0), [span(10.1, 11.4), span(13.0, 13.8)]
    first, second, third = segments_of(timed(pieces, times), chunk, speech, 0.0)
    assert [(w.text, w.start_s, w.end_s) for w in first.words] == [("Hello,", 10.1, 10.5), ("you.", 10.5, 11.0)]
    assert (first.text, first.token_ids, first.start_s, first.end_s) == (" Hello, you.", (0, 1, 2, 3, 4), 10.1, 11.0)
    assert [second.text, third.text] == [" Who is", " there"] or second.text == " Who is there"
    last = third.words[-1]
    assert last.end_s == 13.8  # nobody speaks behind it
    whole = Transcription((first, second, third), "en", 14.0)
    assert whole.text == "Hello, you. Who is there"
    assert [w.text for w in whole.words] == ["Hello,", "you.", "Who", "is", "there"]


def test_chunk_without_times_is_one_segment():
    transcript = Transcript("One. Two.", (1, 2), -0.3, 0.1)
    (segment,) = segments_of(transcript, span(2.0, 5.0), [span(2.0, 5.0)], 0.4)
    assert segment == Segment(" One. Two.", 2.0, 5.0, (1, 2), 0.4, -0.3, 0.1)
    assert segments_of(Transcript("", (), 0.0, 1.0), span(0.0, 1.0), [], 0.0) == ()


def test_languages_without_spaces():
    pieces = ["\u4f60\u597d", "\u3002", "\u518d", "\u89c1"]
    segments = segments_of(timed(pieces, [0.0, 0.5, 0.7, 1.0, 1.4], "zh"), span(0.0, 2.0), [span(0.0, 2.0)], 0.0)
    assert [s.text for s in segments] == ["\u4f60\u597d\u3002", "\u518d\u89c1"]
    assert Transcription(segments, "zh", 2.0).text == "".join(pieces)


def test_subtitle_length_limit():
    n = 60
    transcript = timed([f" word{i}" for i in range(n)], [0.4 * i for i in range(n + 1)])
    segments = segments_of(transcript, span(0.0, 24.0), [span(0.0, 24.0)], 0.0)
    assert len(segments) > 3
    assert all(s.end_s - s.start_s <= 8.0 and len(s.text) <= 86 for s in segments)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([" a", "b", " c", ",", ".", " -", "'s", " 12", '"', ' "', ""]), min_size=1, max_size=30
    ),
    steps=st.lists(st.floats(0.0, 1.5), min_size=31, max_size=31),
    language=st.sampled_from(["en", "zh"]),
    edges=st.lists(st.floats(0.0, 40.0), max_size=6),
)
def test_words_keep_all_tokens_in_order(pieces: list[str], steps: list[float], language: str, edges: list[float]):
    times = [sum(steps[:i]) for i in range(len(pieces) + 1)]
    transcript = timed(pieces, times, language)
    chunk = span(5.0, 5.0 + times[-1])
    ends = sorted(edges)[: len(edges) // 2 * 2]
    speech = [span(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if b > a]
    segments = segments_of(transcript, chunk, speech, 0.0)
    assert Transcription(segments, language, 60.0).text == transcript.text
    if transcript.text:
        assert [i for s in segments for i in s.token_ids] == list(transcript.token_ids)
    words = [w for s in segments for w in s.words]
    assert "".join("".join(w.text.split()) for w in words) == "".join(transcript.text.split())
    min_s = min(0.02, chunk.n_samples / 16_000 / max(len(words), 1)) - 1e-9
    assert all(chunk.start / 16_000 - 1e-9 <= w.start_s <= w.end_s <= chunk.end / 16_000 + 1e-9 for w in words)
    assert all(w.end_s - w.start_s >= min_s for w in words)
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in pairwise(words))


def test_word_duration_is_positive():
    """Cross-attention may give several words one position: players never showed words without a duration."""
    transcript = timed([" one", " two", " three", " four"], [0.0, 1.0, 1.0, 2.0, 2.0])
    (segment,) = segments_of(transcript, span(0.0, 2.0), [span(0.0, 2.0)], 0.0)
    times = [(round(w.start_s, 3), round(w.end_s, 3)) for w in segment.words]
    assert times == [(0.0, 1.0), (1.0, 1.02), (1.02, 1.98), (1.98, 2.0)]


def test_compression_ratio_of_a_loop():
    assert compression_ratio("Thank you very much. " * 20) > 2.4 > compression_ratio("Nobody said they would come.")


def test_segment_statistics():
    segment = Segment(" la" * 60, 0.0, 1.0, (), 0.0, -0.1, 0.0)
    assert segment.compression_ratio == pytest.approx(compression_ratio(" la" * 60))
