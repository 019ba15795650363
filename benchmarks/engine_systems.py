"""The systems of benchmarks/engines.py: from the bytes of an audio file to its text, everything included.

Each is created in a separate process, which imports this module. So it imports little: what a system does not need
would count as its memory.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow


class FromAudio:
    """A system whose engine takes waveforms."""

    def __init__(self, of_waveform: Callable[[Waveform, str], str]):
        self._of_waveform = of_waveform

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        return self._of_waveform(decode(audio), language)


def ctranslate2(folder: Path, compute_type: str, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open CTranslate2."""
    from askd_ray.models.engine import Engine

    engine = Engine(folder, compute_type=compute_type, threads=threads, window=window)
    return FromAudio(lambda waveform, language: engine.transcribe([waveform], language)[0].text)


def served(folder: Path, full: Path, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open what `askd serve` runs on a CPU: ONNX Runtime, and CTranslate2 (``full``) for what is not greedy."""
    from askd_ray.models.engine import Engine
    from askd_ray.models.onnx_engine import OnnxEngine

    engine = OnnxEngine(folder, Engine(full, threads=threads, window=window), threads)
    return FromAudio(lambda waveform, language: engine.transcribe([waveform], language)[0].text)


def ctc(folder: Path, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open our engine of CTC students."""
    from askd_ray.models.ctc_engine import CtcEngine

    engine = CtcEngine(folder, threads=threads, window=window)
    return FromAudio(lambda waveform, language: engine.transcribe([waveform], language)[0].text)


def whisper_cpp(file: Path, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open whisper.cpp, greedy; ``window`` sets its audio_ctx."""
    from askd_ray.models.whisper_cpp import WhisperCpp

    return FromAudio(WhisperCpp(file, threads=threads, window=window).transcribe)


def onnx(folder: Path, quantization: Any, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open the ``onnx`` format of a bundle in ONNX Runtime."""
    from askd_ray.models.whisper_onnx_engine import OnnxWhisper

    return FromAudio(OnnxWhisper(folder, quantization, threads=threads, window=window).transcribe)


def openvino(folder: Path, quantization: Any, threads: int, window: DecodingWindow | None) -> FromAudio:
    """Open the ``onnx`` format of a bundle in OpenVINO's runtime."""
    from openvino import Core

    from askd_ray.models.whisper_onnx_engine import OnnxWhisper

    class Session:
        """OpenVINO with the methods of ONNX Runtime."""

        def __init__(self, file: Path, threads: int):
            settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            self._model = Core().compile_model(str(file), "CPU", settings)

        def run(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
            """Return the outputs of these names."""
            outputs = self._model(inputs)
            return [outputs[name] for name in names]

    class OpenVinoWhisper(OnnxWhisper):
        """The loop of our engine, with OpenVINO for the model."""

        def _open(self, file: Path, threads: int) -> Any:
            return Session(file, threads)

    return FromAudio(OpenVinoWhisper(folder, quantization, threads=threads, window=window).transcribe)


def onnx_asr(folder: Path, threads: int) -> FromAudio:
    """Open the ``onnx`` format of a bundle in onnx-asr, int8; it pads to 30 s."""
    import onnx_asr
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    model = onnx_asr.load_model("whisper", folder, quantization="quantized", sess_options=options)
    return FromAudio(
        lambda waveform, language: str(model.recognize(waveform, sample_rate=SAMPLE_RATE_HZ, language=language))
    )


def sherpa_onnx(constructor: str, arguments: dict[str, str], threads: int) -> FromAudio:
    """Open a model in sherpa-onnx; ``constructor`` is a class method of its ``OfflineRecognizer``."""
    from sherpa_onnx import OfflineRecognizer

    recognizer = getattr(OfflineRecognizer, constructor)(**arguments, num_threads=threads)

    def text_of(waveform: Waveform, language: str) -> str:
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE_HZ, waveform)
        recognizer.decode_stream(stream)
        return str(stream.result.text).strip()

    text_of(np.zeros(SAMPLE_RATE_HZ, np.float32), "en")  # some models that it cannot run fail here only
    return FromAudio(text_of)


class BatchedFasterWhisper:
    """faster-whisper's batched pipeline, greedy, in int8, with one clip in a batch.

    The clip is given as its only chunk: the VAD, which would choose chunks, takes time and may drop words.
    """

    def __init__(self, folder: Path, threads: int):
        from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio

        self._decode = decode_audio
        model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
        self._pipeline = BatchedInferencePipeline(model)

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        waveform = self._decode(BytesIO(audio), sampling_rate=SAMPLE_RATE_HZ)
        chunk = {"start": 0.0, "end": len(waveform) / SAMPLE_RATE_HZ}
        segments, _ = self._pipeline.transcribe(
            waveform, language=language, beam_size=1, temperature=0.0, clip_timestamps=[chunk]
        )
        return "".join(segment.text for segment in segments).strip()


class Transformers:
    """transformers' Whisper as its documentation runs it, in float32, greedy, without timestamps."""

    def __init__(self, folder: Path, threads: int):
        import torch
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor
        from transformers.utils import logging

        from askd_ray.text.tokens import MAX_TOKENS, Tokens

        torch.set_num_threads(threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype="float32").eval()
        self._model.generation_config.max_length = None  # max_new_tokens replaces it
        self._options: dict[str, Any] = {"num_beams": 1, "do_sample": False, "max_new_tokens": MAX_TOKENS}
        self._multilingual = Tokens(folder).multilingual

    def transcribe(self, audio: bytes, language: str) -> str:
        """Return the text of one clip of at most 30 s."""
        inputs = self._processor(decode(audio), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        options = {"language": language, "task": "transcribe"} if self._multilingual else {}
        ids = self._model.generate(inputs.input_features, **self._options, **options)
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
