"""Fetch ONNX Runtime for browsers from its npm package: the service's page runs a student with it in WebAssembly.

The service sends these files itself, so that the page contacts no other server.
"""

import shutil
import tarfile
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.fetch.cache import find_damage
from askd_ray.fetch.npm import npm_archive
from askd_ray.files import atomic_path, cache_root
from askd_ray.progress import console

_PACKAGE = "onnxruntime-web@1.30.0"
_SHA256 = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_ATTRIBUTION = f"ONNX Runtime Web, (c) Microsoft Corporation, MIT licence; from the npm package {_PACKAGE}"
RUNTIME_FILES = tuple(_SHA256)
"""The files of the runtime: a JavaScript module, and the WebAssembly that it loads from the same folder."""


def fetch_browser_runtime(force: bool = False) -> Path:
    """Return the folder with :data:`RUNTIME_FILES` and LICENSE.txt, fetching them if they are not cached.

    npm downloads the package from its configured registry and runs none of its scripts. Pinned SHA-256s check the
    files. Later calls check the cached files and need no network; ``force`` fetches them again.

    Raises :class:`AskdError`: no npm, a failed download, other contents, a corrupt cached file.
    """
    folder = _folder()
    if folder.exists() and not force:
        return browser_runtime()
    with npm_archive(_PACKAGE, 33, folder.parent, _BY_HAND) as archive, atomic_path(folder) as temporary:
        _unpack(archive, temporary)
        problem = find_damage(temporary, _SHA256)
        if problem:
            raise AskdError(f"npm's registry served another {_PACKAGE} than the known one: {problem}")
        (temporary / "LICENSE.txt").write_text(f"{_ATTRIBUTION}\n", encoding="utf-8")
    console.print(f"{_ATTRIBUTION}\nKept in {folder}")
    return folder


def browser_runtime() -> Path:
    """Check and return the cached folder of the runtime.

    Raises :class:`AskdError` when it has not been fetched, or when a file is missing or corrupt.
    """
    folder = _folder()
    if not folder.is_dir():
        raise AskdError("the browser's runtime is not in the cache: `askd fetch browser` fetches it")
    problem = find_damage(folder, _SHA256)
    if problem:
        raise AskdError(f"{problem}: `askd fetch browser --force` fetches it again")
    return folder


_BY_HAND = f"install Node.js, or copy the folder browser/ of $ASKD_CACHE from a machine with it ({_PACKAGE})"


def _folder() -> Path:
    return cache_root() / "browser" / _PACKAGE.replace("@", "-")


def _unpack(archive: Path, folder: Path) -> None:
    """Write the runtime's files from the package into ``folder``."""
    folder.mkdir()
    try:
        with tarfile.open(archive) as package:
            for name in RUNTIME_FILES:
                source = package.extractfile(f"package/dist/{name}")
                assert source is not None, "a file, not a folder"
                with source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise AskdError(f"npm's registry served a {_PACKAGE} without the runtime ({error})") from None
