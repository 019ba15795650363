"""Which split rows end up in, through the whole stage."""

import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.config.schema import Recipe
from askd_ray.data.prepare import prepare
from askd_ray.data.schema import SPLITS, Utterance
from askd_ray.data.shards import read_utterances
from askd_ray.data.split import normalize_speaker
from askd_ray.errors import AskdError
from askd_ray.runs import Run

# At these shares the hash has alice in dev, carol in test, and erin in train.
QUARTERS = {"dev_share": 0.25, "test_share": 0.25}
BY_HASH = {"alice": "dev", "carol": "test", "erin": "train"}


@lru_cache
def noise(seed: int, seconds: float = 0.5) -> bytes:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, max(1, int(seconds * 16_000))).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()


def prepared(root: Path, rows: Sequence[dict[str, Any]], **sections: Any) -> tuple[dict[str, Any], Run]:
    """Prepare rows of a manifest; a row's id is its number."""
    folder = root / "clips"
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for number, row in enumerate(rows):
        row = {"id": str(number), "audio": f"{number}.wav", "text": f"text {number}", "bytes": noise(number)} | row
        write(folder / row["audio"], row.pop("bytes"))
        lines.append(json.dumps(row) + "\n")
    write(folder / "manifest.jsonl", "".join(lines).encode())
    data = {"sources": [{"path": str(folder)}], "derive": None, **QUARTERS, **sections.pop("data", {})}
    recipe = Recipe.model_validate({"name": "mine", "runs_root": str(root / "runs"), "data": data, **sections})
    return prepare(recipe), Run(recipe)


def write(file: Path, content: bytes) -> None:
    """Write a file unless it is there already: another time of change would be other data."""
    if not file.is_file() or file.read_bytes() != content:
        file.write_bytes(content)


def splits(run: Run) -> dict[str, str]:
    return {u.id: u.split for u in utterances(run)}


def utterances(run: Run) -> list[Utterance]:
    found: list[Utterance] = []
    for split in SPLITS:
        if run.shards.files(f"{split}-*"):
            found += read_utterances(run.shards, split)
    return found


def test_split_of_the_data_is_used(tmp_path: Path):
    rows = [{"speaker": name, "split": split} for split in ("test", "dev", "train") for name in BY_HASH]
    result, run = prepared(tmp_path, rows)
    assert splits(run) == {str(i): split for i, split in enumerate(["test"] * 3 + ["dev"] * 3 + ["train"] * 3)}
    assert result["marked"] == {"train": 3, "dev": 3, "test": 3}
    assert result["speakers_in_several_splits"] == 3


@pytest.mark.parametrize("order", [1, -1], ids=["the marks come last", "the marks come first"])
@pytest.mark.parametrize("brought", ["dev", "test"])
def test_missing_split_is_hashed_out_of_train(tmp_path: Path, brought: str, order: int):
    rows = [{"speaker": name, "split": "train"} for name in BY_HASH for _ in range(3)]
    rows += [{"speaker": "frank", "split": brought}]
    result, run = prepared(tmp_path, rows[::order], data={"utterances_per_shard": 2})
    expected = {u.id: u.split for u in utterances(run)}
    by_speaker = {u.speaker: u.split for u in utterances(run)}
    assert len(expected) == 10
    assert by_speaker == {**BY_HASH, {"dev": "alice", "test": "carol"}[brought]: "train", "frank": brought}
    lacking = {"dev": "test", "test": "dev"}[brought]
    assert result["marked"] == {"train": 6, brought: 1, lacking: 0}
    assert result["utterances"] == {"train": 6, brought: 1, lacking: 3}
    assert [f.name for f in run.shards.files("*.parquet")] == sorted(
        [*(f"train-0000{i}.parquet" for i in range(3)), f"{brought}-00000.parquet"]
        + [f"{lacking}-0000{i}.parquet" for i in range(2)]
    )


def test_data_with_only_train_rows_are_split_by_hash(tmp_path: Path):
    rows = [{"speaker": name} for name in BY_HASH for _ in range(3)]
    silent, run = prepared(tmp_path, rows)
    expected = splits(run)
    marked, run = prepared(tmp_path, [{**row, "split": "train"} for row in rows])
    assert splits(run) == expected and set(expected.values()) == set(SPLITS)
    assert marked["utterances"] == silent["utterances"] and marked["marked"] == {"train": 3, "dev": 0, "test": 0}


def test_unknown_split_is_not_trained_on(tmp_path: Path):
    rows = [*({"speaker": name} for name in BY_HASH), {"split": "ood"}]
    result, run = prepared(tmp_path, rows, data={"max_quarantine_share": 0.3})
    assert result["quarantined"] == {"unknown split": 1} and "3" not in splits(run)


def test_unlabelled_train_rows_are_kept_with_given_dev_and_test(tmp_path: Path):
    unlabelled = [{"speaker": name, "split": "train", "text": ""} for name in BY_HASH]
    rows = [*unlabelled, {"split": "dev"}, {"split": "test"}, {"split": "test", "text": ""}]
    result, run = prepared(tmp_path, rows, targets={"kind": "pseudo"})
    assert splits(run) == {"0": "train", "1": "train", "2": "train", "3": "dev", "4": "test"}
    assert result["quarantined"] == {"no reference for the test split": 1} and result["without_text"] == 3
    rows = [*unlabelled, *({"speaker": name, "split": "train"} for name in BY_HASH)]
    result, run = prepared(tmp_path, rows, targets={"kind": "pseudo"})
    assert splits(run) == {"2": "train", "3": "dev", "4": "test", "5": "train"}
    assert result["quarantined"] == {"no reference for the dev split": 1, "no reference for the test split": 1}


def test_few_speakers_are_refused_or_split_by_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"speaker": "erin"} for _ in range(12)]
    message = r"no dev rows among 12 utterances of 1 speakers, and `askd distill` .*--set data\.split_by=text"
    with pytest.raises(AskdError, match=message) as caught:
        prepared(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert not Run(Recipe(name="mine", runs_root=str(tmp_path / "runs"))).shards.files("*.parquet")
    result, _ = prepared(tmp_path, rows, data={"split_by": "text"})
    assert min(result["utterances"].values()) > 0 and result["speakers"] == {"train": 1, "dev": 1, "test": 1}
    assert "1 speakers are in more than one split, since the rows are split by text" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("speaker", "message"),
    [("alice", "no train rows among 2 .*`askd distill` needs train rows"), ("erin", "no dev rows among 2")],
)
def test_empty_split_is_refused(tmp_path: Path, speaker: str, message: str):
    with pytest.raises(AskdError, match=f"prepare: {message}"):
        prepared(tmp_path, [{"speaker": speaker}, {"speaker": speaker}])


def test_empty_test_split_is_refused_only_when_scored(tmp_path: Path):
    rows = [{"speaker": "alice"}, {"speaker": "erin"}]
    with pytest.raises(AskdError, match=r"no test rows among 2 .*evaluate\.split is test.*--set evaluate\.split=dev"):
        prepared(tmp_path, rows)
    prepared(tmp_path, rows, evaluate={"split": "dev"})
    with pytest.raises(AskdError, match="no test rows"):  # the shards are finished: what is asked of them is not
        prepared(tmp_path, rows)


def test_zero_share_is_allowed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result, _ = prepared(tmp_path, [{}], data={"dev_share": 0.0, "test_share": 0.0})
    assert result["utterances"] == {"train": 1, "dev": 0, "test": 0}
    out = " ".join(capsys.readouterr().out.split())
    assert "No dev rows, since data.dev_share = 0" in out and "No test rows, since data.test_share = 0" in out


def test_dev_beyond_its_limit_is_set_aside_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"speaker": name} for name in ("alice", "erin") for _ in range(12)]
    settings = {"dev_share": 0.25, "test_share": 0.0, "max_dev_hours": 3.0 / 3600}  # half of its 6 s
    evaluate = {"split": "dev"}
    rows = [{**row, "split": "dev" if row["speaker"] == "alice" else "train"} for row in rows]
    result, run = prepared(tmp_path, rows, data=settings, evaluate=evaluate)
    n_left_out = result["quarantined"]["more dev than data.max_dev_hours"]
    assert 2 <= n_left_out <= 10 and result["utterances"] == {"train": 12, "dev": 12 - n_left_out, "test": 0}
    assert result["read"] == 24 == sum(result["utterances"].values()) + n_left_out
    assert all(u.speaker == "erin" for u in utterances(run) if u.split == "train")
    set_aside = [json.loads(line)["id"] for line in (run.shards / "quarantine.jsonl").read_bytes().splitlines()]
    assert sorted([*set_aside, *splits(run)]) == sorted(map(str, range(24)))
    out = " ".join(capsys.readouterr().out.split())
    assert f"{n_left_out} dev utterances are not used, since data.max_dev_hours" in out and "dev_share =" not in out
    unmarked = [{**row, "split": ""} for row in rows]
    result, _ = prepared(tmp_path, unmarked, data=settings | QUARTERS, evaluate=evaluate)
    share = 0.25 * result["utterances"]["dev"] / 12
    assert f"with data.dev_share = {share:.2g} most of them become" in " ".join(capsys.readouterr().out.split())


def test_limit_that_leaves_no_dev_is_refused(tmp_path: Path):
    rows = [{"speaker": name} for name in BY_HASH]
    with pytest.raises(AskdError, match=r"no dev rows .*raise data\.max_dev_hours = 1e-09"):
        prepared(tmp_path, rows, data={"max_dev_hours": 1e-9})


def test_recording_is_in_one_split(tmp_path: Path):
    rows = [{"split": "train"}, {"split": "dev"}, {"split": "test"}, {"split": "test", "bytes": noise(0), "text": "x"}]
    result, run = prepared(tmp_path, rows, data={"max_quarantine_share": 0.3})
    assert result["quarantined"] == {"duplicate audio": 1} and set(splits(run)) == {"0", "1", "2"}
    (line,) = [json.loads(line) for line in (run.shards / "quarantine.jsonl").read_bytes().splitlines()]
    assert line["id"] == "3" and line["detail"] == "the same as 0" and line["source"].endswith("manifest.jsonl:4")


def test_undecodable_names_are_quarantined(tmp_path: Path):
    rows = [
        *({"speaker": name} for name in BY_HASH),
        {"id": "a\ud800b"},
        {"text": "half \ud83d"},
        {"speaker": "\ud800"},
    ]
    result, run = prepared(tmp_path, rows, data={"max_quarantine_share": 0.5})
    assert sum(result["quarantined"].values()) == 3
    assert len((run.shards / "quarantine.jsonl").read_bytes().splitlines()) == 3


def test_languages_are_normalised_and_unknown_ones_quarantined(tmp_path: Path):
    spellings = ["en", "English", "en-US", "german", "DE", "Klingon"]
    rows = [*({"speaker": name} for name in BY_HASH), *({"language": name} for name in spellings)]
    result, run = prepared(tmp_path, rows, teacher={"model": "some/model"})
    assert result["languages"] == {"en": 6, "de": 2}
    assert {u.id: u.language for u in utterances(run)} == {**dict.fromkeys("012345", "en"), "6": "de", "7": "de"}
    (line,) = [json.loads(line) for line in (run.shards / "quarantine.jsonl").read_bytes().splitlines()]
    assert (line["id"], line["reason"]) == ("8", "unknown language") and "'Klingon'" in line["detail"]


def test_language_unknown_to_the_teacher_is_refused(tmp_path: Path):
    rows = [*({"speaker": name} for name in BY_HASH), {"language": "german"}]
    message = r"row 3: 1 in 'de', and teacher\.model wheel:tiny\.en knows only 'en'"
    with pytest.raises(AskdError, match=message):
        prepared(tmp_path, rows, teacher={"model": "wheel:tiny.en"})
    prepared(tmp_path, rows, teacher={"model": "some/model"})  # nobody here knows its languages
    with pytest.raises(AskdError, match=r"the data have 1 in 'de', and teacher"):  # finished, but not for this teacher
        prepared(tmp_path, rows, teacher={"model": "wheel:tiny.en"})


def test_source_language_is_checked(tmp_path: Path):
    source = {"path": str(tmp_path), "language": "Englisch"}
    with pytest.raises(AskdError, match=r"data\.sources\[0\] .*'Englisch' is none of .*did you mean 'english'"):
        prepared(tmp_path, [{}], data={"sources": [source]})


_rows = st.fixed_dictionaries(
    {
        "speaker": st.sampled_from(["", "alice", "Alice ", "carol", "CAROL", "erin", "dave"]),
        "text": st.sampled_from(["", "...", "words", "other words", "caf\u00e9", "<unk>"]),
        "split": st.sampled_from(["", "train", "dev", "test", "ood"]),
        "language": st.sampled_from(["en", "English", "EN-us", "klingon", ""]),
        "bytes": st.builds(noise, st.integers(100, 130), st.sampled_from([0.00001, 0.5, 1.0])),
    }
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)  # it decodes audio and writes files
@given(st.lists(_rows, max_size=12), st.sampled_from(["reference", "pseudo"]), st.sampled_from(["speaker", "text"]))
def test_every_row_is_in_one_allowed_place(rows: list[dict[str, Any]], kind: str, split_by: str):
    # One good row for each split, whether the speaker decides or the text: "go" is train, "right" dev, "left" test.
    by_speaker = [{"speaker": name, "text": "words"} for name in BY_HASH]
    by_text = [{"speaker": "", "text": name} for name in ("go", "right", "left")]
    rows = [*by_speaker, *by_text, *rows]
    with tempfile.TemporaryDirectory() as folder:
        data = {"split_by": split_by, "max_quarantine_share": 1.0, "utterances_per_shard": 3}
        result, run = prepared(Path(folder), rows, data=data, targets={"kind": kind})
        found = utterances(run)
        set_aside = [json.loads(line) for line in (run.shards / "quarantine.jsonl").read_bytes().splitlines()]
    assert result["read"] == len(rows) == sum(result["utterances"].values()) + sum(result["quarantined"].values())
    assert sorted([*(u.id for u in found), *(line["id"] for line in set_aside)]) == sorted(map(str, range(len(rows))))
    assert {u.language for u in found} == {"en"}
    assert kind == "pseudo" or all(u.text for u in found)
    marks = {u.id: rows[int(u.id)].get("split", "") for u in found}
    brought = set(marks.values())
    of_speaker: dict[str, set[str]] = defaultdict(set)
    for u in found:
        assert u.split == "train" or u.text
        assert marks[u.id] in ("", u.split) or (marks[u.id] == "train" and u.split not in brought)
        if u.speaker and split_by == "speaker":
            of_speaker[normalize_speaker(u.speaker)].add(marks[u.id] and "marked")
            of_speaker[normalize_speaker(u.speaker)].add(u.split)
    assert all(len(places) == 2 for places in of_speaker.values() if "marked" not in places)  # "" and its split
