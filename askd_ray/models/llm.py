"""Load a small language model by its reference, with its tokens."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models.gguf_reader import read_llama, read_llama_config, read_tokenizer
from askd_ray.models.load import quiet_transformers
from askd_ray.models.reference import GGUF_FILE, resolve
from askd_ray.text.chat import ChatTokens
from askd_ray.torch_setup import DTYPES


@dataclass(frozen=True)
class Llm:
    """A language model in evaluation mode, and its tokens. Other kinds than Llama are used in the same way."""

    model: LlamaForCausalLM
    tokens: ChatTokens


def load_llm(reference: str, dtype: torch.dtype = torch.float32) -> Llm:
    """Load a language model on the CPU.

    Raises :class:`AskdError` when there is no such model, when its files are damaged, and when its chats do not have
    the ChatML form.
    """
    folder = resolve(reference)
    if (folder / GGUF_FILE).is_file():
        model = read_llama(folder / GGUF_FILE)
    else:
        try:
            with quiet_transformers():
                made = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="float32")
        except (OSError, SafetensorError, ValueError) as error:
            raise _not_loaded(folder, error) from None
        model = cast(LlamaForCausalLM, made)
    return Llm(cast(LlamaForCausalLM, cast(torch.nn.Module, model).to(dtype).eval()), load_chat_tokens(reference))


def load_chat_tokens(reference: str) -> ChatTokens:
    """Load only the tokens of a language model.

    Raises :class:`AskdError` as :func:`load_llm` does.
    """
    tokens = ChatTokens(_tokenizer(resolve(reference)))
    assert tokens.closing  # raises where its chats have another form
    return tokens


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Tokenizer:
    if (folder / GGUF_FILE).is_file():
        tokenizer = read_tokenizer(folder / GGUF_FILE)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        raise AskdError(f"{folder} has neither {GGUF_FILE} nor tokenizer.json: it holds no language model")
    tokenizer.encode_special_tokens = True  # "<|im_end|>" in a text stays text and does not end the turn
    return tokenizer


@lru_cache(maxsize=2)
def llm_params(reference: str) -> int:
    """Return the number of parameters of a language model.

    Raises :class:`AskdError` as :func:`load_llm` does.
    """
    folder = resolve(reference)
    try:
        is_gguf = (folder / GGUF_FILE).is_file()
        config = read_llama_config(folder / GGUF_FILE) if is_gguf else AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        if isinstance(error, AskdError):
            raise
        raise _not_loaded(folder, error) from None
    return sum(parameter.numel() for parameter in model.parameters())


def llm_dtype(recipe: Recipe) -> torch.dtype:
    """Return the precision of a student's LLM: that of the training's matrix products. It is not trained."""
    return DTYPES[recipe.train.precision]


def _not_loaded(folder: Path, error: Exception) -> AskdError:
    return AskdError(f"language model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}")
