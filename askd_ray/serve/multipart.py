"""Parse a multipart/form-data body (RFC 7578) into its parts, without checking their names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from askd_ray.serve.api_errors import ApiError

MAX_PARTS = 100
_UNENCODED = ("", "7bit", "8bit", "binary")
_EXPECTED = 'A body of the type multipart/form-data is expected, with the audio in the part "file"'


@dataclass(frozen=True)
class FormPart:
    """A form field: its name, its content, and the character set where the content is text."""

    name: str
    content: bytes
    charset: str = "utf-8"

    def text(self) -> str:
        """Return the content as text.

        Raises :class:`ApiError` 400 for bytes that the character set cannot decode.
        """
        try:
            return self.content.decode(self.charset)
        except (UnicodeDecodeError, LookupError):
            raise ApiError(400, f"{self.name}: this is no text in {self.charset[:50]}", self.name) from None


def read_parts(content_type: str, body: bytes) -> list[FormPart]:
    """Return the parts of a body, in order; ignore the text before the first and after the last boundary.

    Raises :class:`ApiError` 400 for a body that is not a complete multipart form.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise ApiError(400, f"{_EXPECTED}, not {kind.decode('latin-1')[:50] or 'one without a type'}.", "file")
    boundary = options.get(b"boundary")
    if not boundary:
        raise ApiError(400, f"{_EXPECTED}; its Content-Type names no boundary.", "file")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # pyright: ignore[reportArgumentType]
        parser.write(b"--" + boundary + b"\r\n")
        parser.write(body[_end_of_preamble(body, boundary) :])
    except FormParserError as error:
        raise ApiError(400, f"The multipart form is broken: {str(error)[:100]}.", "file") from None
    if not form.ended:
        raise ApiError(400, "The multipart form has no end: its last boundary is missing.", "file")
    return list(form.parts())


def _end_of_preamble(body: bytes, boundary: bytes) -> int:
    """Return the offset of the first part. RFC 2046 allows text before it, and white space after its boundary."""
    match = re.search(rb"(?:\A|\r\n)--" + re.escape(boundary) + rb"[ \t]*\r\n", body)
    if match is None:
        raise FormParserError("no part begins with its boundary")
    return match.end()


@dataclass
class _RawPart:
    headers: dict[str, bytes] = field(default_factory=dict[str, bytes])
    content: bytearray = field(default_factory=bytearray)


class _Form:
    """Collects the parts in the callbacks of the parser."""

    def __init__(self):
        self.ended = False
        self._raw: list[_RawPart] = []
        self._name, self._value = bytearray(), bytearray()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._raw[-1].content.extend(memoryview(data)[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self._raw) == MAX_PARTS:
            raise ApiError(400, f"The form has too many fields: at most {MAX_PARTS} are allowed.")
        self._raw.append(_RawPart())

    def _header(self) -> None:
        self._raw[-1].headers[self._name.decode("latin-1").lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end(self) -> None:
        self.ended = True

    def parts(self) -> Iterator[FormPart]:
        for number, raw in enumerate(self._raw, 1):
            _, options = parse_options_header(raw.headers.get("content-disposition"))
            name = options.get(b"name", b"").decode("utf-8", "replace")
            if not name:
                raise ApiError(400, f"Part {number} of the form has no name.")
            encoding = raw.headers.get("content-transfer-encoding", b"").decode("latin-1").strip().lower()
            if encoding not in _UNENCODED:
                raise ApiError(400, f"{name}: a Content-Transfer-Encoding of {encoding[:50]} is not read", name)
            _, kind = parse_options_header(raw.headers.get("content-type"))
            yield FormPart(name, bytes(raw.content), kind.get(b"charset", b"utf-8").decode("latin-1"))
