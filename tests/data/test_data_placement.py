"""What the counts of all rows decide: where spare rows go, and how much of dev is kept."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.data import placement as placement_module
from askd_ray.data.placement import (
    GROUPS,
    SET_ASIDE,
    Group,
    GroupCounts,
    Placement,
    count_groups,
    different,
    group_of,
    groups_of,
)
from askd_ray.data.schema import SPLITS
from askd_ray.data.split import SplitAssignment, dev_fraction

NONE = np.empty(0, np.int64)


def row(number: int, group: Group | None, duration_s: float = 36.0, marked: bool = False) -> dict[str, object]:
    return {
        "id": str(number),
        "group": SET_ASIDE if group is None else GROUPS.index(group),
        "dev_fraction": dev_fraction(str(number)),
        "marked": marked,
        "n_samples": round(duration_s * SAMPLE_RATE_HZ),
        "n_bytes": 10,
        "has_text": group is not None and group.has_text,
        "language": ("en", "de", "fr")[number % 3],
        "speaker": number % 7,
    }


def table(rows: list[dict[str, object]]) -> pa.Table:
    kinds = {"group": pa.int8(), "n_samples": pa.int64(), "n_bytes": pa.int64(), "speaker": pa.uint64()}
    columns = {name: pa.array([r[name] for r in rows], kinds.get(name)) for name in row(0, None)}
    columns |= {"marked": columns["marked"].cast(pa.bool_()), "has_text": columns["has_text"].cast(pa.bool_())}
    return pa.table(columns | {name: columns[name].cast(pa.string()) for name in ("id", "language")})


def placed(rows: pa.Table, max_dev_hours: float | None) -> tuple[Placement, GroupCounts, dict[str, list[str]]]:
    """Return the placement of rows, the counts of it, and the ids by split."""
    counts = count_groups(rows, groups_of(rows, NONE, None))
    placement = Placement.of(counts, max_dev_hours)
    groups = groups_of(rows, NONE, placement)
    ids: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, group in zip(rows["id"].to_pylist(), groups.tolist(), strict=True):
        split = placement.splits[group] if group != SET_ASIDE else None
        if split is not None:
            ids[split].append(name)
    return placement, count_groups(rows, groups), ids


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([None, *GROUPS[:-1]]), st.floats(1.0, 30.0), st.booleans()), max_size=40),
    st.floats(0.001, 0.3) | st.none(),
    st.integers(1, 40),
)
def test_counts_of_parts_are_those_of_the_whole(
    rows: list[tuple[Group | None, float, bool]], max_dev_hours: float | None, part_rows: int
):
    whole = table([row(n, g, s, m and g is not None and not g.spare) for n, (g, s, m) in enumerate(rows)])
    placement, counts, ids = placed(whole, max_dev_hours)
    summed = GroupCounts()
    for start in range(0, len(rows), part_rows):
        part = whole.slice(start, part_rows)
        summed.add(count_groups(part, groups_of(part, NONE, placement)))
    for name in ("utterances", "marked", "samples", "n_bytes", "without_text"):
        assert getattr(summed, name).tolist() == getattr(counts, name).tolist()
    assert summed.languages == counts.languages
    assert [different(s).tolist() for s in summed.speakers] == [different(s).tolist() for s in counts.speakers]
    by_split = placement.split_counts(counts)
    assert {split: c.utterances for split, c in by_split.items()} == {s: len(names) for s, names in ids.items()}
    assert placement.languages(counts).total() == sum(map(len, ids.values())) == placement.used(counts)[0]
    marked = {g.split for g, _, m in rows if m and g is not None and not g.spare}
    for n, (group, _, _) in enumerate(rows):
        where = [split for split, names in ids.items() if str(n) in names]
        if group is None or (group.spare and not group.has_text and group.split not in marked):
            assert where == []
        else:
            goes_to = "train" if group.spare and group.split in marked else group.split
            is_kept = goes_to != "dev" or dev_fraction(str(n)) < placement.kept_dev_share
            assert where == [goes_to] * is_kept


def test_spare_rows_are_marked_train_or_by_hash():
    spare, dev = row(0, Group("dev", spare=True)), row(1, Group("dev"), marked=True)
    placement, counts, ids = placed(table([spare, dev]), None)
    assert ids == {"train": ["0"], "dev": ["1"], "test": []}
    assert {s: c.marked for s, c in placement.split_counts(counts).items()} == {"train": 1, "dev": 1, "test": 0}
    placement, counts, ids = placed(table([spare]), None)
    assert ids["dev"] == ["0"] and placement.split_counts(counts)["dev"].marked == 0


def test_full_dev_is_about_as_long_as_allowed_and_a_fair_sample():
    rows = [row(i, Group("dev"), 18.0 if i % 2 else 54.0) for i in range(3000)]  # 30 h
    placement, counts, ids = placed(table(rows), 10.0)
    assert abs(placement.split_counts(counts)["dev"].seconds / 3600 - 10.0) < 1.0
    kept = [int(name) for name in ids["dev"]]
    assert int(counts.utterances.sum()) == 3000
    assert abs(sum(n % 2 for n in kept) / len(kept) - 0.5) < 0.06  # not by length, nor by place
    assert abs(sum(n < 1500 for n in kept) / len(kept) - 0.5) < 0.06


def test_a_smaller_limit_keeps_a_part_of_what_a_larger_one_keeps():
    rows = table([row(i, Group("dev")) for i in range(500)])  # 5 h
    small, large = (set(placed(rows, hours)[2]["dev"]) for hours in (0.5, 2.0))
    assert small < large and 20 < len(small) < 80


@pytest.mark.parametrize("max_dev_hours", [0.2, None])
def test_dev_below_the_limit_and_without_a_limit_is_kept(max_dev_hours: float | None):
    rows = table([row(i, Group("dev")) for i in range(10)])  # 0.1 h
    assert len(placed(rows, max_dev_hours)[2]["dev"]) == 10


def test_groups_of_assignments():
    found = Counter(
        group_of(SplitAssignment(split, spare=spare), has_text)
        for split in SPLITS
        for spare in (False, True)
        for has_text in (False, True)
        if split != "train" or not spare
    )
    assert found == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1}


def test_speakers_of_many_parts_are_merged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement_module, "_MAX_ARRAYS", 3)
    totals = GroupCounts()
    for number in range(20):
        rows = table([row(number, Group("train"))])
        totals.add(count_groups(rows, groups_of(rows, NONE, None)))
        assert len(totals.speakers[0]) <= 3
    assert different(totals.speakers[0]).tolist() == [1, 2, 3, 4, 5, 6]  # 0 is no name
