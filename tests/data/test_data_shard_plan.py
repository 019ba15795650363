"""The number of utterances in a shard, and the rows that shards consist of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.data.placement import GROUPS, GroupCounts, Placement
from askd_ray.data.repeats import Repeats
from askd_ray.data.schema import SPLITS
from askd_ray.data.shard_plan import CountedPart, parts_with_repeats, plan_shards, shard_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("n_utterances", "mean_bytes", "expected"),
    [(0, 0, 64), (542, 90_000, 64), (60_000, 90_000, 64), (131_072, 90_000, 128), (10**7, 120_000, 1_664)],
)
def test_shards_grow_with_the_data(n_utterances: int, mean_bytes: int, expected: int):
    assert shard_size(n_utterances, n_utterances * mean_bytes) == expected


@given(st.integers(1, 10**9), st.integers(2_000, 1_000_000))
def test_shards_of_large_data_have_128_to_256_mib(n_utterances: int, mean_bytes: int):
    size = shard_size(n_utterances, n_utterances * mean_bytes)
    assert size >= 64 and size % 64 == 0
    assert size == 64 or size * mean_bytes <= 192 * MIB
    if n_utterances * mean_bytes > 1024 * 200 * MIB and mean_bytes < 500_000:
        assert 128 * MIB <= size * mean_bytes


COUNTS = st.lists(st.integers(0, 9), min_size=len(GROUPS), max_size=len(GROUPS))


@given(st.lists(COUNTS, max_size=8), st.integers(1, 12), st.booleans())
def test_shards_have_all_rows_of_their_split_in_turn(counts: list[list[int]], size: int, has_marked: bool):
    none = np.empty(0, np.int64)
    parts = [CountedPart(str(n), none, none, (), tuple(c)) for n, c in enumerate(counts)]
    totals = GroupCounts()
    totals.marked[1] = has_marked
    placement = Placement.of(totals, None)
    plans = list(plan_shards(parts, placement, size))
    for split in SPLITS:
        of_split = [plan for plan in plans if plan.split == split]
        assert [plan.number for plan in of_split] == list(range(len(of_split)))
        sizes = [sum(s.stop - s.start for s in plan.slices) for plan in of_split]
        n = sum(c[g] for c in counts for g, placed in enumerate(placement.splits) if placed == split)
        assert sum(sizes) == n and all(s == size for s in sizes[:-1])
        rows = [(s.groups, s.part.key, n) for plan in of_split for s in plan.slices for n in range(s.start, s.stop)]
        assert rows == sorted(rows, key=lambda row: (row[0][0], int(row[1]), row[2]))
        assert len(set(rows)) == len(rows)


def test_repeats_are_given_to_their_parts():
    same_id = Repeats(np.array([3, 7]), np.array([0, 1]))
    same_audio = Repeats(np.array([4, 5, 8]), np.array([0, 4, 5]))
    parts = list(parts_with_repeats(["a", "b", "c"], np.array([0, 4, 4, 9]), same_id, same_audio))
    assert [part.same_id.tolist() for part in parts] == [[3], [], [3]]
    assert [part.same_audio.tolist() for part in parts] == [[], [], [0, 1, 4]]
    assert parts[2].first == (("a", 0), ("c", 0), ("c", 1))
