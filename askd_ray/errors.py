"""The error class for users' mistakes, and helpers for error messages."""

import difflib
import errno
import re

# A slash in a secret should be written as %2F, but often is not.
_CREDENTIALS = re.compile(r"(?<=://)[^\s@/:]*:(?:[^\s/]*|[^\s@]*)@")

_PACKAGES_OF_EXTRAS = {
    "serve": {"fastapi", "multipart", "prometheus_client", "starlette", "uvicorn", "websockets"},
    "tune": {"optuna"},
}  # only packages that a command imports at its start


class AskdError(ValueError):
    """An error in the input or the environment that the user can fix.

    The message is one line: what is wrong, where, and what is allowed. The command line prints it without a
    traceback and exits with code 2.
    """


def missing_extra(error: ModuleNotFoundError) -> AskdError | None:
    """Return an error that names the extra to install, or None if the missing package belongs to no extra."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in _PACKAGES_OF_EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return AskdError(f"this command needs {package}, which is not installed: pip install 'askd-ray[{extra}]'")


def did_you_mean(word: str, allowed: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or an empty string if no word is close."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def without_credentials(text: str) -> str:
    """Return a text without the ``key:secret@`` of its URIs: messages and files must never contain credentials."""
    return _CREDENTIALS.sub("", text)


def one_line(error: Exception) -> str:
    """Return the command line's message for an error; for an :class:`OSError`, with the file and a remedy."""
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    reason = {
        errno.ENOSPC: "no space left on the device: free some, or choose another folder with --set runs_root=FOLDER",
        errno.EROFS: "the file system is read-only: choose another folder with --set runs_root=FOLDER",
        errno.EACCES: "permission denied: choose another folder with --set runs_root=FOLDER",
        errno.EFBIG: "the file would exceed the size limit",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename}: {reason}" if error.filename else reason
