"""What the service answers with: words, segments and a whole text, made of what the engine heard in each stretch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.audio.vad import Span
from askd_ray.models.engine import Transcript
from askd_ray.text.ngrams import compression_ratio
from askd_ray.text.normalize import UNSPACED

_SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")  # the last three are Chinese and Japanese
_PAUSE_S = 0.8  # a longer one ends a segment
_MIN_WORD_S = 0.02  # a position of the encoder
_MAX_SEGMENT_S, _MAX_SEGMENT_CHARS = 8.0, 84  # two lines of subtitles


@dataclass(frozen=True)
class Word:
    """A word as the text writes it, with its punctuation; times in seconds from the file's start."""

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A piece of the text that reads as one line; ``text`` has the white space that stands before it.

    ``avg_logprob`` (nats a token) and ``no_speech_prob`` are those of the stretch that it was heard in.
    """

    text: str
    start_s: float
    end_s: float
    token_ids: tuple[int, ...]
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()

    @property
    def compression_ratio(self) -> float:
        """How many times smaller the text gets when it is compressed: loops compress well."""
        return compression_ratio(self.text)


@dataclass(frozen=True)
class Transcription:
    """The text of an audio file, and how long the audio is."""

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


def segments_of(
    transcript: Transcript, stretch: Span, speech: Sequence[Span], temperature: float
) -> tuple[Segment, ...]:
    """Return what was heard in a stretch of a file, as segments: one, or several where the times of tokens are known.

    ``speech`` are the file's spans of speech: no word begins or ends where nobody speaks.
    """
    if not transcript.text:
        return ()
    begin_s, end_s = stretch.start / SAMPLE_RATE_HZ, stretch.end / SAMPLE_RATE_HZ
    timed = transcript.token_times != ()
    groups = [_Group(transcript, its) for its in _grouped(transcript)] if timed else []
    words = _apart([_in_speech(group.word(begin_s, end_s), speech) for group in groups], begin_s, end_s)
    found: list[Segment] = []
    first = 0
    for last in range(len(words)):
        if last + 1 == len(words) or _ends(words[first : last + 1], words[last + 1]):
            found.append(_segment(transcript, temperature, groups[first : last + 1], words[first : last + 1]))
            first = last + 1
    if not timed:
        text, ids = transcript.text, transcript.token_ids
        found = [Segment(text, begin_s, end_s, ids, temperature, transcript.avg_logprob, transcript.no_speech_prob)]
    spaced = transcript.language not in UNSPACED
    return (replace(found[0], text=" " * spaced + found[0].text.lstrip()), *found[1:])


@dataclass(frozen=True)
class _Group:
    """The tokens of a word."""

    transcript: Transcript
    places: list[int]

    @property
    def text(self) -> str:
        return "".join(self.transcript.token_texts[i] for i in self.places)

    def word(self, begin_s: float, end_s: float) -> Word:
        """Return the word in a stretch from ``begin_s`` to ``end_s``."""
        heard, places = self.transcript, self.places
        start, end = (begin_s + heard.token_times[i] for i in (places[0], places[-1] + 1))
        probability = sum(heard.token_probs[i] for i in places) / len(places)
        return Word(self.text.strip(), min(start, end_s), min(end, end_s), probability)


def _segment(transcript: Transcript, temperature: float, groups: Sequence[_Group], words: Sequence[Word]) -> Segment:
    return Segment(
        text="".join(group.text for group in groups),
        start_s=words[0].start_s,
        end_s=words[-1].end_s,
        token_ids=tuple(transcript.token_ids[i] for group in groups for i in group.places),
        temperature=temperature,
        avg_logprob=transcript.avg_logprob,
        no_speech_prob=transcript.no_speech_prob,
        words=tuple(words),
    )


def _grouped(transcript: Transcript) -> list[list[int]]:
    """Return the places of tokens, word by word; what has no letter or digit belongs to the word beside it."""
    texts, spaced = transcript.token_texts, transcript.language not in UNSPACED
    groups: list[list[int]] = []
    for i, piece in enumerate(texts):
        begins = piece[:1].isspace() if spaced else _is_said(piece)
        if groups and not (begins and any(_is_said(texts[j]) for j in groups[-1])):
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) > 1 and not any(_is_said(texts[j]) for j in groups[-1]):
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _is_said(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _in_speech(word: Word, speech: Sequence[Span]) -> Word:
    """Return a word without the pauses at its ends: cross-attention gives them to the words beside them."""
    during = [s for s in speech if s.start < word.end_s * SAMPLE_RATE_HZ and s.end > word.start_s * SAMPLE_RATE_HZ]
    if not during:
        return word
    start_s = max(word.start_s, during[0].start / SAMPLE_RATE_HZ)
    return replace(word, start_s=start_s, end_s=min(word.end_s, during[-1].end / SAMPLE_RATE_HZ))


def _apart(words: Sequence[Word], begin_s: float, end_s: float) -> list[Word]:
    """Return words of which each takes some time and none overlaps the next, between ``begin_s`` and ``end_s``.

    Cross-attention may give several tokens one place, and so a word no time at all: it gets a place from those beside
    it, as much as players and subtitle editors need to show it.
    """
    least_s, found = min(_MIN_WORD_S, (end_s - begin_s) / max(len(words), 1)), list[Word]()
    free_from_s, free_until_s = begin_s, end_s
    for word in words:
        start_s = max(word.start_s, free_from_s)
        free_from_s = max(word.end_s, start_s + least_s)
        found.append(replace(word, start_s=start_s, end_s=free_from_s))
    for i in reversed(range(len(found))):  # what was pushed over the end comes back
        last_s = min(found[i].end_s, free_until_s)
        free_until_s = min(found[i].start_s, last_s - least_s)
        found[i] = replace(found[i], start_s=free_until_s, end_s=last_s)
    return found


def _ends(words: Sequence[Word], following: Word) -> bool:
    """Whether a segment of these words ends before the one that follows."""
    last = words[-1]
    if last.text.endswith(_SENTENCE_ENDS) or following.start_s - last.end_s > _PAUSE_S:
        return True
    n_chars = sum(len(word.text) + 1 for word in words) + len(following.text)
    return following.end_s - words[0].start_s > _MAX_SEGMENT_S or n_chars > _MAX_SEGMENT_CHARS
