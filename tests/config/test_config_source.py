"""What a source of a recipe may say."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import ValidationError

from askd_ray.config.load import load_recipe
from askd_ray.config.source import RowField, Source, SourceKind
from askd_ray.errors import AskdError


def test_a_source_as_a_recipe_names_it():
    recipe = load_recipe(
        "demo",
        [
            "data.sources=[{path: 'calls/{a,b}.jsonl', columns: {audio: wav, text: words}, unknown_columns: ignore, "
            "channel: 1, splits: {ood: test}}, {path: LibriSpeech, kind: librispeech}]"
        ],
    )
    calls, books = recipe.data.sources
    assert (calls.columns, calls.channel, calls.splits) == ({"audio": "wav", "text": "words"}, 1, {"ood": "test"})
    assert (books.columns, books.channel, books.splits) == ({}, "mix", {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "path"),
        ({"path": "a\0b"}, "path"),
        ({"kind": "libri"}, "Input should be 'manifest', 'parquet', 'webdataset', 'nemo'"),
        ({"columns": {"txt": "words"}}, "columns"),
        ({"channel": -1}, "channel"),
        ({"channel": "left"}, "channel"),
        ({"splits": {"ood": "held-out"}}, "Input should be 'train', 'dev', 'test' or 'hash'"),
        (
            {"kind": "parquet", "unknown_columns": "ignore"},
            "would be ignored: kind: parquet ignores columns that it does",
        ),
        ({"kind": "kaldi", "columns": {"text": "words"}}, "would be ignored: kind: kaldi has no columns"),
    ],
)
def test_what_nothing_would_read_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Source.model_validate({"path": "clips", **fields})
    with pytest.raises(AskdError) as caught:
        load_recipe("demo", [f"data.sources=[{json.dumps({'path': 'clips', **fields})}]"])
    assert "\n" not in str(caught.value)


def test_the_page_about_data_names_every_kind_and_field_and_its_sources_are_sources():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    sources = [Source.model_validate(yaml.safe_load(found)) for found in re.findall(r"\{path: .*\}", text)]
    assert {source.kind for source in sources} == set(get_args(SourceKind))
    assert [name for name in (*get_args(RowField), *Source.model_fields) if f"`{name}" not in text] == []
