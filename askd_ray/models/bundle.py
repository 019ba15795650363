"""Bundles, and bare CTranslate2 folders, as the engine takes them; an evaluation's scores in a bundle."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from askd_ray.audio.decode import decode
from askd_ray.data.shards import write_table
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path, read_json, sha256_of_file, write_json
from askd_ray.models.card import model_card
from askd_ray.models.engine import GREEDY, Decoding, Engine
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import Device

BUNDLE_FILE, CARD, REFERENCE, HYPOTHESES_FILE = "bundle.json", "README.md", "reference", "hypotheses.parquet"
_MAX_REFERENCE_WER = 0.2  # int8 on another CPU rounds otherwise: a word of a clip may change
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

    @property
    def version(self) -> str:
        """What tells these weights from others: the start of their SHA-256."""
        return sha256_of_file(self.folder / "model.bin")[:12]


def read_bundle(path: Path, device: Device = "cpu") -> BundleInfo:
    """Look into a bundle, or a bare CTranslate2 Whisper folder, without loading it.

    Raises :class:`AskdError` when the folder is neither.
    """
    path = local_path(path).resolve()
    if (path / BUNDLE_FILE).is_file():
        name, silence_s = _described(path / BUNDLE_FILE)
        info = BundleInfo(name, path / _FOLDERS[device][0], silence_s)
    else:
        info = BundleInfo(path.name, path, silence_s=None)
    if not (info.folder / "model.bin").is_file():
        raise AskdError(
            f"no model in {info.folder}: a folder that `askd export` wrote or a CTranslate2 Whisper folder is expected"
        )
    return info


def open_engine(
    info: BundleInfo, device: Device = "cpu", threads: int = 0, decoding: Decoding = GREEDY, workers: int = 1
) -> Engine:
    """Load the model: in int8 on the CPU, in float16 on a GPU. ``threads`` = 0 takes all cores.

    Raises :class:`AskdError` when it cannot be loaded.
    """
    return Engine(
        info.folder,
        compute_type=_FOLDERS[device][1],
        threads=threads,
        workers=workers,
        device=device,
        silence_s=info.silence_s,
        decoding=decoding,
    )


def hashes(bundle: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a bundle but its description, by relative path."""
    files = sorted(f for f in bundle.rglob("*") if f.is_file() and f != bundle / BUNDLE_FILE)
    return {f.relative_to(bundle).as_posix(): sha256_of_file(f) for f in files}


def check_hashes(bundle: Path) -> int:
    """Compare a bundle's files with its description and return how many there are.

    Raises :class:`AskdError` that names the first file that is missing, added or changed.
    """
    if not (bundle / BUNDLE_FILE).is_file():
        raise AskdError(f"{bundle} is no bundle: it has no {BUNDLE_FILE}; `askd export` writes one")
    try:
        expected: dict[str, str] = read_json(bundle / BUNDLE_FILE)["sha256"]
    except (ValueError, KeyError, TypeError):
        raise AskdError(f"{bundle / BUNDLE_FILE} is damaged: export the model again") from None
    found = hashes(bundle)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise AskdError(f"{bundle / name} is missing: export the model again")
        if expected.get(name) != found[name]:
            what = "is corrupt (its SHA-256 is not the recorded one)" if name in expected else "is not part of it"
            raise AskdError(f"bundle {bundle}: {name} {what}; export the model again")
    return len(found)


def add_scores(bundle: Path, scores: Mapping[str, Any], hypotheses: pa.Table) -> None:
    """Put the scores of an evaluation into the bundle's description and its model card, and what its model said.

    `askd promote` compares two bundles by ``hypotheses``, on what both have heard.

    Raises :class:`AskdError` when the bundle is missing or damaged.
    """
    check_hashes(bundle)
    description = {**read_json(bundle / BUNDLE_FILE), "scores": dict(scores)}
    with atomic_path(bundle / CARD) as temporary:
        temporary.write_text(model_card(description), encoding="utf-8")
    write_table(bundle / HYPOTHESES_FILE, hypotheses)
    description["sha256"] |= {name: sha256_of_file(bundle / name) for name in (CARD, HYPOTHESES_FILE)}
    write_json(bundle / BUNDLE_FILE, description)


def check_reference(engine: Engine, bundle: Path) -> int:
    """Let a loaded bundle transcribe its reference clips; returns how many there are.

    Raises :class:`AskdError` when it hears something else than when it was exported, more than rounding may change.
    """
    file = bundle / REFERENCE / "reference.json"
    clips: list[dict[str, str]] = read_json(file) if file.is_file() else []
    said, heard = list[str](), list[str]()
    for clip in clips:
        normalize = normalizer(clip["language"])
        waveform = decode((file.parent / clip["file"]).read_bytes())
        said.append(normalize(clip["text"]))
        heard.append(normalize(engine.transcribe([waveform], clip["language"])[0].text))
    errors = count_word_errors(said, heard)
    if errors.rate > _MAX_REFERENCE_WER:
        raise AskdError(
            f"bundle {bundle}: it hears {errors.rate:.0%} of the words in its {len(clips)} reference clips otherwise "
            f"than when it was exported; at most {_MAX_REFERENCE_WER:.0%} is allowed"
        )
    return len(clips)


def _described(file: Path) -> tuple[str, float]:
    try:
        description: dict[str, Any] = read_json(file)
        return str(description["name"]), float(description["window"]["silence_s"])
    except (ValueError, KeyError, TypeError):
        raise AskdError(f"{file} is damaged: it must hold name and window.silence_s; export the model again") from None
