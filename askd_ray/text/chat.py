"""The tokens of a language model that reads chats in the ChatML form, as SmolLM2 and Qwen do."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from askd_ray.errors import AskdError

INSTRUCTION = "Repeat the sentence:"
"""What the user of a chat asks for, before an utterance: its audio, or its transcript."""

EXAMPLE = "Good morning everyone"
"""The transcript of the first turn, in which the assistant repeats it: a small model then repeats without comments. It
ends without a full stop, as most transcripts of speech do."""


@dataclass(frozen=True)
class ChatTokens:
    """The tokenizer of a language model, and the parts of a chat in which the assistant repeats an utterance.

    The chat is ``opening``, the utterance, ``closing``, and the assistant's text with its ``end``.
    """

    tokenizer: Tokenizer

    @property
    def end(self) -> int:
        """The token with which a turn ends."""
        return self._id_of("<|im_end|>")

    @property
    def opening(self) -> tuple[int, ...]:
        """The tokens before the utterance: those of the user's turn."""
        return (self._start, *self.encode(f"user\n{INSTRUCTION}"))

    @property
    def closing(self) -> tuple[int, ...]:
        """The tokens after the utterance: the end of the user's turn and the start of the assistant's."""
        return (self.end, *self.encode("\n"), self._start, *self.encode("assistant\n"))

    def reading(self, transcript: str) -> tuple[int, ...]:
        """Return the tokens before the assistant's text when the model reads a transcript in place of the audio.

        An example turn comes first.
        """
        example = (*self._turn(EXAMPLE), *self.encode(EXAMPLE), self.end, *self.encode("\n"))
        return (*example, *self._turn(transcript))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; the names of special tokens in it stay text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    @property
    def _start(self) -> int:
        return self._id_of("<|im_start|>")

    def _turn(self, transcript: str) -> tuple[int, ...]:
        return (*self.opening, *self.encode(f" {transcript}"), *self.closing)

    def _id_of(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise AskdError(f"the LLM's vocabulary has no token {token}: its chats must have the ChatML form")
        return token_id
