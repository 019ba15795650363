"""The audio of a session that is not committed yet."""

import numpy as np

from askd_ray.audio.decode import Waveform


class AudioBuffer:
    """A session's audio from sample ``start`` up to ``end``, both counted from the first sample of the session."""

    def __init__(self):
        self.start, self.end = 0, 0
        self._pieces: list[Waveform] = []  # joined on access: audio may arrive in thousands of pieces

    @property
    def n_samples(self) -> int:
        """The number of samples in the buffer."""
        return self.end - self.start

    def append(self, waveform: Waveform) -> None:
        """Add audio at the end."""
        self._pieces.append(waveform)
        self.end += len(waveform)

    def waveform(self) -> Waveform:
        """Return all audio in the buffer."""
        self._pieces = [np.concatenate([np.zeros(0, np.float32), *self._pieces])]
        return self._pieces[0]

    def take_until(self, sample: int) -> Waveform:
        """Remove the audio before a sample of the session, and return it."""
        whole = self.waveform()
        n_taken = min(max(0, sample - self.start), len(whole))
        self._pieces = [whole[n_taken:]]
        self.start += n_taken
        return whole[:n_taken]

    def rewind(self) -> Waveform:
        """Remove all audio as if it had not arrived, and return it."""
        self.end = self.start
        whole, self._pieces = self.waveform(), []
        return whole
