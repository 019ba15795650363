"""Where a result comes from: the versions of packages, and the commit of this code."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("askd-ray", "ray", "torch", "torchaudio", "transformers", "ctranslate2", "jiwer", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that influence results."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_sha() -> str | None:
    """Return the SHA of the checkout of this code (with ``-dirty`` for changes), or None without a checkout.

    In a Ray job the code is a copy: ``ASKD_GIT_SHA`` holds the SHA of its origin.
    """
    if "ASKD_GIT_SHA" in os.environ:
        return os.environ["ASKD_GIT_SHA"]
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
