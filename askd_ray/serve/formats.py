"""The five answers of OpenAI's audio API, and its stream."""

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


def body(result: Transcription, form: Format, words: bool, segments: bool, task: str) -> str:
    """Return a transcription as a format writes it; ``words`` and ``segments`` are what verbose_json is to hold."""
    if form == "json":
        return json.dumps({"text": result.text, "usage": usage(result.duration_s)}, ensure_ascii=False)
    if form == "verbose_json":
        return json.dumps(_verbose(result, words, segments, task), ensure_ascii=False)
    if form == "text":
        return result.text + "\n"
    return subtitles(result.segments, form)


def usage(duration_s: float) -> dict[str, Any]:
    """Return what OpenAI's clients show as used: whole seconds."""
    return {"type": "duration", "seconds": math.ceil(duration_s)}


def subtitles(segments: Sequence[Segment], form: Literal["srt", "vtt"]) -> str:
    """Return segments as SubRip or WebVTT."""
    mark = "," if form == "srt" else "."
    cues = [
        ("" if form == "vtt" else f"{number}\n")
        + f"{_clock(s.start_s, mark)} --> {_clock(s.end_s, mark)}\n{s.text.strip().replace('-->', '->')}\n"
        for number, s in enumerate(segments, 1)
    ]
    return "\n".join((["WEBVTT\n"] if form == "vtt" else []) + cues)


def event(kind: str, **fields: Any) -> str:
    """Return a server-sent event of OpenAI's stream."""
    return f"data: {json.dumps({'type': kind, **fields}, ensure_ascii=False)}\n\n"


def _clock(seconds: float, mark: str) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def _verbose(result: Transcription, words: bool, segments: bool, task: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "task": task,
        "language": LANGUAGE_NAMES.get(result.language, result.language),
        "duration": round(result.duration_s, 3),
        "text": result.text,
        "usage": usage(result.duration_s),
    }
    if words:
        said["words"] = [
            {
                "word": w.text,
                "start": round(w.start_s, 3),
                "end": round(w.end_s, 3),
                "probability": round(w.probability, 4),
            }
            for w in result.words
        ]
    if segments:
        said["segments"] = [_segment(number, s) for number, s in enumerate(result.segments)]
    return said


def _segment(number: int, segment: Segment) -> dict[str, Any]:
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
