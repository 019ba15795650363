"""Verifies a bundle: its files are complete, and its formats give the same transcripts."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_padded
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes
from askd_ray.models.engine import Engine
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.text.tokens import MAX_TOKENS, Tokens

_MAX_WER = 0.2  # between formats with the same weights: rounding may change a token, and then the text after it


def verify(bundle: Path, clips: Sequence[Utterance]) -> dict[str, Any]:
    """Check the files of a bundle, load every format and compare the transcripts of real clips.

    Only comparable pairs are compared: equal windows, and equal weights where stated. ``agreement`` is the share of
    clips with the same normalised text, for four pairs: transformers (weights rounded to float16) and
    ctranslate2-float16; int8 and float16 weights with 30 s windows; the same with trimmed windows (int8 may change
    words); faster-whisper and our engine on the int8 folder.

    Raises :class:`AskdError` for a missing or changed file, for a format that does not load, and when transformers or
    faster-whisper differ from our engine in more than a fifth of the words.
    """
    n_files = check_hashes(bundle)
    silence_s = float(read_json(bundle / BUNDLE_FILE)["window"]["silence_s"])
    waveforms = [waveform_of(clip) for clip in clips]
    languages = [clip.language for clip in clips]

    def transcribe(folder: str, silence_s: float | None) -> list[str]:
        # a CPU has no float16 arithmetic: it computes float16 weights in float32
        kind = "int8" if folder.endswith("int8") else "float32"
        engine = Engine(bundle / folder, compute_type=kind, silence_s=silence_s)
        return [engine.transcribe([w], language)[0].text for w, language in zip(waveforms, languages, strict=True)]

    padded_int8 = transcribe("ctranslate2-int8", None)
    padded_float16 = transcribe("ctranslate2-float16", None)
    trimmed_int8, trimmed_float16 = (transcribe(f"ctranslate2-{kind}", silence_s) for kind in ("int8", "float16"))
    pairs = {
        "transformers and float16": (
            _transcribe_with_transformers(bundle / "transformers", waveforms, languages),
            padded_float16,
        ),
        "int8 and float16": (padded_int8, padded_float16),
        "int8 and float16, trimmed": (trimmed_int8, trimmed_float16),
        "faster-whisper and int8": (_transcribe_with_stock(bundle / "ctranslate2-int8", clips), padded_int8),
    }
    n_equal = {name: _n_equal(*texts, languages) for name, texts in pairs.items()}
    for name in ("transformers and float16", "faster-whisper and int8"):
        wer = _wer(*pairs[name], languages)
        if wer > _MAX_WER:
            raise AskdError(
                f"export: {name} differ in {wer:.0%} of the words of {len(clips)} clips, although their weights are "
                f"the same; at most {_MAX_WER:.0%} is allowed: the conversion failed"
            )
    agreement = {name: round(n / len(clips), 4) for name, n in n_equal.items()}
    return {"files": n_files, "clips": len(clips), "agreement": agreement}


def _wer(texts: Sequence[str], others: Sequence[str], languages: Sequence[str]) -> float:
    normalizers = map(normalizer, languages)
    pairs = [(n(text), n(other)) for text, other, n in zip(texts, others, normalizers, strict=True)]
    return count_word_errors([other for _, other in pairs], [text for text, _ in pairs]).rate


def _n_equal(texts: Sequence[str], others: Sequence[str], languages: Sequence[str]) -> int:
    pairs = zip(texts, others, languages, strict=True)
    return sum(normalizer(language)(text) == normalizer(language)(other) for text, other, language in pairs)


@torch.no_grad()
def _transcribe_with_transformers(folder: Path, waveforms: Sequence[Waveform], languages: Sequence[str]) -> list[str]:
    """Transcribe with transformers, greedily, with weights rounded to float16 as in the float16 folder."""
    try:
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype="float32").half().float().eval()
    except (OSError, ValueError) as error:
        raise AskdError(f"{folder} cannot be loaded by transformers: {' '.join(str(error).split())[:300]}") from None
    model.generation_config.max_length = None  # max_new_tokens replaces it
    multilingual = Tokens(folder).multilingual
    texts: list[str] = []
    for waveform, language in zip(waveforms, languages, strict=True):
        features = log_mel_padded([waveform], model.config.num_mel_bins)  # the processor would pad in another way
        options = {"language": language, "task": "transcribe"} if multilingual else {}
        ids = model.generate(features, num_beams=1, do_sample=False, max_new_tokens=MAX_TOKENS, **options)
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    return texts


def _transcribe_with_stock(folder: Path, clips: Sequence[Utterance]) -> list[str]:
    from faster_whisper import WhisperModel

    try:
        model = WhisperModel(str(folder), device="cpu", compute_type="int8")
    except (RuntimeError, ValueError) as error:
        raise AskdError(f"{folder} cannot be loaded by faster-whisper: {' '.join(str(error).split())}") from None
    texts: list[str] = []
    for clip in clips:
        segments, _ = model.transcribe(
            io.BytesIO(clip.audio), language=clip.language, beam_size=1, temperature=0.0, without_timestamps=True
        )
        texts.append("".join(segment.text for segment in segments))
    return texts
