"""The result of a request: words, segments and the whole text, built from the transcripts of the chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.audio.vad import Span
from askd_ray.models.transcript import Transcript
from askd_ray.text.ngrams import compression_ratio
from askd_ray.text.normalize import UNSPACED

_SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")  # the last three are Chinese and Japanese
_PAUSE_S = 0.8  # a longer one ends a segment
_MIN_WORD_S = 0.02  # one encoder position
_MAX_SEGMENT_S, _MAX_SEGMENT_CHARS = 8.0, 84  # two lines of subtitles


@dataclass(frozen=True)
class Word:
    """A word with its punctuation; times in seconds from the start of the file."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A part of the text that reads as one subtitle; ``text`` begins with the white space that precedes it.

    ``avg_logprob`` (nats per token) and ``no_speech_prob`` (None if it was not asked for) are those of the segment's
    chunk.
    """

    text: str
    start_s: float
    end_s: float
    token_ids: tuple[int, ...]
    temperature: float
    avg_logprob: float
    no_speech_prob: float | None
    words: tuple[Word, ...] = ()

    @property
    def compression_ratio(self) -> float:
        """How many times smaller the text becomes by compression: loops compress well."""
        return compression_ratio(self.text)


@dataclass(frozen=True)
class Transcription:
    """The transcript of an audio file, and the duration of the audio."""

    segments: tuple[Segment, ...]
    language: str
    duration_s: float

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)


def segments_of(transcript: Transcript, chunk: Span, speech: Sequence[Span], temperature: float) -> tuple[Segment, ...]:
    """Split the transcript of a chunk into segments; without token times it is a single segment.

    ``speech`` are the file's spans of speech: word times are moved into them.
    """
    if not transcript.text:
        return ()
    begin_s, end_s = chunk.start / SAMPLE_RATE_HZ, chunk.end / SAMPLE_RATE_HZ
    has_times = transcript.token_times != ()
    groups = [_Group(transcript, indices) for indices in _group_by_word(transcript)] if has_times else []
    words = _separate([_in_speech(group.word(begin_s, end_s), speech) for group in groups], begin_s, end_s)
    segments: list[Segment] = []
    first = 0
    for last in range(len(words)):
        if last + 1 == len(words) or _ends_segment(words[first : last + 1], words[last + 1]):
            segments.append(_segment(transcript, temperature, groups[first : last + 1], words[first : last + 1]))
            first = last + 1
    if not has_times:
        text, ids = transcript.text, transcript.token_ids
        segments = [Segment(text, begin_s, end_s, ids, temperature, transcript.avg_logprob, transcript.no_speech_prob)]
    spaced = transcript.language not in UNSPACED
    return (replace(segments[0], text=" " * spaced + segments[0].text.lstrip()), *segments[1:])


@dataclass(frozen=True)
class _Group:
    """The tokens of a word."""

    transcript: Transcript
    indices: list[int]

    @property
    def text(self) -> str:
        return "".join(self.transcript.token_texts[i] for i in self.indices)

    def word(self, begin_s: float, end_s: float) -> Word:
        """Return the word, in a chunk from ``begin_s`` to ``end_s``."""
        transcript, indices = self.transcript, self.indices
        start, end = (begin_s + transcript.token_times[i] for i in (indices[0], indices[-1] + 1))
        probability = sum(transcript.token_probs[i] for i in indices) / len(indices)
        return Word(self.text.strip(), min(start, end_s), min(end, end_s), probability)


def _segment(transcript: Transcript, temperature: float, groups: Sequence[_Group], words: Sequence[Word]) -> Segment:
    return Segment(
        text="".join(group.text for group in groups),
        start_s=words[0].start_s,
        end_s=words[-1].end_s,
        token_ids=tuple(transcript.token_ids[i] for group in groups for i in group.indices),
        temperature=temperature,
        avg_logprob=transcript.avg_logprob,
        no_speech_prob=transcript.no_speech_prob,
        words=tuple(words),
    )


def _group_by_word(transcript: Transcript) -> list[list[int]]:
    """Return the token indices of each word; tokens without a letter or digit belong to the word beside them."""
    texts, spaced = transcript.token_texts, transcript.language not in UNSPACED
    groups: list[list[int]] = []
    for i, piece in enumerate(texts):
        begins = piece[:1].isspace() if spaced else _is_spoken(piece)
        if groups and not (begins and any(_is_spoken(texts[j]) for j in groups[-1])):
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) > 1 and not any(_is_spoken(texts[j]) for j in groups[-1]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _is_spoken(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _in_speech(word: Word, speech: Sequence[Span]) -> Word:
    """Remove the pauses from the ends of a word: cross-attention assigns pauses to the words beside them."""
    spans = [s for s in speech if s.start < word.end_s * SAMPLE_RATE_HZ and s.end > word.start_s * SAMPLE_RATE_HZ]
    if not spans:
        return word
    start_s = max(word.start_s, spans[0].start / SAMPLE_RATE_HZ)
    return replace(word, start_s=start_s, end_s=min(word.end_s, spans[-1].end / SAMPLE_RATE_HZ))


def _separate(words: Sequence[Word], begin_s: float, end_s: float) -> list[Word]:
    """Give each word a minimum duration without overlaps, between ``begin_s`` and ``end_s``.

    Cross-attention may assign one position to several tokens, so that a word has no duration. It then takes time from
    the words beside it, as much as players and subtitle editors need to show it.
    """
    min_s, separated = min(_MIN_WORD_S, (end_s - begin_s) / max(len(words), 1)), list[Word]()
    free_from_s, free_until_s = begin_s, end_s
    for word in words:
        start_s = max(word.start_s, free_from_s)
        free_from_s = max(word.end_s, start_s + min_s)
        separated.append(replace(word, start_s=start_s, end_s=free_from_s))
    for i in reversed(range(len(separated))):  # move words back that were pushed over the end
        last_s = min(separated[i].end_s, free_until_s)
        free_until_s = min(separated[i].start_s, last_s - min_s)
        separated[i] = replace(separated[i], start_s=free_until_s, end_s=last_s)
    return separated


def _ends_segment(words: Sequence[Word], following: Word) -> bool:
    """Whether a segment of these words ends before the following word."""
    last = words[-1]
    if last.text.endswith(_SENTENCE_ENDS) or following.start_s - last.end_s > _PAUSE_S:
        return True
    n_chars = sum(len(word.text) + 1 for word in words) + len(following.text)
    return following.end_s - words[0].start_s > _MAX_SEGMENT_S or n_chars > _MAX_SEGMENT_CHARS
