"""Whisper's tokens: prompts, targets and texts, from a model's tokenizer.json."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from askd_ray.errors import AskdError

MAX_TOKENS = 224  # half of Whisper's decoder positions; the other half is the prompt's
MAX_PROMPT_TOKENS = MAX_TOKENS - 1  # of earlier text; <|startofprev|> takes one position
TOKENS_AT_LEAST = 16
TOKENS_PER_S = 15  # fast speech has about 5 words a second, and digits a token each


def max_tokens(window_s: float) -> int:
    """Return how many tokens a window may produce: a model that does not stop must not run to the last position."""
    return min(TOKENS_AT_LEAST + int(TOKENS_PER_S * window_s), MAX_TOKENS)


@lru_cache(maxsize=4)  # a process opens few vocabularies, and each many times
def _parse(tokenizer_json: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text: it must not end the target
    return tokenizer


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of a Whisper model. English-only models have no language and task tokens in their prompts."""

    path: Path
    """A tokenizer.json file, or the model folder that holds it."""

    @property
    def file(self) -> Path:
        """The tokenizer.json itself.

        Raises :class:`AskdError` when it is missing.
        """
        file = self.path / "tokenizer.json" if self.path.is_dir() else self.path
        if not file.is_file():
            raise AskdError(f"{file} does not exist: a model folder needs its tokenizer.json")
        return file

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        return _parse(self.file.read_bytes())

    @cached_property
    def multilingual(self) -> bool:
        """Whether the model has language and task tokens in its prompts (its vocabulary is the larger one)."""
        return self.id_of("<|endoftext|>") == 50257

    @property
    def end(self) -> int:
        """The id of the end token."""
        return self.id_of("<|endoftext|>")

    def id_of(self, token: str) -> int:
        """Return the id of a special token.

        Raises :class:`AskdError` when the vocabulary has no such token.
        """
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise AskdError(f"{self.path}: the vocabulary has no token {token}")
        return token_id

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that the model knows, in the vocabulary's order."""
        if not self.multilingual:
            return ("en",)
        first, end = self.id_of("<|startoftranscript|>") + 1, self.id_of("<|translate|>")
        return tuple(str(self.tokenizer.id_to_token(i)).strip("<|>") for i in range(first, end))

    def prompt(
        self, language: str = "en", prompt: str = "", timestamps: bool = False, task: str = "transcribe"
    ) -> tuple[int, ...]:
        """Return the ids that a transcript starts with; ``prompt`` is text that was said before it.

        Raises :class:`AskdError` for a language or a task that the model does not know, and for more previous text than
        fits.
        """
        before = [self.id_of("<|startofprev|>"), *self.encode(prompt)] if prompt.strip() else []
        if len(before) > MAX_PROMPT_TOKENS + 1:
            raise AskdError(f"the prompt has {len(before) - 1} tokens: at most {MAX_PROMPT_TOKENS} are allowed")
        names = ["<|startoftranscript|>"]
        if self.multilingual:
            names += [f"<|{language}|>", f"<|{task}|>"]
        elif language != "en":
            raise AskdError(f"language {language!r}: {self.path} is an English-only model, only 'en' is allowed")
        elif task != "transcribe":
            raise AskdError(f"task {task!r}: {self.path} is an English-only model, only 'transcribe' is allowed")
        if not timestamps:
            names.append("<|notimestamps|>")
        return (*before, *(self.id_of(name) for name in names))

    def fit_prompt(self, prompt: str) -> str:
        """Return the end of a text that fits before a transcript: OpenAI's API reads no more of a prompt either."""
        ids = self.encode(prompt)
        while len(ids) > MAX_PROMPT_TOKENS:  # the end of a text may have more tokens than were cut
            prompt = self.decode(ids[-MAX_PROMPT_TOKENS:] if len(ids) > MAX_PROMPT_TOKENS + 1 else ids[2:])
            ids = self.encode(prompt)
        return prompt

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text as Whisper writes it: with a leading space, without special tokens."""
        return self.tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; special tokens and timestamps are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.end], skip_special_tokens=True).strip()

    def pieces(self, ids: list[int]) -> tuple[str, ...]:
        """Return what each of the ids adds to the text, white space included.

        Of several tokens that make one character, the last adds it, and the others nothing.
        """
        texts = [self.tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
        whole, pieces = "", list[str]()
        for text in texts:
            ready = text.rstrip("\ufffd")  # what stands for an unfinished character
            pieces.append(ready[len(whole) :] if ready.startswith(whole) else "")
            whole = ready if ready.startswith(whole) else whole
        return tuple(pieces)
