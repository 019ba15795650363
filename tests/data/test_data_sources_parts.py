"""The parts of a source are its rows, in order, for any size of the parts."""

import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_sources import write_sources

from askd_ray.config.source import Source
from askd_ray.data.sources import SourcePart, SplitNames, read_rows, source_parts, survey
from askd_ray.errors import AskdError
from askd_ray.location import Location


def parts_of(sources: list[Source], max_rows: int) -> list[SourcePart]:
    return list(source_parts(sources, survey(sources).of_sources, True, max_rows))


def rows_of(path: Path, n_rows: int = 9, row_group_size: int = 2) -> list[Source]:
    rows = [{"seed": 5 * n, "text": f"text {n}", "split": ("train", "dev")[n % 2]} for n in range(n_rows)]
    return [Source.model_validate(source) for source in write_sources(path, rows, row_group_size)]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 12), st.sampled_from([None, "dev"]), st.booleans())
def test_parts_hold_all_rows_in_order(n_rows: int, group: int, max_rows: int, split: str | None, half: bool):
    with tempfile.TemporaryDirectory() as folder:
        sources = rows_of(Path(folder), n_rows, group)
        if n_rows >= 6 and n_rows % 3 == 0:  # then each source has a dev row
            sources = [s.model_copy(update={"split": split, "share": 0.5 if half else 1.0}) for s in sources]
        parts = parts_of(sources, max_rows)
        rows = [list(part.read(SplitNames(False), needs_text=True)) for part in parts]
        assert list(itertools.chain(*rows)) == [row for source in sources for row in read_rows(source)]
    assert [part.number for part in parts] == sorted(part.number for part in parts)
    for part, of_part in zip(parts, rows, strict=True):
        assert part.source.kind == "webdataset" or len(of_part) <= (max_rows if part.rows else max(max_rows, group))
    assert len({part.key for part in parts}) == len(parts)


def test_keys_depend_on_the_files_of_the_part_alone(tmp_path: Path):
    sources = rows_of(tmp_path)
    before = {part.key: part for part in parts_of(sources, 100)}
    assert [part.key for part in parts_of(sources, 100)] == list(before)
    tar = Path(sources[2].path)
    os.utime(tar, (1, 1))
    after = [part.key for part in parts_of(sources, 100)]
    assert [key in before for key in after] == [True, True, False]
    (tmp_path / "1.wav").write_bytes(b"other audio")
    assert [part.key in before for part in parts_of(sources, 100)] == [False, True, False]
    other = [source.model_copy(update={"language": "de"}) for source in sources]
    assert not {part.key for part in parts_of(other, 100)} & {*before, *after}


def test_example_of_rows_is_a_file_that_exists(tmp_path: Path):
    manifest = rows_of(tmp_path)[:1]
    (tmp_path / "0.wav").unlink()
    (part,) = parts_of(manifest, 100)
    assert part.example == Location.of(tmp_path / "1.wav")
    elsewhere = replace(part, example=Location.of(tmp_path / "nowhere" / "1.wav"))
    with pytest.raises(AskdError, match=r"nowhere/1\.wav is not on this machine: all nodes of a cluster"):
        next(elsewhere.read(SplitNames(True), needs_text=True))
    for number in (1, 2):
        (tmp_path / f"{number}.wav").unlink()
    (part,) = parts_of(manifest, 100)  # each row is set aside
    assert part.example is None and len(list(part.read(SplitNames(True), needs_text=True))) == 3
