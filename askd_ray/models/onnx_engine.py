"""The engine of short clips on a CPU: greedy decoding in ONNX Runtime, and everything else in CTranslate2.

In a short window, a decoder step is a few products with one row, and starting operators costs as much as they do. ONNX
Runtime in fused operators takes half of CTranslate2's time for a short clip (docs/performance.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from askd_ray.audio.decode import Waveform
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.models.clip_batches import batch_log_mel, check_durations, clip_window_samples
from askd_ray.models.engine import MAX_BATCH_S, Engine
from askd_ray.models.onnx_decoding import ClipText, GreedyDecoder
from askd_ray.models.onnx_folder import one_line_errors, open_fused
from askd_ray.models.transcript import GREEDY, Decoding, Transcript
from askd_ray.text.tokens import MAX_TOKENS, Tokens, max_tokens

_CONTEXT_TOKENS = 2 * MAX_TOKENS  # that Whisper's decoder has positions for
_MAX_CLIPS = 16  # in a batch: more make a clip wait and save little


class OnnxEngine:
    """A Whisper in a folder of :func:`askd_ray.models.fused_onnx.write_fused_onnx`, with that in CTranslate2's folder.

    ``full`` is the engine of the same weights in CTranslate2. It decodes what is not greedy, or has timestamps, or an
    unknown language, and it aligns tokens to times. Its ``window`` is also that of this engine, where it may be changed
    between calls. ``threads`` = 0 uses all cores. Any number of threads may call the engine in parallel, with the same
    results.

    Raises :class:`AskdError` when the folder is incomplete or damaged.
    """

    def __init__(self, folder: Path, full: Engine, threads: int = 0, decoding: Decoding = GREEDY):
        self._model = open_fused(folder, threads, "Whisper")
        self._full, self._decoding, self._tokens = full, decoding, Tokens(folder)
        self.window = full.window
        with one_line_errors(folder):
            self._n_mels = int(self._model.config["num_mel_bins"])
            self._decoder = GreedyDecoder(self._model, self._tokens.end)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of the model."""
        return self._full.languages

    @property
    def path_reader(self) -> None:
        """None: a decoder writes a text, not a path."""
        return None

    @property
    def mixes_windows(self) -> bool:
        """True: clips of any windows are decoded together."""
        return True

    def fit_prompt(self, prompt: str) -> str:
        """Return the end of a prompt, cut to the length that the model has positions for."""
        return self._full.fit_prompt(prompt)

    def window_samples(self, waveform: Waveform) -> int:
        """Return the length of a clip's window, in samples."""
        return clip_window_samples(waveform, self.window, self._n_mels)

    def transcribe(
        self, waveforms: Sequence[Waveform], language: str | None = "en", decoding: Decoding | None = None
    ) -> list[Transcript]:
        """Transcribe clips of at most 30 s each; the transcripts are in the clips' order.

        ``language`` None detects each clip's language. ``decoding`` replaces the engine's options for this call.

        Raises :class:`AskdError` for a longer clip, a language that the model does not know, and too long a prompt.
        """
        decoding = decoding or self._decoding
        self._full.window = self.window
        if not self._tokens.multilingual:
            language = language or "en"
        if language is None or not _is_greedy(decoding):
            return self._full.transcribe(waveforms, language, decoding)
        check_durations(waveforms)
        prompt = self._tokens.prompt(language, decoding.prompt, task=decoding.task)
        transcripts: dict[int, Transcript] = {}
        windows = [self.window_samples(waveform) for waveform in waveforms]
        for batch in _batches(windows, samples_of(MAX_BATCH_S["cpu"])):
            written = self._write([waveforms[i] for i in batch], prompt)
            transcripts |= {i: self._transcript(clip, language) for i, clip in zip(batch, written, strict=True)}
        in_order = [transcripts[i] for i in range(len(waveforms))]
        return self._full.align(waveforms, in_order, decoding) if decoding.confidence else in_order

    def _write(self, waveforms: Sequence[Waveform], prompt: tuple[int, ...]) -> list[ClipText]:
        """Return the texts of clips: the encoder reads one after the other, the decoder all at once."""
        clips = list[ClipText]()
        for waveform in waveforms:
            window = self.window_samples(waveform)
            log_mel = batch_log_mel([waveform], window, self.window, self._n_mels)
            cross = self._model.encoder.run(list(self._model.cross), {"log_mel": log_mel.numpy()})
            limit = min(max_tokens(window / SAMPLE_RATE_HZ), _CONTEXT_TOKENS - len(prompt))
            clips.append(ClipText([np.asarray(x) for x in cross], log_mel.shape[2] // 2, limit))
        self._decoder.write(clips, prompt)
        return clips

    def _transcript(self, clip: ClipText, language: str) -> Transcript:
        return Transcript(
            text=self._tokens.decode(clip.token_ids),
            token_ids=tuple(clip.token_ids),
            avg_logprob=clip.log_prob / (len(clip.token_ids) + 1),
            ended=clip.ended,
            language=language,
        )


def _batches(windows: Sequence[int], max_samples: int) -> Iterator[list[int]]:
    """Yield the numbers of the clips of each batch, given the lengths of their windows in samples.

    A batch, padded to its longest window, has up to ``max_samples``, or one clip.
    """
    batch = list[int]()
    for number in sorted(range(len(windows)), key=windows.__getitem__):
        if batch and (len(batch) == _MAX_CLIPS or (len(batch) + 1) * windows[number] > max_samples):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _is_greedy(decoding: Decoding) -> bool:
    """Whether a decoding takes the most probable token each time, and only the text is asked for."""
    plain = replace(decoding, prompt="", confidence=False, task="transcribe")
    return plain == GREEDY
