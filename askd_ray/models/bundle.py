"""Bundles, and bare CTranslate2 folders, as the engine takes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.engine import GREEDY, Decoding, Engine

Device = Literal["cpu", "cuda"]
_FOLDERS: dict[Device, tuple[str, str]] = {
    "cpu": ("ctranslate2-int8", "int8"),
    "cuda": ("ctranslate2-float16", "float16"),
}


@dataclass(frozen=True)
class BundleInfo:
    """What is known of a model folder before its weights are loaded.

    ``silence_s`` is the silence behind the clip in its window; None means windows of 30 s.
    """

    name: str
    folder: Path
    silence_s: float | None


def read_bundle(path: Path, device: Device = "cpu") -> BundleInfo:
    """Look into a bundle, or a bare CTranslate2 Whisper folder, without loading it.

    Raises :class:`AskdError` when the folder is neither.
    """
    path = path.expanduser().resolve()
    if (path / "bundle.json").is_file():
        name, silence_s = _described(path / "bundle.json")
        info = BundleInfo(name, path / _FOLDERS[device][0], silence_s)
    else:
        info = BundleInfo(path.name, path, silence_s=None)
    if not (info.folder / "model.bin").is_file():
        raise AskdError(
            f"no model in {info.folder}: a folder that `askd export` wrote or a CTranslate2 Whisper folder is expected"
        )
    return info


def open_engine(info: BundleInfo, device: Device = "cpu", threads: int = 0, decoding: Decoding = GREEDY) -> Engine:
    """Load the model: in int8 on the CPU, in float16 on a GPU. ``threads`` = 0 takes all cores.

    Raises :class:`AskdError` when it cannot be loaded.
    """
    return Engine(
        info.folder,
        compute_type=_FOLDERS[device][1],
        threads=threads,
        device=device,
        silence_s=info.silence_s,
        decoding=decoding,
    )


def _described(file: Path) -> tuple[str, float]:
    try:
        description: dict[str, Any] = read_json(file)
        return str(description["name"]), float(description["window"]["silence_s"])
    except (ValueError, KeyError, TypeError):
        raise AskdError(f"{file} is damaged: it must hold name and window.silence_s; export the model again") from None
