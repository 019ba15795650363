"""What a source of a recipe may say."""

import pytest
from pydantic import ValidationError

from askd_ray.config.load import load_recipe
from askd_ray.config.source import Source
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
        load_recipe("demo", [f"data.sources=[{ {'path': 'clips', **fields} }]"])
    assert "\n" not in str(caught.value)
