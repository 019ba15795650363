import gc
import os

import numpy as np
import pytest

from askd_ray.errors import AskdError
from askd_ray.evaluation.isolated import Isolated


class Echo:
    """A system that says what it got and where it runs, and dies or complains when told to."""

    def __init__(self, greeting: str):
        if greeting == "refuse":
            raise AskdError("no such model")
        self.greeting = greeting

    def transcribe(self, audio: bytes, language: str) -> str:
        if audio == b"die":
            os._exit(1)
        if audio == b"complain":
            raise AskdError("bad audio")
        return f"{self.greeting} {audio.decode()} {language} {os.getpid()}"


def test_a_system_answers_from_another_process_that_ends_with_it():
    with Isolated(Echo, "hello") as system:
        greeting, audio, language, pid = system.transcribe(b"x", "en").split()
        assert (greeting, audio, language) == ("hello", "x", "en")
        assert int(pid) != os.getpid()
        assert system.call("transcribe", b"y", "de").split()[1:3] == ["y", "de"]
        assert system.opened_s > 0.0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_the_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    ours = np.ones(100_000_000)  # 800 MB
    with Isolated(Echo, "hello") as system:
        assert 10.0 < system.peak_mb() < ours.nbytes / 1e6


def test_errors_come_back():
    with pytest.raises(AskdError, match="no such model"):
        Isolated(Echo, "refuse")
    with Isolated(Echo, "hello") as system, pytest.raises(AskdError, match="bad audio"):
        system.transcribe(b"complain", "en")


def test_a_process_that_dies_is_no_endless_wait():
    with Isolated(Echo, "hello") as system, pytest.raises(AskdError, match="ended unexpectedly"):
        system.transcribe(b"die", "en")


class GarbageCollector:
    """Tells how many objects its process leaves out of garbage collections."""

    def frozen(self) -> int:
        return gc.get_freeze_count()


def test_garbage_collections_leave_out_what_was_there_before():
    """faster-whisper collects garbage for each clip: the imports of our program made it up to a third slower."""
    with Isolated(GarbageCollector) as system:
        assert system.call("frozen") > 10_000
