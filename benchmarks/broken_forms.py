"""Helper of serve_badinput: requests with a broken form or broken HTTP, with a valid prompt as audio."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

BOUNDARY = "form-boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class RawRequest:
    """A request as raw bytes."""

    body: bytes
    content_type: str = TYPE
    method: str = "POST"
    path: str = "/v1/audio/transcriptions"


def broken_request(audio: bytes, rng: random.Random) -> RawRequest:
    """Return a request, broken in one of many ways."""
    return rng.choice(WAYS)(audio, rng)


def part(name: str, content: bytes, more: str = "", headers: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return head.encode("utf-8", "replace") + content + b"\r\n"


def form(audio: bytes, *more: bytes) -> bytes:
    whole = part("file", audio, '; filename="a.wav"') + part("model", b"student") + b"".join(more)
    return whole + f"--{BOUNDARY}--\r\n".encode()


def with_field(audio: bytes, rng: random.Random) -> RawRequest:
    """A field that is unknown, occurs twice, or has an invalid value, in any client's spelling."""
    name, value = rng.choice(FIELDS)
    return RawRequest(form(audio, *[part(name, value.encode("utf-8", "surrogatepass"))] * rng.choice([1, 1, 2, 200])))


def cut(audio: bytes, rng: random.Random) -> RawRequest:
    whole = form(audio)
    return RawRequest(whole[: rng.randrange(len(whole))])


def around(audio: bytes, rng: random.Random) -> RawRequest:
    """Text before the first boundary and after the last."""
    before = rng.choice([b"a preamble\r\n", b"\r\n" * 100, bytes(100_000) + b"\r\n", f"--{BOUNDARY}x\r\n".encode()])
    return RawRequest(before + form(audio) + rng.randbytes(100))


def headed(audio: bytes, rng: random.Random) -> RawRequest:
    """A part with unusual headers."""
    headers = rng.choice(
        [
            "Content-Transfer-Encoding: base64\r\n",
            "Content-Type: text/plain; charset=klingon\r\n",
            "Content-Type: text/plain; charset=utf-16\r\n",
            "X: " + "y" * 10_000 + "\r\n",
            "no colon\r\n",
            "".join(f"X-{i}: y\r\n" for i in range(100)),
        ]
    )
    return RawRequest(form(audio, part("prompt", rng.choice([b"Hello", b"\xff\xfe"]), headers=headers)))


def typed(audio: bytes, rng: random.Random) -> RawRequest:
    """A body with a wrong content type."""
    kind = rng.choice(TYPES)
    return RawRequest(rng.choice([form(audio), audio, json.dumps({"model": "student"}).encode()]), kind)


def unnamed(audio: bytes, rng: random.Random) -> RawRequest:
    """Parts without a name, and files instead of fields."""
    name, more = rng.choice([("", ""), ("\u202e", ""), ("model", '; filename="blob"'), ("prompt", "; filename=a.wav")])
    return RawRequest(form(audio, part(name, b"student", more)))


def asked(audio: bytes, rng: random.Random) -> RawRequest:
    """Another method, another path, fields in the URL."""
    method = rng.choice(["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
    path = rng.choice(["/v1/audio/transcriptions", "/v1/audio/speech", "/v1/models", "/health", "/v1/realtime", "/"])
    return RawRequest(form(audio), TYPE, method, path + rng.choice(["", "?language=xx", "?a=b", "?model[]=%00"]))


WAYS: list[Callable[[bytes, random.Random], RawRequest]] = [
    with_field,
    with_field,
    cut,
    around,
    headed,
    typed,
    unnamed,
    asked,
]
TYPES = [
    "",
    "text/plain",
    "application/json",
    "audio/wav",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    f"multipart/mixed; boundary={BOUNDARY}",
    f"multipart/form-data; boundary={'b' * 300}",
    f"{TYPE}x",
]
FIELDS = [
    ("chunking_strategy[type]", "server_vad"),
    ("chunking_strategy[type]", "semantic_vad"),
    ("chunking_strategy[threshold]", "7"),
    ("chunking_strategy[a][b]", "1"),
    ("chunking_strategy", '{"type": "server_vad", "type": 1}'),
    ("timestamp_granularities", "word"),
    ("timestamp_granularities[0]", "letter"),
    ("timestamp_granularities[]", "[" * 60_000),
    ("include[]", "logprobs"),
    ("language", "en-US"),
    ("language", "en--"),
    ("language", "x" * 60_000),
    ("languages[]", "en"),
    ("stream", "True"),
    ("stream", "null"),
    ("temperature", "0,2"),
    ("temperature[]", "0"),
    ("model", "student"),
    ("file", "not a file"),
    ("prompt", "a" * 70_000),
    ("prompt", "\ud800"),
    ("vad_filter", "true"),
    ("[", "x"),
    ("a" * 10_000, "x"),
]
