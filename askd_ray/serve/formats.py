"""The five response formats of OpenAI's audio API, and the events of its stream."""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from askd_ray.audio.units import FRAMES_PER_S
from askd_ray.serve.transcription import Segment, Transcription
from askd_ray.text.languages import LANGUAGE_NAMES

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


def body(result: Transcription, response_format: Format, words: bool, segments: bool, task: str) -> str:
    """Return a transcription in a format; ``words`` and ``segments`` select what verbose_json contains."""
    if response_format == "json":
        return json.dumps({"text": result.text, "usage": usage(result.duration_s)}, ensure_ascii=False)
    if response_format == "verbose_json":
        return json.dumps(_verbose(result, words, segments, task), ensure_ascii=False)
    if response_format == "text":
        return result.text + "\n"
    return subtitles(result.segments, response_format)


def usage(duration_s: float) -> dict[str, Any]:
    """Return OpenAI's ``usage`` object: the duration in whole seconds."""
    return {"type": "duration", "seconds": math.ceil(duration_s)}


def subtitles(segments: Sequence[Segment], response_format: Literal["srt", "vtt"]) -> str:
    """Return segments as SubRip or WebVTT."""
    mark = "," if response_format == "srt" else "."
    cues = [
        ("" if response_format == "vtt" else f"{number}\n")
        + f"{_clock(s.start_s, mark)} --> {_clock(s.end_s, mark)}\n{s.text.strip().replace('-->', '->')}\n"
        for number, s in enumerate(segments, 1)
    ]
    return "\n".join((["WEBVTT\n"] if response_format == "vtt" else []) + cues)


def event(kind: str, **fields: Any) -> str:
    """Return a server-sent event of OpenAI's stream."""
    return f"data: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n"


def _clock(seconds: float, mark: str) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def _verbose(result: Transcription, words: bool, segments: bool, task: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "task": task,
        "language": LANGUAGE_NAMES.get(result.language, result.language),
        "duration": round(result.duration_s, 3),
        "text": result.text,
        "usage": usage(result.duration_s),
    }
    if words:
        content["words"] = [
            {
                "word": w.text,
                "start": round(w.start_s, 3),
                "end": round(w.end_s, 3),
                "probability": round(w.probability, 4),
            }
            for w in result.words
        ]
    if segments:
        content["segments"] = [_segment(number, s) for number, s in enumerate(result.segments)]
    return content


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    assert segment.no_speech_prob is not None, "forms.py asks for it with verbose_json"
    return {
        "id": number,
        "seek": round(segment.start_s * FRAMES_PER_S),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": list(segment.token_ids),
        "temperature": segment.temperature,
        "avg_logprob": round(segment.avg_logprob, 4),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": round(segment.no_speech_prob, 4),
    }
