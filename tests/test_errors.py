import pytest

from askd_ray.errors import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("a 's3://key:sec%2Fret@bucket/x' and gs://key:secret@b", "a 's3://bucket/x' and gs://b"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("s3://key:sec@ret@bucket/x", "s3://bucket/x"),
        ("s3://bucket/a:b@c/d", "s3://bucket/a:b@c/d"),
        ("hf://datasets/user/name@main/x", "hf://datasets/user/name@main/x"),
        ("gs://anonymous@bucket/x", "gs://anonymous@bucket/x"),
        ("write to me: a@b.org", "write to me: a@b.org"),
    ],
)
def test_only_credentials_are_removed(text: str, shown: str):
    assert without_credentials(text) == shown
