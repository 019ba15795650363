import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askd_ray.audio.vad import VadOptions
from askd_ray.serve.api_errors import ApiError
from askd_ray.serve.forms import TranscriptionRequest, transcription, translation
from askd_ray.serve.limits import MAX_TEXT_BYTES
from askd_ray.serve.multipart import FormPart, read_parts
from askd_ray.text.languages import language_code

Fields = list[tuple[str, str]]
VAD, THRESHOLD, SILENCE = (f"chunking_strategy[{key}]" for key in ("type", "threshold", "silence_duration_ms"))
AUDIO = FormPart("file", b"\x00\xff")
FILE_AND_MODEL = [("file", "x"), ("model", "m")]
TRUE, FALSE = ("true", "True", "TRUE", "1", "yes", "on", "t"), ("false", "False", "0", "no", "off", "null")


def parse(*fields: tuple[str, str], read: Any = transcription) -> TranscriptionRequest:
    parts = [FormPart(name, value.encode("utf-8", "surrogatepass")) for name, value in (("model", "student"), *fields)]
    file, request = read([AUDIO, *parts])
    assert file == AUDIO.content
    return request


def refusal(*fields: tuple[str, str], read: Any = transcription) -> ApiError:
    with pytest.raises(ApiError) as refused:
        parse(*fields, read=read)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    "fields",
    [
        [
            (VAD, "server_vad"),
            (THRESHOLD, "0.6"),
            (SILENCE, "900"),
        ],
        [("chunking_strategy", '{"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 900}')],
        [
            (SILENCE, "900"),
            (THRESHOLD, ".6"),
            (VAD, "server_vad"),
        ],
    ],
)
def test_server_vad_spellings(fields: Fields):
    assert parse(*fields).options.vad_options == VadOptions(0.6, 0.9, VadOptions.padding_s)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([(VAD, "client_vad")], "chunking_strategy.type"),
        ([(VAD, "server_vad"), (THRESHOLD, "3")], "chunking_strategy.threshold: .*less than 1"),
        ([(VAD, "server_vad"), (THRESHOLD, "loud")], "chunking_strategy.threshold"),
        ([(VAD, "server_vad"), ("chunking_strategy[prefix_padding_ms]", "-1")], "chunking_strategy.prefix_padding_ms"),
        ([(VAD, "server_vad"), (SILENCE, "1.5")], "silence_duration_ms"),
        ([(VAD, "server_vad"), ("chunking_strategy[speed]", "1")], "chunking_strategy.speed"),
        ([(THRESHOLD, "0.5")], "chunking_strategy.type"),
        ([(VAD, "server_vad"), (VAD, "server_vad")], "a key occurs twice"),
        ([(VAD, "server_vad"), ("chunking_strategy", "auto")], "2 times"),
        ([("chunking_strategy", '{"type": "server_vad", "threshold": 0.1, "threshold": 0.2}')], "an object"),
        ([("chunking_strategy", "server_vad")], "'auto' or an object"),
    ],
)
def test_invalid_server_vad_values_are_named(fields: Fields, message: str):
    error = refusal(*fields)
    assert error.param == "chunking_strategy"
    with pytest.raises(ApiError, match=message):
        raise error


@pytest.mark.parametrize(
    "fields",
    [
        [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")],
        [("timestamp_granularities", "word"), ("timestamp_granularities", "segment")],
        [("timestamp_granularities[0]", "word"), ("timestamp_granularities[1]", "segment")],
        [("timestamp_granularities", '["word", "segment"]')],
        [("timestamp_granularities[]", '["word"]'), ("timestamp_granularities", "segment")],
    ],
)
def test_timestamp_granularity_spellings(fields: Fields):
    request = parse(("response_format", "verbose_json"), *fields)
    assert (request.words, request.segments) == (True, True)
    only = parse(("response_format", "verbose_json"), fields[0])
    assert only.words
    assert refusal(*fields).message == "timestamp_granularities needs response_format=verbose_json"


@pytest.mark.parametrize("name", ["en", "EN", "en-US", "en_us", "english", "English", "eng"])
def test_language_name_spellings(name: str):
    assert parse(("language", name)).options.language == "en"


@pytest.mark.parametrize("name", ["", "file", "model", "language", "prompt", "temperature"])
def test_empty_value_equals_a_missing_field(name: str):
    assert parse(("language", ""), ("temperature", ""), ("stream", ""), ("prompt", ""), (VAD, "")) == parse()
    with pytest.raises(ApiError, match="model: Field required"):
        transcription([AUDIO, FormPart("model", b"")])


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ([("include[]", "logprobs")], "include[]", "unknown; allowed are file, model"),
        ([("langauge", "de")], "langauge", "did you mean 'language'"),
        ([("temperature[x]", "0")], "temperature", "has a single value"),
        ([("model", "other")], "model", "2 times, once is allowed"),
        ([("language", "de"), ("language", "en")], "language", "2 times"),
        ([("language", "Klingon")], "language", "none of Whisper's"),
        ([("temperature", "hot")], "temperature", "number"),
        ([("temperature", "nan")], "temperature", "than or equal"),
        ([("stream", "maybe")], "stream", "boolean"),
        ([("response_format", "JSON")], "response_format", "'verbose_json'"),
        ([("timestamp_granularities[x]", "word")], "timestamp_granularities", "is a list"),
        ([("timestamp_granularities", "[")], "timestamp_granularities", "a JSON list"),
        ([("prompt", "a" * (MAX_TEXT_BYTES + 1))], "prompt", "bytes are allowed"),
        ([("file", "again")], "file", "one file is expected"),
        ([("a[b][c]", "d")], "a[b][c]", "unknown"),
        ([("model\u202e", "x")], "model\u202e", "unknown"),
    ],
)
def test_unsupported_fields_are_refused_by_name(fields: Fields, param: str, message: str):
    error = refusal(*fields)
    assert error.param == param
    assert message in error.message


def test_translation_refuses_transcription_fields():
    assert parse(("prompt", "a"), read=translation).options.decoding.task == "translate"
    for name in ("language", "stream", "chunking_strategy", "timestamp_granularities[]"):
        assert refusal((name, "en"), read=translation).param == name


def test_form_fields_in_the_url_are_refused():
    with pytest.raises(ApiError, match="language: a form field") as refused:
        transcription([AUDIO, FormPart("model", b"student")], ["api-version", "language"])
    assert refused.value.param == "language"
    assert transcription([AUDIO, FormPart("model", b"student")], ["api-version"])


@pytest.mark.parametrize(("values", "stream"), [(TRUE, True), (FALSE, False)])
def test_boolean_spellings(values: tuple[str, ...], stream: bool):
    assert {value: parse(("stream", value)).stream for value in values} == dict.fromkeys(values, stream)


NAMES = ["model", "language", "prompt", "temperature", "response_format", "stream", "file", "include[]", "vad_filter"]
NAMES += [f"timestamp_granularities{end}" for end in ("", "[]", "[0]", "[x]")]
NAMES += [f"chunking_strategy{end}" for end in ("", "[type]", "[threshold]", "[silence_duration_ms]", "[]", "[a][b]")]
VALUES = [
    "",
    "null",
    "auto",
    "student",
    "en",
    "en-US",
    "German",
    "json",
    "text",
    "verbose_json",
    "srt",
    "word",
    "segment",
]
VALUES += ['["word"]', "server_vad", '{"type": "server_vad"}', "0", "0.5", "1", "500", "true", "False", "[", "{", "nan"]


def meant(request: TranscriptionRequest) -> dict[str, Any]:
    """Return the values of a request by form field."""
    options, vad_options = request.options, request.options.vad_options
    return {
        "model": options.model,
        "language": options.language,
        "prompt": options.decoding.prompt,
        "temperature": options.decoding.temperature,
        "response_format": request.response_format,
        "stream": request.stream,
        THRESHOLD: vad_options.threshold,
        SILENCE: round(1000 * vad_options.silence_s),
    }


def honoured(name: str, value: str, request: TranscriptionRequest) -> bool:
    """Whether the request contains the value that was sent."""
    base = name.partition("[")[0]
    if value == "":
        return True
    if base == "timestamp_granularities":
        values = json.loads(value) if value.startswith("[") else [value]
        return all({"word": request.words, "segment": request.segments}[item] for item in values)
    if name in ("chunking_strategy", VAD):
        return value in ("auto", "null", '{"type": "server_vad"}', "server_vad")
    if name == "language":
        return request.options.language == language_code(value)
    if name == "stream":
        return request.stream == (value in TRUE)
    if name in ("temperature", THRESHOLD, SILENCE):
        return meant(request)[name] == float(value)
    return meant(request)[name] == value


WRITABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'))
"""Names without characters that clients escape in different ways, such as quotes and line breaks."""


def multipart(fields: Fields, file_names: bool, preamble: bytes) -> bytes:
    more = '; filename="blob"' if file_names else ""
    heads = [f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n' for name, _ in fields]
    parts = [head + value + "\r\n" for head, (_, value) in zip(heads, fields, strict=True)]
    return preamble + "".join([*parts, "--B--\r\n"]).encode("utf-8")


@given(
    st.lists(st.tuples(st.sampled_from(NAMES) | WRITABLE, st.sampled_from(VALUES) | WRITABLE), min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from([b"", b"\r\n", b"a preamble\r\n"]),
)
@example([("timestamp_granularities", "word"), ("response_format", "verbose_json"), *FILE_AND_MODEL], False, b"")
@example([(VAD, "server_vad"), (THRESHOLD, "0.5"), *FILE_AND_MODEL], True, b"a preamble\r\n")
def test_every_field_is_used_or_refused_by_name(fields: Fields, file_names: bool, preamble: bytes):
    body = multipart(fields, file_names, preamble)
    try:
        _, request = transcription(read_parts("multipart/form-data; boundary=B", body))
    except ApiError as refused:
        assert refused.status == 400
        sent = {name.partition("[")[0][:100] for name, _ in fields}
        assert (refused.param or "").partition("[")[0] in sent | {"file", "model"}
        assert (refused.param or "") in refused.message or refused.message.startswith("language ")
    else:
        assert all(honoured(name, value, request) for name, value in fields if name != "file"), request
