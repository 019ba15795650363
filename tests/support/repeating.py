"""Helper of the tests of benchmarks/engines.py: a system without a model, which a process opens at once."""

from askd_ray.errors import AskdError


class Repeats:
    """A system that always returns one text; it cannot be opened without one."""

    def __init__(self, text: str):
        if not text:
            raise AskdError("nothing to repeat")
        self._text = text

    def transcribe(self, audio: bytes, language: str) -> str:
        return self._text
