"""The one error that users are meant to see."""

import difflib
import re

# A slash in a secret should be written %2F, and is often not.
_CREDENTIALS = re.compile(r"(?<=://)[^\s@/:]*:(?:[^\s/]*|[^\s@]*)@")

_PACKAGES_OF_EXTRAS = {
    "serve": {"fastapi", "multipart", "prometheus_client", "starlette", "uvicorn", "websockets"},
    "tune": {"optuna"},
}  # of those without which a command does not begin


class AskdError(ValueError):
    """A mistake in the input or the surroundings that its reader can mend.

    The message is one line: what is wrong, where, and what is allowed. The command line prints it without a
    traceback and exits with code 2.
    """


def missing_extra(error: ModuleNotFoundError) -> AskdError | None:
    """Return what to install where the package that was not found comes with an extra, else None."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in _PACKAGES_OF_EXTRAS.items() if package in packages), None)
    if extra is None:
        return None
    return AskdError(f"this command needs {package}, which is not installed: pip install 'askd-ray[{extra}]'")


def did_you_mean(word: str, allowed: list[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or an empty string when none is close."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def without_credentials(text: str) -> str:
    """Return a text without the ``key:secret@`` that URIs in it may hold: messages and files never show them."""
    return _CREDENTIALS.sub("", text)
