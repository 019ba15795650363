"""Training speed, and the share of time that a run waits for data."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Clock:
    """Measures time since its creation; the training loop counts ``utterances``."""

    def __init__(self) -> None:
        self.utterances = 0
        self._began = time.monotonic()
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count the time of the block as time spent waiting for data."""
        began = time.monotonic()
        yield
        self._waited_s += time.monotonic() - began

    def rates(self) -> dict[str, float]:
        """Return the utterances per second, and the share of time spent waiting for data."""
        passed_s = time.monotonic() - self._began
        return {"utterances_per_s": self.utterances / passed_s, "data_wait_share": self._waited_s / passed_s}
