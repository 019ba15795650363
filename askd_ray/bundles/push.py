"""Lays a bundle out as a repository of a model hub, in a folder, and uploads it when asked: askd push.

config.json, model.safetensors, ...       the student's transformers folder, in the root, where transformers looks
ctranslate2-*/, ggml/, onnx-*/            as in the bundle
onnx/*.onnx                               where transformers.js looks; its *.json are in the root
licences/, recipe.yaml, README.md         README.md is the model card, with the scores in the hub's metadata
bundle.json                               with the hashes of these files: `askd serve` takes the folder as a bundle

Dev clips and hypotheses are left out: they are speech and texts of the data.
"""

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from askd_ray.bundles.formats import FORMATS
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path, read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, CARD, check_hashes, hashes
from askd_ray.models.card import model_card
from askd_ray.models.description import BundleDescription, reader_of

Visibility = Literal["private", "public"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OTHERS = ("licences", "recipe.yaml")
_NO_TOKEN = "the hub needs a token that may write: set HF_TOKEN, or run `hf auth login`"


def push(bundle: Path, target: str, upload: Visibility | None = None) -> str:
    """Write a bundle as a hub repository into the folder ``target``; with ``upload``, send it to the hub instead.

    ``target`` is then a hub id, OWNER/NAME. A new repository gets the visibility ``upload``; one that exists keeps its
    own, and loses the files that the bundle does not have. The token is the one of huggingface_hub: HF_TOKEN, or that
    of `hf auth login`. Returns a line about what was done.

    Raises :class:`AskdError` when the bundle is missing or damaged; for a target that is not what ``upload`` needs,
    and for one with other files than an earlier push has written; and when the hub cannot be reached or refuses.
    """
    bundle = local_path(bundle)
    is_id = _HUB_ID.fullmatch(target) is not None
    if upload is None:
        folder = local_path(target)
        if is_id and not folder.exists():
            raise AskdError(
                f"{target} can be a hub id or a folder: add --upload private or public, or write ./{target}"
            )
        _check_target(folder, bundle)
        write_repository(bundle, folder)
        return f"repository in {folder}"
    if not is_id:
        raise AskdError(f"{target}: --upload {upload} needs a hub id, OWNER/NAME")
    check_hashes(bundle)
    with TemporaryDirectory() as scratch:
        write_repository(bundle, Path(scratch) / "repository", target)
        return f"uploaded: {_upload(Path(scratch) / 'repository', target, upload)}"


def write_repository(bundle: Path, folder: Path, repository: str | None = None) -> None:
    """Write the files of a hub repository, atomically; its card names ``repository``, or else a placeholder.

    Raises :class:`AskdError` when the bundle is missing or damaged, or is a repository itself.
    """
    check_hashes(bundle)
    description: BundleDescription = read_json(bundle / BUNDLE_FILE)
    if "layout" in description:
        raise AskdError(f"{bundle} is a repository that `askd push` has written: give the bundle of `askd export`")
    formats = {form.name for form in FORMATS[reader_of(description)]} - {"transformers"}
    with atomic_path(folder) as temporary:
        shutil.copytree(bundle / "transformers", temporary)
        for source in sorted(bundle.iterdir()):
            if source.name == "onnx":
                shutil.copytree(source, temporary, dirs_exist_ok=True)
            elif source.name in formats:
                shutil.copytree(source, temporary / source.name)
            elif source.name in _OTHERS:
                (shutil.copytree if source.is_dir() else shutil.copyfile)(source, temporary / source.name)
        (temporary / CARD).write_text(model_card(description, repository or f"OWNER/{folder.name}"), encoding="utf-8")
        write_json(temporary / BUNDLE_FILE, {**description, "layout": "hub", "sha256": hashes(temporary)})


def _check_target(folder: Path, bundle: Path) -> None:
    """Raise an :class:`AskdError` if a folder has files that :func:`write_repository` did not write."""
    if folder.resolve().is_relative_to(bundle.resolve()):
        raise AskdError(f"{folder} is in the bundle: choose a folder outside {bundle}")
    if folder.is_file():
        raise AskdError(f"{folder} is a file: choose a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    file = folder / BUNDLE_FILE
    if not file.is_file() or "layout" not in read_json(file):
        raise AskdError(f"{folder} is not empty, and `askd push` has not written it: choose a new folder")
    hidden = [path.name for path in folder.rglob(".*")]
    if hidden:
        raise AskdError(f"{folder} has {hidden[0]}, which would be lost: choose a new folder")
    try:
        check_hashes(folder)
    except AskdError as error:
        raise AskdError(f"{folder} has changed since it was written: choose a new folder ({error})") from None


def _upload(folder: Path, repository: str, visibility: Visibility) -> str:
    """Upload a folder as the whole content of a repository; return its address."""
    from huggingface_hub import HfApi, get_token  # this import takes a second
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise AskdError(_NO_TOKEN)
    api = HfApi(library_name="askd-ray")
    with _one_line_errors(repository):
        try:
            files = set(api.list_repo_files(repository))
        except RepositoryNotFoundError:
            files = set[str]()
        if files - {".gitattributes"} and BUNDLE_FILE not in files:
            raise AskdError(f"{repository} has files that `askd push` has not written: choose another name")
        api.create_repo(repository, private=visibility == "private", exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repository, delete_patterns="*", commit_message="askd push"
        )
    return str(commit.repo_url)


@contextmanager
def _one_line_errors(repository: str) -> Generator[None]:
    """Raise an :class:`AskdError` for whatever the hub or its client says."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except AskdError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = " ".join((error.server_message or "").split())[:200] or f"status {status}"
        if status == 401:
            raise AskdError(f"{repository}: {_NO_TOKEN} ({reason})") from None
        if status in (403, 404, 409):
            owner = repository.split("/")[0]
            raise AskdError(f"{repository}: your token may not write to {owner}'s repository ({reason})") from None
        raise AskdError(f"{repository}: the hub refuses: {reason}") from None
    except (OSError, ValueError) as error:
        raise AskdError(f"{repository}: the upload failed: {_reason(error)}") from None
    except Exception as error:  # the client's transport has errors without a common class
        raise AskdError(f"{repository}: the hub cannot be reached: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
