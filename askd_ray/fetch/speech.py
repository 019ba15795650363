"""Fetch real speech from Debian packages: Asterisk's telephone prompts by one voice, with their texts."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

from askd_ray.errors import AskdError, did_you_mean
from askd_ray.fetch.cache import find_damage
from askd_ray.files import atomic_path, cache_root, sha256_of_file
from askd_ray.progress import bar, console

SPEECH = ("ivr",)
"""The names that :func:`fetch_speech` knows."""

_PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
_ATTRIBUTION = (
    "Asterisk core sounds, (c) 2003-2010 Allison Smith, funded by Digium, Inc.; licence CC-BY-SA-3.0; "
    "from the Debian packages asterisk-core-sounds-en and asterisk-core-sounds-en-g722; changed: G.722 decoded to FLAC"
)
_CONTENTS_SHA256 = "e91867cc078cc1eeb0997d4fe6606d0ea6b26b84b417e1c3b5dd7bf50318cc01"
_RATE_HZ = 16_000
_SUMS = "SHA256SUMS"
_USER_SPEECH = "use your own folder: --set data.sources=[{path: FOLDER}], or `make demo SPEECH=FOLDER`"


@dataclass(frozen=True)
class _Prompt:
    """A recording and its text."""

    name: str
    audio: Path
    text: str


def fetch_speech(name: str = "ivr", force: bool = False) -> Path:
    """Return a folder of real speech with a manifest.jsonl, fetching it if it is not cached.

    ``ivr``: 542 telephone prompts, 24 minutes, one voice, FLAC at 16 kHz. apt-get downloads the packages and dpkg-deb
    unpacks them, without root; a pinned SHA-256 checks their contents. Later calls check the cached files and need no
    network; ``force`` fetches them again.

    Raises :class:`AskdError`: unknown name, no apt-get, a failed download, other contents, a corrupt cached file.
    """
    folder = _folder(name)
    if folder.exists() and not force:
        return speech_folder(name)
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise AskdError(f"speech {name} comes from Debian packages, and there is no {tool} here: {_USER_SPEECH}")
    console.print(f"Fetching speech {name}: 11 MB from the Debian or Ubuntu archive, less than a minute")
    with atomic_path(folder) as temporary, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".apt-") as work:
        _download(name, Path(work))
        prompts = _prompts(Path(work))
        if _contents_sha256(prompts) != _CONTENTS_SHA256:
            raise AskdError(f"speech {name}: {_PACKAGES[0]} has other contents than the known ones; {_USER_SPEECH}")
        _convert(prompts, temporary)
        copyright_file = Path(work) / "usr/share/doc" / _PACKAGES[1] / "copyright"
        licence = f"{_ATTRIBUTION}\n\n{copyright_file.read_text(encoding='utf-8')}"
        (temporary / "LICENSE.txt").write_text(licence, encoding="utf-8")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = [f"{sha256_of_file(path)}  {path.relative_to(temporary)}\n" for path in files]
        (temporary / _SUMS).write_text("".join(sums), encoding="utf-8")
    console.print(f"{_ATTRIBUTION}\nLicence kept in {folder / 'LICENSE.txt'}")
    return folder


def speech_folder(name: str) -> Path:
    """Check and return the cached folder of speech ``name``.

    Raises :class:`AskdError` when it has not been fetched, or when a file is missing or corrupt.
    """
    folder = _folder(name)
    if not folder.is_dir():
        raise AskdError(f"speech {name} is not in {cache_root()}: `askd fetch speech {name}` fetches it")
    sums = folder / _SUMS
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    problem = find_damage(folder, {path: sha256 for sha256, _, path in (line.partition("  ") for line in lines)})
    if not lines or problem:
        raise AskdError(f"{problem or f'{sums} is missing'}: `askd fetch speech {name} --force` fetches it again")
    return folder


def _folder(name: str) -> Path:
    if name not in SPEECH:
        raise AskdError(f"no speech {name!r}: known are {', '.join(SPEECH)}{did_you_mean(name, list(SPEECH))}")
    return cache_root() / "speech" / name


def _download(name: str, work: Path) -> None:
    """Download and unpack the packages into ``work``; if the package lists are missing or old, fetch lists first.

    The lists go into ``work`` too: no root is needed, and the system's lists stay unchanged.
    """
    options = ["-o", "APT::Sandbox::User=root"]  # the default user of apt may not write into ``work``
    done = _run(["apt-get", *options, "download", *_PACKAGES], work)
    if done.returncode != 0:
        console.print("Package lists are missing or old: fetching them too")
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        done = _run(["apt-get", *options, "update"], work)
        done = _run(["apt-get", *options, "download", *_PACKAGES], work)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["E: it printed nothing"]
        raise AskdError(f"speech {name}: apt-get could not fetch {_PACKAGES[0]} ({lines[0]}); {_USER_SPEECH}")
    for package in sorted(work.glob("*.deb")):
        unpacked = _run(["dpkg-deb", "--extract", str(package), str(work)], work)
        if unpacked.returncode != 0:
            raise AskdError(f"speech {name}: dpkg-deb could not unpack {package.name}: {unpacked.stderr.strip()}")


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def _prompts(work: Path) -> list[_Prompt]:
    """Return the prompts that hold speech; the texts of tones, silences and notes are in brackets."""
    texts = work / "usr/share/doc" / _PACKAGES[1] / "core-sounds-en.txt"
    packed = texts.with_name(f"{texts.name}.gz")
    raw = gzip.decompress(packed.read_bytes()) if packed.is_file() else texts.read_bytes()
    sounds = work / "usr/share/asterisk/sounds/en_US_f_Allison"
    prompts: list[_Prompt] = []
    for line in raw.decode("utf-8").splitlines():
        name, colon, text = (part.strip() for part in line.partition(":"))
        audio = sounds / f"{name}.g722"
        if colon and not line.startswith(";") and not set(text) & set("[]()") and audio.is_file():
            prompts.append(_Prompt(name, audio, text))
    return sorted(prompts, key=lambda prompt: prompt.name)


def _contents_sha256(prompts: list[_Prompt]) -> str:
    """Return one hash of all used contents: rebuilt packages have other hashes with the same contents."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(f"{prompt.name}\t{sha256_of_file(prompt.audio)}\t{prompt.text}\n".encode())
    return sha.hexdigest()


def _convert(prompts: list[_Prompt], folder: Path) -> None:
    """Write the prompts as FLAC, and a manifest without speakers: with one voice, splits are by text."""
    rows: list[str] = []
    with bar("Decoding speech", len(prompts), "clips") as progress:
        for prompt in prompts:
            audio = f"audio/{prompt.name}.flac"
            (folder / audio).parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(prompt.audio), format="g722") as container:
                samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            soundfile.write(folder / audio, samples, _RATE_HZ, format="FLAC", subtype="PCM_16")
            row = {"audio": audio, "text": prompt.text, "domain": "ivr", "language": "en", "licence": "CC-BY-SA-3.0"}
            rows.append(json.dumps(row, ensure_ascii=False) + "\n")
            progress.advance()
    (folder / "manifest.jsonl").write_text("".join(rows), encoding="utf-8")
