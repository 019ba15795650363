"""Load a Whisper by its reference (:mod:`askd_ray.models.reference`), save it, convert it to CTranslate2."""

import functools
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ctranslate2.converters import TransformersConverter
from safetensors import SafetensorError, safe_open
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.utils import logging

from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, cache_root, file_lock, write_json
from askd_ray.models.ctranslate2_reader import read_config, read_ctranslate2
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.text.tokens import Tokens

COMPRESSOR_FILE = "compressor.safetensors"
"""The file of a compressor, in the folder of the Whisper whose decoder reads its states."""


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Hide transformers' progress bars and its warnings."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_whisper(reference: str, with_compressor: bool = False) -> tuple[WhisperForConditionalGeneration, Tokens]:
    """Load a model in float32 on the CPU, in evaluation mode, with its tokens.

    ``with_compressor``: the caller also loads the compressor whose states the decoder reads.

    Raises :class:`AskdError` when there is no such model, when its files are damaged, and when its decoder reads states
    of a compressor that the caller would leave out.
    """
    folder = resolve(reference)
    if not with_compressor:
        check_no_compressor(folder)
    if (folder / "model.bin").is_file():
        return read_ctranslate2(folder), Tokens(folder)
    try:
        _check_decoder(folder)
        with quiet_transformers():
            model = WhisperForConditionalGeneration.from_pretrained(folder, use_safetensors=True, dtype="float32")
    except (OSError, SafetensorError, ValueError) as error:
        raise AskdError(f"model in {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    # Sinusoids are computed, not learnt. transformers freezes them when it builds a model, but not when it loads one.
    model.model.encoder.embed_positions.requires_grad_(False)
    return model.eval(), Tokens(folder)


def has_decoder(folder: Path) -> bool:
    """Whether the weights in the model.safetensors of a folder have a decoder; True where there is no such file."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return True
    with safe_open(file, framework="numpy") as weights:
        return any("decoder." in name for name in weights.keys())


def _check_decoder(folder: Path) -> None:
    """Refuse an encoder alone: transformers would add a decoder of random weights, with no more than a warning."""
    if not has_decoder(folder):
        raise AskdError(f"model in {folder} has no decoder: a CTC student cannot be used as a Whisper")


def check_no_compressor(folder: Path) -> None:
    """Raise :class:`AskdError` when a folder's decoder reads the states of a compressor."""
    if (folder / COMPRESSOR_FILE).is_file():
        raise AskdError(f"model in {folder} has a compressor ({COMPRESSOR_FILE}): only its training can run it")


def load_config(reference: str) -> WhisperConfig:
    """Load only a model's config.

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
        write_processor(tokens, model.config.num_mel_bins, temporary)


def write_processor(tokens: Tokens, n_mels: int, folder: Path) -> None:
    """Write tokenizer and preprocessor configs into a folder that is not published yet."""
    for name, content in _tokenizer_files(tokens.file.read_bytes()).items():
        (folder / name).write_bytes(content)
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    extractor.save_pretrained(folder)
    # AutoProcessor looks for the processor's class in this file, in current and older releases.
    settings = {**extractor.to_dict(), "processor_class": "WhisperProcessor"}
    write_json(folder / "preprocessor_config.json", settings)


@functools.cache  # a run saves many students with one tokenizer, and transformers takes a second to read it
def _tokenizer_files(tokenizer_json: bytes) -> dict[str, bytes]:
    """Return the tokenizer files of a transformers folder, by file name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "tokenizer.json").write_bytes(tokenizer_json)
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"})
        WhisperTokenizer.from_pretrained(folder).save_pretrained(folder)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def ctranslate2_folder(reference: str) -> Path:
    """Return a CTranslate2 folder of a model reference; a transformers model is converted once, into the cache.

    Processes that need it at the same time wait for the first one: a conversion holds the whole model in memory.
    """
    folder = resolve(reference)
    if (folder / "model.bin").is_file():
        return folder
    converted = cache_root() / "ctranslate2" / fingerprint(reference)[:16]
    if not (converted / "model.bin").is_file():
        with file_lock(converted.with_name(f"{converted.name}.lock")):
            if not (converted / "model.bin").is_file():
                convert_to_ctranslate2(folder, converted, "float16")
    return converted


def convert_to_ctranslate2(source: Path, target: Path, quantization: str) -> None:
    """Convert a transformers folder to a CTranslate2 folder that stock engines load, atomically.

    ``quantization`` is CTranslate2's name for the type of the weights: ``int8``, ``float16``, ...

    Raises :class:`AskdError` when the model's files are damaged, and when it has a compressor.
    """
    check_no_compressor(source)
    with atomic_path(target) as temporary:
        converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
        try:
            _check_decoder(source)
            converter.convert(str(temporary), quantization=quantization)
        except (SafetensorError, ValueError) as error:
            raise AskdError(f"model in {source} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
