from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.data import Data
from askd_ray.data.split import SplitAssignment, assign_split, hash_split


def test_splits_are_the_same_on_every_machine():
    """From `printf salice | sha256sum`: its first bytes over their range. Another hash would move the held-out set."""
    data = Data(dev_share=0.25, test_share=0.25)
    names = ["alice", "bob", "carol", "dave", "erin", "frank"]
    speakers = [hash_split(name, "", data) for name in names]  # 0.37, 0.27, 0.24, 0.30, 0.56, 0.94
    texts = [hash_split("", name, data) for name in names]  # with t for s: 0.88, 0.69, 0.05, 0.14, 0.63, 0.07
    assert speakers == ["dev", "dev", "test", "dev", "train", "train"]
    assert texts == ["train", "train", "test", "test", "train", "test"]
    by_text = data.model_copy(update={"split_by": "text"})
    assert [hash_split("alice", name, by_text) for name in names] == texts


@pytest.mark.parametrize("spelling", ["Alice", "ALICE", " alice", "alice \n"])
def test_speaker_spelling_is_normalised(spelling: str):
    data = Data(dev_share=0.25, test_share=0.25)
    assert hash_split(spelling, "", data) == "dev"


_words = st.text(alphabet="abcdeABCDE0", min_size=1, max_size=8)


@given(_words, _words, _words, st.floats(0, 0.45), st.floats(0, 0.45))
def test_split_by_speaker_else_by_text(speaker: str, one: str, other: str, dev: float, test: float):
    data = Data(dev_share=dev, test_share=test)
    assert hash_split(speaker, one, data) == hash_split(speaker, other, data)
    assert hash_split("", f"{one} {other}", data) == hash_split("", f" {one.upper()}\t{other.lower()}\n", data)


def test_split_shares():
    data = Data(dev_share=0.1, test_share=0.2)
    counts = Counter(hash_split(f"speaker {i}", "", data) for i in range(5_000))
    assert counts["dev"] / 5_000 == pytest.approx(0.1, abs=0.02)
    assert counts["test"] / 5_000 == pytest.approx(0.2, abs=0.02)


def test_zero_share_gives_no_rows():
    assert {hash_split(f"{i}", "", Data(dev_share=0.0, test_share=0.0)) for i in range(500)} == {"train"}


def test_split_of_the_source_overrides_the_hash():
    data = Data(dev_share=0.25, test_share=0.25)  # alice dev, carol test, erin train
    for name in ("alice", "carol", "erin"):
        assert assign_split("test", name, "", data) == SplitAssignment("test", marked=True)
        assert assign_split("dev", name, "", data) == SplitAssignment("dev", marked=True)
    assert assign_split("train", "erin", "", data) == SplitAssignment("train", marked=True)
    assert assign_split("train", "alice", "", data) == SplitAssignment("dev", spare=True)
    assert assign_split("train", "carol", "", data) == SplitAssignment("test", spare=True)
    assert assign_split("", "alice", "", data) == SplitAssignment("dev")
    assert assign_split("", "", "", data) == SplitAssignment("train")  # nothing that a hash could decide on
