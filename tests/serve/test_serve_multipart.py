import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.multipart import MAX_PARTS, read_parts

TYPE = "multipart/form-data; boundary=B"


def part(name: str, content: bytes, more: str = "", headers: str = "") -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n{headers}\r\n'
    return head.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--B--\r\n"


def refused(content_type: str, content: bytes) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        read_parts(content_type, content)
    assert refusal.value.status == 400
    return refusal.value


def test_file_and_field_parts_are_read():
    form = body(
        part("file", b"\xff\xfe\r\n-", '; filename="a.wav"'), part("file", b"\xff\xfe\r\n-"), part("model", b"m")
    )
    first, second, model = read_parts(TYPE, form)
    assert first == second and first.content == b"\xff\xfe\r\n-"
    assert (model.name, model.text()) == ("model", "m")


@pytest.mark.parametrize("preamble", [b"\r\n", b"This is a form.\r\n", b"two\r\nlines\r\n", b"--BB is no boundary\r\n"])
@pytest.mark.parametrize("epilogue", [b"", b"and so on", b"\r\n--B\r\nno part"])
def test_preamble_and_epilogue_are_ignored(preamble: bytes, epilogue: bytes):
    (found,) = read_parts(TYPE, preamble + body(part("model", b"m")) + epilogue)
    assert found.text() == "m"


def test_quoted_boundaries_padding_and_utf_8_names():
    form = "\r\n".join(["--B ö", 'Content-Disposition: form-data; name="é"', "", "x", "--B ö--", ""])
    (found,) = read_parts('Multipart/Form-Data; charset=utf-8; boundary="B ö"', form.encode("latin-1"))
    assert found.content == b"x" and found.name
    (padded,) = read_parts(TYPE, b'--B  \r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--B--')
    assert padded.content == b"x"


def test_part_character_set_is_used():
    latin = part("prompt", "Köln".encode("latin-1"), headers="Content-Type: text/plain; charset=iso-8859-1\r\n")
    assert read_parts(TYPE, body(latin))[0].text() == "Köln"
    for broken in (part("prompt", b"\xff"), part("prompt", b"x", headers="Content-Type: text/plain; charset=none\r\n")):
        with pytest.raises(ApiError, match="prompt: this is no text in") as refusal:
            read_parts(TYPE, body(broken))[0].text()
        assert refusal.value.param == "prompt"


@pytest.mark.parametrize(
    ("content_type", "content", "message"),
    [
        ("application/json", b"{}", "not application/json"),
        ("", b"", "one without a type"),
        ("multipart/mixed; boundary=B", body(part("a", b"b")), "not multipart/mixed"),
        ("multipart/form-data", body(part("a", b"b")), "names no boundary"),
        ("multipart/form-data; boundary=" + "B" * 999, b"x", "broken"),
        (TYPE, b"", "no part begins"),
        (TYPE, b"--B--\r\n", "no part begins"),
        (TYPE, b"nothing of the kind", "broken"),
        (TYPE, part("a", b"b"), "no end"),
        (TYPE, b"--B\r\nno header", "broken|no end"),
        (TYPE, body(b"--B\r\n\r\nx\r\n"), "Part 1 of the form has no name"),
        (TYPE, body(part("a", b"eA==", headers="Content-Transfer-Encoding: base64\r\n")), "a: .*base64 is not read"),
        (TYPE, body(*[part("a", b"b")] * (MAX_PARTS + 1)), "too many fields"),
    ],
)
def test_invalid_forms_are_refused(content_type: str, content: bytes, message: str):
    refusal = refused(content_type, content)
    with pytest.raises(ApiError, match=message):
        raise refusal


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=40)), min_size=1, max_size=5), st.integers(1, 200))
def test_contents_round_trip_and_truncated_forms_are_refused(fields: list[tuple[str, bytes]], cut: int):
    boundary = "not-in-40-bytes-of-noise-since-it-is-longer"
    heads = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n' for name, _ in fields]
    parts = [head.encode() + content + b"\r\n" for head, (_, content) in zip(heads, fields, strict=True)]
    form, content_type = b"".join(parts) + f"--{boundary}--".encode(), f"multipart/form-data; boundary={boundary}"
    assert [(part.name, part.content) for part in read_parts(content_type, form)] == fields
    refused(content_type, form[: max(0, len(form) - cut)])
