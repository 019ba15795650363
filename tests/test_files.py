from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.errors import AskdError
from askd_ray.files import (
    atomic_path,
    cache_root,
    check_place,
    clear_interrupted,
    digest,
    local_path,
    read_json,
    scheme_of,
    sha256_of_file,
    write_json,
)


def test_file_is_written_atomically(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_is_replaced_atomically(tmp_path):
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_write_left_is_deleted(tmp_path):
    target = tmp_path / "[folder]"
    with atomic_path(target) as temporary, atomic_path(tmp_path / "other") as other:
        temporary.mkdir()
        other.touch()
        (temporary / "half").touch()
        copied = [path.name for path in tmp_path.iterdir()]
        clear_interrupted(target)
        assert [path.name for path in tmp_path.iterdir()] == [other.name] and len(copied) == 2
        temporary.mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[folder]", "other"]


def test_failed_write_keeps_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_old_folder_is_restored_when_the_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")

    def fail(self, target):
        raise OSError("no")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no"), atomic_path(target) as temporary:
        temporary.mkdir()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_json_round_trip_and_hashes(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"é": [1, 2.5, None]})
    assert read_json(path) == {"é": [1, 2.5, None]}
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), min_size=2, max_size=5))
def test_digest_ignores_only_the_order_of_keys(value):
    assert digest(value) == digest(dict(reversed(value.items())))
    assert digest(value) != digest({**value, "another key": 0})


SCHEMES = st.from_regex(r"[A-Za-z][A-Za-z0-9+.-]{1,8}", fullmatch=True)


@given(SCHEMES, st.sampled_from(["/", "//"]), st.text(max_size=20))
def test_uri_never_becomes_a_local_folder(scheme: str, slashes: str, rest: str):
    uri = f"{scheme}:{slashes}x{rest}"
    assert scheme_of(uri) == scheme
    for place in (uri, Path(uri)):
        with pytest.raises(AskdError, match="expected a path on this machine"):
            local_path(place)
    if slashes == "//":
        assert check_place(uri, scheme) == uri
    with pytest.raises(AskdError, match="a path is allowed, or no://"):
        check_place(uri, "no")


NAMES = st.text(st.characters(exclude_characters=":\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES.filter(lambda name: name[0] != "~"))
def test_other_texts_are_local_paths(name: str):
    assert scheme_of(name) is None
    assert local_path(name) == Path(name).absolute()


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/runs") == local_path(Path("~/runs")) == Path("/home/me/runs")
    assert local_path("cache:ivr") == Path("cache:ivr").absolute()
    with pytest.raises(AskdError, match="~nobody-of-that-name/runs: this user has no home folder"):
        local_path("~nobody-of-that-name/runs")
    with pytest.raises(AskdError, match=r"^s3://bucket/x: expected a path"):
        local_path("s3://key:secret@bucket/x")


def test_cache_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path))
    assert cache_root() == tmp_path.resolve()
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("ASKD_CACHE")
        else:
            monkeypatch.setenv("ASKD_CACHE", unset)
        assert cache_root() == Path.home().resolve() / ".cache" / "askd"
