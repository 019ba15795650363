"""Object stores and Hugging Face's hub: their URIs, their file systems (pyarrow's), and their errors in words."""

import posixpath
import re
from functools import lru_cache

import pyarrow as pa
from pyarrow import fs

from askd_ray.errors import AskdError, without_credentials

HUB = "hf://"
_ALLOWED = "a folder, s3://BUCKET/..., gs://BUCKET/... or hf://datasets/USER/NAME/... is allowed"
_GIVE_UP_S = 30
_STORE_ERROR = re.compile(r"AWS Error (\w+)|google::cloud::Status\((\w+)")
_HUB_CLIENT = ("httpx", "httpx2", "huggingface_hub")  # their errors come from the hub or the network

_IN_WORDS = {
    "there is no such bucket": {"NO_SUCH_BUCKET"},
    "the store cannot be reached": {"NETWORK_CONNECTION", "UNAVAILABLE", "ConnectError", "ConnectTimeout"},
    "access denied: give credentials with access (in the environment, or as key:secret@ in the URI)": {
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_SIGNATURE", "SIGNATURE_DOES_NOT_MATCH"),
        *("PERMISSION_DENIED", "UNAUTHENTICATED"),
    },
}


def parse_uri(uri: str) -> tuple[str, str]:
    """Return the root of a store, for :func:`file_system`, and the path in it, with the bucket or data set.

    The root may contain credentials; s3:// and gs:// accept pyarrow's options, such as ``?region=...``.

    Raises :class:`AskdError` for another scheme (s3:/, S3://), and for a URI without a bucket or data set.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "hf" and re.match(r"datasets/[^/]+/[^/]", rest):
        return HUB, posixpath.normpath(rest)
    if scheme not in ("s3", "gs"):
        raise AskdError(f"{without_credentials(uri)}: unknown scheme, or no data set: {_ALLOWED}")
    rest, _, options = rest.partition("?")
    authority, _, path = rest.partition("/")
    bucket = authority.rpartition("@")[2]
    if not bucket or ":" in bucket:
        slash = "write a '/' in a key or secret as %2F; " if bucket else ""
        raise AskdError(f"{scheme}:// without a bucket: {slash}{_ALLOWED}")
    if scheme == "gs" and "retry_limit_seconds=" not in options:  # else its client retries for 15 minutes
        options += f"&retry_limit_seconds={_GIVE_UP_S}"
    return f"{scheme}://{authority}/?{options}", posixpath.normpath(f"{bucket}/{path}")


@lru_cache(maxsize=32)
def file_system(root: str) -> fs.FileSystem:
    """Return the file system of a root; opening one may need a request, for the bucket's region."""
    if root == HUB:
        return hub_file_system()
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (pa.ArrowException, OSError) as error:
        text = without_credentials(" ".join(str(error).split()))
        raise AskdError(f"{without_credentials(root)}: {text[:300]}") from None


def hub_file_system() -> fs.FileSystem:
    """Return Hugging Face's hub as a file system; the variable ``HF_TOKEN`` gives access to private data sets."""
    from huggingface_hub import HfFileSystem

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))


def check_container(root: str, path: str, shown: str) -> None:
    """Raise an :class:`AskdError` if the bucket or data set of a path does not exist; ``shown`` names the path."""
    container = "/".join(path.split("/")[: 3 if root == HUB else 1])
    try:
        (info,) = file_system(root).get_file_info([container])
    except Exception as error:
        raise in_words(shown, error) from error
    if info.type == fs.FileType.NotFound:
        kind = "data set (or HF_TOKEN may not see it)" if root == HUB else "bucket"
        raise AskdError(f"{shown}: there is no such {kind}")


def is_of_store(error: Exception) -> bool:
    """Return whether an error comes from a store or its client, not from a file's content."""
    return type(error).__module__.split(".")[0] in _HUB_CLIENT or _STORE_ERROR.search(str(error)) is not None


def in_words(shown: str, error: Exception) -> AskdError:
    """Return a store's error as one line about the location ``shown``."""
    text = without_credentials(" ".join(str(error).split()))
    match = _STORE_ERROR.search(text)
    code = next(filter(None, match.groups())) if match else type(error).__name__
    words = next((words for words, codes in _IN_WORDS.items() if code in codes), code)
    return AskdError(f"{shown}: {words} ({text[:300]})")
