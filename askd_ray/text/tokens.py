"""Convert between text and Whisper's tokens, with a model's tokenizer.json."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from askd_ray.errors import AskdError

MAX_TOKENS = 224  # half of Whisper's decoder positions; the other half is for the prompt
MAX_PROMPT_TOKENS = MAX_TOKENS - 1  # of the prompt's text; <|startofprev|> takes one position
MIN_TOKENS = 16
TOKENS_PER_S = 15  # fast speech has about 5 words a second, and each digit is a token


def max_tokens(window_s: float) -> int:
    """Return the largest number of tokens to decode in a window; it limits a model that does not stop."""
    return min(MIN_TOKENS + int(TOKENS_PER_S * window_s), MAX_TOKENS)


@lru_cache(maxsize=4)  # a process opens few vocabularies, but each one many times
def _parse(tokenizer_json: bytes) -> Tokenizer:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text stays text and does not end the target
    return tokenizer


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """Return the byte of each symbol of a byte-level vocabulary, which writes bytes as visible characters (GPT-2)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


@dataclass(frozen=True)
class Tokens:
    """The tokenizer of a Whisper model. English-only models have no language and task tokens in their prompts."""

    path: Path
    """A tokenizer.json file, or the model folder that holds it."""

    @property
    def file(self) -> Path:
        """The path of the tokenizer.json.

        Raises :class:`AskdError` when it is missing.
        """
        file = self.path / "tokenizer.json" if self.path.is_dir() else self.path
        if not file.is_file():
            raise AskdError(f"{file} does not exist: a model folder needs its tokenizer.json")
        return file

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The parsed tokenizer."""
        return _parse(self.file.read_bytes())

    @cached_property
    def multilingual(self) -> bool:
        """Whether the model has language and task tokens in its prompts.

        Its vocabulary is then the larger one, or a part of it: only the larger one has a token without text.
        """
        return self.id_of("<|endoftext|>") == 50257 or self.tokenizer.token_to_id("") is not None

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
        """Return the token ids before a transcript; ``prompt`` is earlier text, given as context.

        Raises :class:`AskdError` for a language or a task that the model does not know, and for a prompt that is too
        long.
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
        """Return the end of a prompt that fits the model: OpenAI's API also drops the beginning."""
        ids = self.encode(prompt)
        while len(ids) > MAX_PROMPT_TOKENS:  # a decoded end may encode to more tokens
            prompt = self.decode(ids[-MAX_PROMPT_TOKENS:] if len(ids) > MAX_PROMPT_TOKENS + 1 else ids[2:])
            ids = self.encode(prompt)
        return prompt

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text in Whisper's form: with a leading space, without special tokens."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text as :meth:`encode` does, and the start and end of each.

        They are places in ``" " + text.strip()``. Several tokens of one character are all at it.
        """
        encoding = self.tokenizer.encode(" " + text.strip(), add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids without special tokens and timestamps."""
        return self.tokenizer.decode([i for i in ids if i < self.end], skip_special_tokens=True).strip()

    def bytes_of(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that a token writes; a character may need the bytes of several tokens."""
        byte_of = _byte_of()
        return bytes(byte_of[symbol] for symbol in str(self.tokenizer.id_to_token(token_id)))

    def pieces(self, ids: list[int]) -> tuple[str, ...]:
        """Return the text that each id adds, including white space.

        If several tokens make one character, the last of them adds it, and the others add "".
        """
        texts = [self.tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
        whole, pieces = "", list[str]()
        for text in texts:
            ready = text.rstrip("\ufffd")  # the mark of an unfinished character
            pieces.append(ready[len(whole) :] if ready.startswith(whole) else "")
            whole = ready if ready.startswith(whole) else whole
        return tuple(pieces)
