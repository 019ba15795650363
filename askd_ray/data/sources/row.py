"""A row of a source, and reading its audio."""

import errno
import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

from askd_ray.audio.channel import read_channel
from askd_ray.audio.cut import cut
from askd_ray.audio.decode import AudioError, decode
from askd_ray.data.schema import Split
from askd_ray.location import Location

MAX_BYTES = 1 << 29
"""The largest audio file: no clip of 30 s needs more, and several are in memory at a time."""

_BUFFER_BYTES = 1 << 20  # read buffer for long recordings: about half a minute of sound


@dataclass(frozen=True)
class SourceRow:
    """A row as its source gives it; its audio is not checked yet.

    ``where`` names file and line. ``split`` is the split in the data, or "" if the recipe's hash decides. ``problem``
    is why the row cannot be used, as "REASON: DETAIL" for the quarantine file, or "".
    """

    id: str
    audio: bytes | Location
    path: str
    text: str
    speaker: str
    language: str
    domain: str
    licence: str
    split: Split | Literal[""]
    where: str
    start_s: float | None = None
    end_s: float | None = None
    channel: int | None = None
    problem: str = ""

    def read_audio(self, max_s: float) -> bytes:
        """Return the audio file's bytes, or the row's chunk and channel of it as FLAC.

        Raises :class:`~askd_ray.audio.decode.AudioError` when the audio cannot be read or the row has a problem, and
        :class:`AskdError` when the store itself cannot be read.
        """
        if self.problem:
            raise AudioError(self.problem)
        try:
            if self.start_s is not None or self.end_s is not None:
                assert isinstance(self.audio, Location), "only recordings in files are cut"
                return self._cut_recording(self.audio, max_s)
            audio = self.audio if isinstance(self.audio, bytes) else self.audio.read_bytes(MAX_BYTES)
            if self.channel is None:
                return audio
            decode(audio, max_s)  # finds damage that is not visible in one channel
            return self._cut(io.BytesIO(audio), max_s)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise AudioError(f"longer than {max_s:g} s: {error.filename} is over {MAX_BYTES >> 20} MiB") from None
            detail = os.strerror(error.errno) if error.errno else error
            raise AudioError(f"unreadable audio: {self.audio}: {detail}") from None

    def _cut_recording(self, recording: Location, max_s: float) -> bytes:
        try:
            with recording.open() as file:
                seekable = io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
                return self._cut(cast(BinaryIO, seekable), max_s)
        except AudioError:
            recording.is_file()  # raises AskdError if the store failed; decoders report that as damaged audio
            raise

    def _cut(self, file: BinaryIO, max_s: float) -> bytes:
        start_s, end_s = self.start_s or 0.0, self.end_s
        if self.channel is not None:
            file = io.BytesIO(read_channel(file, self.channel, start_s, end_s, max_s))
            start_s, end_s = 0.0, None
        return cut(file, start_s, end_s, max_s)
