"""The words of a turn that is not finished: what is shown stays."""

from typing import Protocol

from askd_ray.audio.decode import Waveform
from askd_ray.serve.live.agreement import Agreement
from askd_ray.serve.live.joined import JoinedPaths
from askd_ray.serve.transcription_service import SpeechEngine, TranscribeOptions


class Captions(Protocol):
    """How the words of one turn become known while it grows."""

    async def read(self, engine: SpeechEngine, waveform: Waveform, options: TranscribeOptions, owner: str) -> str:
        """Return the new text to show, given the audio of the turn so far; ``owner`` as in :class:`SpeechEngine`."""
        ...

    def end(self, text: str) -> str:
        """Return the rest of the final text to show: nothing where the text contradicts what is shown."""
        ...


async def captions_for(engine: SpeechEngine, model_name: str) -> Captions:
    """Return the captions of a turn: joined paths where the model reads paths, else agreement of whole texts."""
    reads_paths = any(model.reads_paths for model in await engine.models() if model.name == model_name)
    return JoinedPaths() if reads_paths else Agreement()
