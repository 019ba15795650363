"""What the end of the data decides: spare rows, and how much of dev is kept."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.data.row_check import Rejected
from askd_ray.data.schema import SPLITS, Split, Utterance
from askd_ray.data.shard_writer import DEV_IS_FULL, ShardWriter, in_capped_dev
from askd_ray.data.shards import read_utterances
from askd_ray.data.split import SplitAssignment
from askd_ray.location import Location

HOUR_S = 3600.0


def utterance(number: int, split: Split, duration_s: float = 36.0) -> Utterance:
    name = str(number)
    language = ("en", "de", "fr")[number % 3]
    return Utterance(name, name.encode(), f"{name}.wav", name, duration_s, f"s{number % 7}", language, "", split, "")


def written(folder: Path, rows: list[Utterance], max_dev_hours: float | None) -> tuple[ShardWriter, list[Rejected]]:
    """Write utterances, a third of those of dev as rows that their source marks, and return what is set aside."""
    writer = ShardWriter(Location.of(folder), 4, max_dev_hours)
    for number, row in enumerate(rows):
        writer.add(row, SplitAssignment(row.split, marked=number % 3 == 0))
    return writer, list(writer.finish())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(SPLITS), st.floats(1.0, 30.0)), max_size=60),
    st.floats(0.001, 0.3),
)
def test_every_row_is_written_or_set_aside_and_counted(rows: list[tuple[Split, float]], max_dev_hours: float):
    utterances = [utterance(i, split, seconds) for i, (split, seconds) in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        writer, set_aside = written(Path(folder), utterances, max_dev_hours)
        shards = {split: [] for split in SPLITS} | {
            split: read_utterances(Location.of(folder), split) for split, c in writer.counts.items() if c.utterances
        }
        names = sorted(file.name for file in Location.of(folder).files())
    assert names == sorted(f"{split}-{i:05d}.parquet" for split, us in shards.items() for i in range(-(-len(us) // 4)))
    assert {r.reason for r in set_aside} <= {DEV_IS_FULL}
    dev_s = sum(u.duration_s for u in utterances if u.split == "dev")
    kept_share = max_dev_hours * HOUR_S / max(dev_s, 1.0)
    expected = [u for u in utterances if u.split != "dev" or kept_share >= 1.0 or in_capped_dev(u.id, kept_share)]
    for split, found in shards.items():
        assert found == [u for u in expected if u.split == split]  # whole, and in their order
        counts = writer.counts[split]
        assert counts.utterances == len(found) and counts.seconds == sum(u.duration_s for u in found)
        assert counts.marked == sum(int(u.id) % 3 == 0 for u in found)
        assert counts.speakers == {u.speaker for u in found}
    assert {r.id for r in set_aside} == {u.id for u in utterances} - {u.id for u in expected}
    assert writer.languages.total() == len(expected) and 0 not in writer.languages.values()


def test_capped_dev_is_about_as_long_as_allowed_and_a_fair_sample(tmp_path: Path):
    rows = [utterance(i, "dev", 18.0 if i % 2 else 54.0) for i in range(3000)]  # 30 h
    writer, set_aside = written(tmp_path, rows, 10.0)
    kept = read_utterances(Location.of(tmp_path), "dev")
    assert abs(writer.counts["dev"].seconds / HOUR_S - 10.0) < 1.0
    assert len(kept) + len(set_aside) == 3000
    assert abs(sum(u.duration_s == 18.0 for u in kept) / len(kept) - 0.5) < 0.06  # not by length, nor by place
    assert abs(sum(int(u.id) < 1500 for u in kept) / len(kept) - 0.5) < 0.06


def test_a_smaller_limit_keeps_a_part_of_what_a_larger_one_keeps():
    ids = [str(i) for i in range(500)]
    small, large = ({i for i in ids if in_capped_dev(i, share)} for share in (0.1, 0.4))
    assert small < large and 20 < len(small) < 80


def test_dev_below_the_limit_and_without_a_limit_is_kept(tmp_path: Path):
    rows = [utterance(i, "dev") for i in range(10)]  # 0.1 h
    for name, limit in (("below", 0.2), ("none", None)):
        writer, set_aside = written(tmp_path / name, rows, limit)
        assert not set_aside and writer.counts["dev"].utterances == 10
