"""Copies of folders on a real S3 server: what is fetched, sent and deleted, and that the store decides."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.mirror import Mirror


@pytest.fixture
def store(s3: Callable[[str], str]) -> Location:
    """An empty folder on the server."""
    return Location.of(s3("runs/mine"))


@pytest.fixture
def here(store: Location, tmp_path: Path) -> Mirror:
    """The mirror of a machine."""
    return Mirror(tmp_path / "here", store)


@pytest.fixture
def there(store: Location, tmp_path: Path) -> Mirror:
    """The mirror of another machine."""
    return Mirror(tmp_path / "there", store)


def write(mirror: Mirror, name: str, text: str) -> None:
    (mirror.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (mirror.folder / name).write_text(text)


def texts(mirror: Mirror) -> dict[str, str]:
    return {name: (mirror.folder / name).read_text() for name in mirror.local()}


def requests_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read from or written to the store from now on."""
    moved: list[str] = []
    for method in ("stream", "output"):
        original = getattr(Location, method)

        def noted(self: Location, original: Callable[[Location], object] = original) -> object:
            moved.append(self.name)
            return original(self)

        monkeypatch.setattr(Location, method, noted)
    return moved


def test_folder_travels_between_machines(here: Mirror, there: Mirror):
    for name in ("bundle/a", "bundle/deep/b", "other/c", "single"):
        write(here, name, name)
    write(here, "bundle/.half-written.tmp", "x")
    here.send("bundle", "single")
    there.fetch("bundle", "single", "other")
    assert texts(there) == {name: name for name in ("bundle/a", "bundle/deep/b", "single")}
    assert sorted(there.stored()) == sorted(there.local())


def test_only_changed_files_travel(here: Mirror, there: Mirror, monkeypatch: pytest.MonkeyPatch):
    write(here, "x/a", "a")
    write(here, "x/b", "b")
    here.send("x")
    there.fetch("x")
    moved = requests_of(monkeypatch)
    for mirror in (here, there):
        mirror.send("x")
        mirror.fetch("x")
    assert moved == []
    write(there, "x/b", "c")  # the same size
    there.send("x")
    assert moved == ["b"]


def test_the_store_decides(here: Mirror, there: Mirror):
    write(here, "x/a", "a")
    here.send("x")
    there.fetch("x")
    write(there, "x/a", "newer here")
    write(there, "x/deep/extra", "never sent")
    there.fetch("x")
    assert texts(there) == {"x/a": "a"} and not (there.folder / "x" / "deep").exists()
    (here.folder / "x" / "a").unlink()
    write(here, "x/b", "b")
    here.send("x")
    assert list(here.stored()) == ["x/b"]
    there.fetch("x")
    assert texts(there) == {"x/b": "b"}
    there.delete(["x/b"])
    assert not (there.store / "x").exists()
    there.fetch("x")
    assert texts(there) == {} and not (there.folder / "x").exists()


def test_file_that_grew_while_it_was_sent_is_sent_again(here: Mirror):
    write(here, "metrics.jsonl", "1\n")
    here.send("metrics.jsonl")
    sent = (here.folder / "metrics.jsonl").stat().st_mtime_ns
    write(here, "metrics.jsonl", "1\n2\n")
    os.utime(here.folder / "metrics.jsonl", ns=(sent, sent))  # it grew between the upload and the new time
    here.send("metrics.jsonl")
    assert (here.store / "metrics.jsonl").read_bytes() == b"1\n2\n"


def test_mirror_of_a_run_is_in_the_cache_without_credentials(store: Location, cache: Path):
    mirror = Mirror.of(store)
    assert mirror.folder.is_relative_to(cache / "runs") and mirror.folder.name == "mine"
    assert "mysecret" not in str(mirror.folder)
    inside = Mirror.of(store / "seeds" / "one")
    assert inside.folder == mirror.folder / "seeds" / "one", "runs inside a run are in its mirror"
    mirror.fetch_path(cache / "elsewhere")
    assert not (cache / "elsewhere").exists()


def test_missing_bucket_is_a_one_line_error(s3_server: str, tmp_path: Path):
    uri = f"s3://mykey:mysecret@elsewhere/x?scheme=http&endpoint_override={s3_server}&region=us-east-1"
    mirror = Mirror(tmp_path, Location.of(uri))
    write(mirror, "a", "a")
    for call in (mirror.fetch, mirror.send):
        with pytest.raises(AskdError, match=r"^s3://elsewhere/x/a: there is no such bucket$"):
            call("a")
