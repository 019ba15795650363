"""Places of data: one behaviour here and on a real S3 server, and errors that say what is wrong without secrets."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from askd_ray.cli import main
from askd_ray.data.shards import read_table, shard_paths, write_table
from askd_ray.errors import AskdError
from askd_ray.location import UNFINISHED, Location, map_concurrently
from askd_ray.serve.registry import Registry


@pytest.fixture(params=["folder", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder, here and on S3."""
    return Location.of(tmp_path if request.param == "folder" else request.getfixturevalue("s3")("data"))


def one_line(caught: pytest.ExceptionInfo[AskdError]) -> str:
    line = str(caught.value)
    assert "\n" not in line and "mysecret" not in line and "mykey" not in line
    return line


def test_write_and_read(folder: Location):
    file = folder / "a/b" / "what? 100%20.gz"  # a name is only a name: nothing is packed or unpacked
    assert not file.exists() and not folder.files(recursive=True)
    file.write_bytes(b"12345")
    assert file.is_file() and file.parent.exists() and not file.parent.is_file()
    assert file.read_bytes() == file.read_bytes(5) == b"12345"
    with pytest.raises(OSError, match="too large"):
        file.read_bytes(4)
    with file.stream() as stream, file.open() as opened:
        opened.seek(3)
        assert (stream.read(), opened.read()) == (b"12345", b"45")
    assert (file.name, file.suffix, str(file.parent)) == ("what? 100%20.gz", ".gz", f"{folder}/a/b")
    file.delete()
    file.delete()
    assert not file.exists()
    (folder / "a" / "c").write_bytes(b"")
    for _ in range(2):
        (folder / "a").delete_folder()
        assert not (folder / "a").exists()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()


def test_listing(folder: Location):
    for name in ("train-00001.parquet", "train-00000.parquet", "dev-00000.parquet", "train-x.json", "a-b/x", "a/b/x"):
        (folder / name).write_bytes(name.encode())
    assert [f.name for f in folder.files("train-*.parquet")] == ["train-00000.parquet", "train-00001.parquet"]
    assert [f for f in folder.files(recursive=True) if f.name == "x"] == [folder / "a/b/x", folder / "a-b/x"]
    stamps = folder.stamped()
    size, time_ns = stamps[folder / "dev-00000.parquet"]
    assert size == len("dev-00000.parquet") and time_ns > 1_600_000_000 * 10**9
    assert (folder / "none").stamped() == {}


def test_location_round_trip(folder: Location):
    write_table(folder / "x.parquet", pa.table({"a": [1, 2]}))
    there = pickle.loads(pickle.dumps(folder))
    assert there == folder == copy.copy(folder) and len({there, folder}) == 1
    assert read_table(there / "x.parquet", ["a"]).to_pydict() == {"a": [1, 2]}
    assert "mysecret" not in f"{there} {there!r} {[there]}"


def test_folder_is_replaced(folder: Location):
    shards = folder / "shards"
    (shards / "train-00000.parquet").write_bytes(b"old")
    (shards / "deep" / "old").write_bytes(b"old")
    with shards.replaced() as filling, (filling / "log").output() as log:
        (filling / "train-00001.parquet").write_bytes(b"new")
        log.write(b"one")
        log.write(b"two")
    assert [f.name for f in shards.files(recursive=True)] == ["log", "train-00001.parquet"]
    assert (shards / "log").read_bytes() == b"onetwo"
    assert shard_paths(shards, "train") == [shards / "train-00001.parquet"]


def test_folder_is_deleted(folder: Location):
    for name in ("a", "b/c"):
        (folder / "gone" / name).write_bytes(b"1")
    (folder / "stays").write_bytes(b"2")
    for _ in range(2):
        (folder / "gone").delete_folder()
        assert [file.name for file in folder.files(recursive=True)] == ["stays"]
    assert folder.root or not (folder / "gone").exists()  # a store keeps no folders, or empty marks of them


def test_output_in_steps_is_complete_or_missing_here(folder: Location):
    file = folder / "some" / "steps"
    with file.atomic_output() as output:
        output.write(b"12")
        output.write(b"3")
    assert file.read_bytes() == b"123"
    with pytest.raises(KeyError), file.atomic_output() as output:
        output.write(b"4")
        raise KeyError
    if not folder.root:
        assert file.read_bytes() == b"123" and [f.name for f in file.parent.files()] == ["steps"]


def test_partly_replaced_folder_is_refused(folder: Location):
    shards = folder / "shards"
    (shards / "train-00000.parquet").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), shards.replaced() as filling:
        (filling / "train-00001.parquet").write_bytes(b"new")
        raise KeyboardInterrupt
    if folder.root:  # a store has no rename
        assert [f.name for f in shards.files()] == [UNFINISHED, "train-00001.parquet"]
        with pytest.raises(AskdError, match=r"data/shards are unfinished: `askd prepare` was interrupted") as caught:
            shard_paths(shards, "train")
        one_line(caught)
        with shards.replaced() as filling:
            (filling / "train-00000.parquet").write_bytes(b"newer")
        assert (shards / "train-00000.parquet").read_bytes() == b"newer"
    assert [f.name for f in shards.files(recursive=True)] == ["train-00000.parquet"]
    assert shard_paths(shards, "train") == [shards / "train-00000.parquet"]


def test_truncated_file_is_named(folder: Location):
    file = folder / "x.parquet"
    write_table(file, pa.table({"a": list(range(1000))}))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(AskdError, match=r"x\.parquet is damaged or no Parquet file of this kind: ") as caught:
        read_table(file)
    assert one_line(caught).startswith(f"{folder}/x.parquet is")
    with pytest.raises(AskdError, match=r"y\.parquet does not exist$"):
        read_table(folder / "y.parquet")


CALLS: dict[str, Callable[[Location], Any]] = {
    "exists": Location.exists,
    "list": Location.files,
    "read": Location.read_bytes,
    "table": read_table,
    "write": lambda place: place.write_bytes(b"x"),
    "delete": Location.delete,
    "replace": lambda place: place.replaced().__enter__(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_missing_bucket_is_refused(s3_server: str, call: Callable[[Location], Any]):
    place = Location.of(f"s3://mykey:mysecret@elsewhere/x?scheme=http&endpoint_override={s3_server}&region=us-east-1")
    with pytest.raises(AskdError, match=r"^s3://elsewhere/x\S*: there is no such bucket") as caught:
        call(place)
    one_line(caught)


def test_refused_credentials_are_a_one_line_error(s3: Callable[[str], str], s3_server: str):
    import httpx

    def check_credentials(after_requests: str) -> None:
        httpx.post(f"http://{s3_server}/moto-api/reset-auth", content=after_requests, trust_env=False)

    place = Location.of(s3("x"))
    check_credentials("0")
    try:
        for call in CALLS.values():
            with pytest.raises(
                AskdError, match=r"^s3://b\w+/x\S*: access denied: give credentials with access"
            ) as caught:
                call(place)
            one_line(caught)
    finally:
        check_credentials("inf")
    assert not place.exists()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("call", [CALLS["list"], CALLS["table"], CALLS["write"]])
def test_unreachable_s3_is_a_one_line_error(refusing_port: int, call: Callable[[Location], Any]):
    options = f"scheme=http&endpoint_override=127.0.0.1:{refusing_port}&region=us-east-1"
    with pytest.raises(AskdError, match=r"^s3://b/x: the store cannot be reached") as caught:
        call(Location.of(f"s3://mykey:mysecret@b/x?{options}"))
    one_line(caught)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://mykey:mysecret@host/x", r"^ftp://host/x: unknown scheme.*: a folder, s3://"),
        ("s3://", r"^s3:// without a bucket: a folder"),
        ("s3://mykey:mysecret@/x", r"^s3:// without a bucket: a folder"),
        ("s3://mykey:my/mysecret@bucket/x", r"^s3:// without a bucket: write a '/' in a key or secret as %2F"),
        ("hf://USER/NAME", r"^hf://USER/NAME: unknown scheme, or no data set: "),
        ("hf://datasets/NAME", r"no data set: .* or hf://datasets/USER/NAME/\.\.\. is allowed"),
    ],
)
def test_invalid_uris_are_refused(uri: str, message: str):
    with pytest.raises(AskdError, match=message) as caught:
        Location.of(uri)
    one_line(caught)


@pytest.mark.parametrize(
    "uri", ["s3://mykey:mysecret@b/x?regon=y", "gs://mykey:mysecret@b/x", "s3://mykey:my@secret@b"]
)
def test_unknown_store_options_are_refused(uri: str):
    with pytest.raises(AskdError, match=r"^(s3|gs)://b/\?") as caught:
        Location.of(uri).exists()
    one_line(caught)


def test_gcs_location_is_built_without_a_request():
    """There is no server of theirs to test against: this much is known, and what the errors look like."""
    place = Location.of("gs://anonymous@bucket/a/b?retry_limit_seconds=2")
    assert isinstance(place.file_system, fs.GcsFileSystem) and str(place / "c") == "gs://bucket/a/b/c"


@pytest.mark.slow
def test_unreachable_gcs_is_a_one_line_error(refusing_port: int):
    options = f"retry_limit_seconds=1&scheme=http&endpoint_override=127.0.0.1:{refusing_port}"
    with pytest.raises(AskdError, match=r"^gs://bucket/x: the store cannot be reached"):
        Location.of(f"gs://anonymous@bucket/x?{options}").read_bytes()


def test_connection_lost_while_reading(s3: Callable[[str], str]):
    trouble = OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7")
    with (
        pytest.raises(AskdError, match=r"/x: the store cannot be reached \(AWS"),
        Location.of(s3("x")).explain("is no x"),
    ):
        raise trouble


def test_data_set_on_the_hub(hub: Path):
    data = hub / "datasets" / "user" / "name" / "data"
    data.mkdir(parents=True)
    write_table(data / "train-00000-of-00001.parquet", pa.table({"a": [1, 2]}))
    place = Location.of("hf://datasets/user/name")
    (file,) = place.files("*.parquet", recursive=True)
    assert str(file) == "hf://datasets/user/name/data/train-00000-of-00001.parquet"
    assert read_table(file).to_pydict() == {"a": [1, 2]} and file.is_file()
    with pytest.raises(AskdError, match=r"name/x: data sets on the hub are read-only here: write to a folder"):
        (place / "x").write_bytes(b"")
    with pytest.raises(AskdError, match=r"^hf://datasets/user/other/x: there is no such data set"):
        Location.of("hf://datasets/user/other/x").read_bytes()


def test_hub_without_a_network():
    """The hub's real client, told not to go online (tests/conftest.py)."""
    with pytest.raises(AskdError, match=r"^hf://datasets/user/name: .*offline mode is enabled"):
        Location.of("hf://datasets/user/name").exists()


def test_local_folder_in_the_hub_layout(tmp_path: Path):
    """As huggingface_hub caches a data set: files are links to blobs."""
    blob, shown = tmp_path / "blobs" / "1f", tmp_path / "snapshots" / "main" / "data" / "train-00000-of-00001.parquet"
    shown.parent.mkdir(parents=True)
    write_table(blob, pa.table({"a": [1]}))
    shown.symlink_to(blob)
    (tmp_path / "snapshots" / "loop").symlink_to(tmp_path)
    (file,) = Location.of(tmp_path / "snapshots").files("*.parquet", recursive=True)
    assert read_table(file).num_rows == 1 and file.read_bytes() == blob.read_bytes()


def test_map_concurrently_keeps_order_and_raises_errors():
    assert map_concurrently(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        map_concurrently(lambda n: 1 // n, [1, 0])


@pytest.mark.parametrize(
    "place", ["s3:/bucket/x", "S3://bucket/x", "file:///tmp/x", "http://host/x", Path("s3://bucket/x")]
)
def test_uri_never_becomes_a_local_folder(place: str | Path):
    with pytest.raises(AskdError, match="unknown scheme"):
        Location.of(place)


URI = "s3://bucket/x"


@pytest.mark.parametrize(
    "command",
    [
        ["plot-schedule", "--out", URI],
        ["plot-runs", "runs/x", "--out", URI],
        ["plot-runs", URI],
        ["serve", "--bundle", URI],
        ["serve", "--model", f"x={URI}"],
        ["serve", "--registry", URI],
        ["serve", "--bundle", ".", "--keys", URI],
        ["promote", URI],
        ["promote", ".", "--registry", URI],
        ["rollback", "--registry", URI],
        ["transcribe", "clip.wav", "--bundle", URI],
        ["demo", "--speech", URI],
    ],
    ids=" ".join,
)
def test_local_arguments_refuse_uris(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.wav").touch()
    (tmp_path / "model.bin").touch()
    with pytest.raises(SystemExit) as ended:
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "s3:/" in line and "expected a path on this machine" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.wav", "model.bin"]


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """As in --registry=~/models, of which bash leaves the ~ alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Registry(Path("~/models")).folder == tmp_path / "models"
    assert Location.of("~/clips") == Location.of(tmp_path / "clips")
