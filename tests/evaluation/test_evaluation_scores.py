import json
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_rows import make_row, make_rows

from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import Hypothesis, read_hypotheses, write_hypotheses
from askd_ray.evaluation.scores import score, score_path

LOOP = "a b c d e " * 3
A = [
    *make_rows({"the colour": {"student": "The color!", "teacher": "the"}}, speaker="s1"),
    *make_rows({"press pound": {"student": "press pound", "teacher": "press pound now"}}, speaker="s2", duration_s=2.0),
    *make_rows({"good bye now": {"student": "", "teacher": "good bye cow"}}, speaker="s2", duration_s=30.0, ended=True),
    *make_rows({"a b c d e": {"student": LOOP, "teacher": "a b c d e"}}, duration_s=31.0, ended=False),
]


def test_scores_of_a_set_made_by_hand():
    scores = score(A, "teacher")
    json.dumps(scores, allow_nan=False)
    assert (scores["baseline"], scores["normalizer"], scores["models"]) == (
        "teacher",
        "whisper",
        ["teacher", "student"],
    )
    (name, one), *_ = scores["sets"].items()
    assert (name, one["in_domain"], one["utterances"], one["words"]) == ("a", True, 4, 12)
    assert one["minutes"] == pytest.approx(64 / 60)
    student, teacher = one["models"]["student"], one["models"]["teacher"]
    # Case, punctuation and spelling are normalised away.
    assert [student[k] for k in ("substitutions", "deletions", "insertions", "n_words")] == [0, 3, 10, 12]
    assert [teacher[k] for k in ("substitutions", "deletions", "insertions", "n_words")] == [1, 1, 1, 12]
    assert (student["wer"], teacher["wer"]) == (13 / 12, 3 / 12)
    assert (student["insertion_rate"], teacher["insertion_rate"]) == (10 / 12, 1 / 12)
    assert (student["repeated_5grams"], teacher["repeated_5grams"]) == (6, 0)  # 11 5-grams, 5 different ones
    assert (student["runaways"], student["empty"], teacher["empty"]) == (1, 1, 0)
    assert student["ece"] is None and student["reliability"] == []
    assert one["against_baseline"]["student"]["value"] == pytest.approx(10 / 12)
    assert list(one["against_baseline"]) == ["student"]


def test_runaways_have_no_end_or_too_many_characters():
    outputs = {"a": ("a", True), "b": ("b b", False), "c": ("x" * 61, True), "d": ("x" * 60, None)}  # of 1 s: 30 * 2
    rows = [make_row("t", ref, text, ended=ended) for ref, (text, ended) in outputs.items()]
    assert score(rows, "t")["sets"]["a"]["models"]["t"]["runaways"] == 2
    silent = [make_row("t", "", "x" * n, set="non_speech", condition="hum", id=str(n), ended=True) for n in (61, 60, 0)]
    hallucinations = score([*rows, *silent], "t")["non_speech"]
    assert hallucinations is not None and hallucinations["models"]["t"]["runaways"] == 1


def test_raw_and_served_side_by_side():
    """The served path decides; a server has no raw transcripts."""
    served = make_rows(
        {
            "a b": {"teacher": "a b", "student": "a b", "server": "a b"},
            "c d": {"teacher": "c x", "student": "c d", "server": "c d"},
        }
    )
    raw = [replace(row, path="raw", hypothesis="x x", ended=False) for row in served if row.model == "student"]
    raw += [replace(row, path="raw") for row in served if row.model == "teacher"]
    scores = score([*raw, *served], "teacher")
    assert scores["models"] == ["teacher", "server", "student"]
    domain = scores["in_domain"]
    assert domain is not None and domain["macro"]["against_baseline"]["student"]["value"] == -0.25
    beside = scores["raw"]
    assert beside is not None and beside["models"] == ["teacher", "student"] and beside["in_domain"] is not None
    assert beside["in_domain"]["macro"]["against_baseline"]["student"]["value"] == 0.75
    assert beside["sets"]["a"]["models"]["student"]["runaways"] == 2
    assert beside == score_path(raw, "teacher")
    assert (
        score([row for row in [*raw, *served] if row.model != "teacher" or row.path != "raw"], "teacher")["raw"] is None
    )


def test_by_duration_and_by_speaker():
    student = score(A, "teacher")["sets"]["a"]["models"]["student"]
    buckets = [(b["low_s"], b["high_s"], b["utterances"], b["words"], b["wer"]) for b in student["by_duration"]]
    assert buckets == [(0, 2, 1, 2, 0.0), (2, 5, 1, 2, 0.0), (20, 30, 1, 3, 1.0), (30, None, 1, 5, 2.0)]
    speakers = student["by_speaker"]
    assert (speakers["speakers"], speakers["macro_wer"]) == (2, (0 + 3 / 5) / 2)
    assert speakers["worst"] == [
        {"speaker": "s2", "utterances": 2, "words": 5, "wer": 3 / 5},
        {"speaker": "s1", "utterances": 1, "words": 2, "wer": 0.0},
    ]


def test_what_the_data_do_not_tell():
    rows = make_rows({"a b": {"teacher": "a b"}, "(!)": {"teacher": "x"}}, duration_s=1.0)
    rows = [rows[0], replace(rows[1], duration_s=7.0)]
    teacher = score(rows, "teacher")["sets"]["a"]["models"]["teacher"]
    assert teacher["by_speaker"] is None and teacher["runaways"] == 0
    assert [b["wer"] for b in teacher["by_duration"]] == [0.0, None]  # the reference has no words
    assert teacher["empty"] == 0 and teacher["wer"] == 0.5


def test_the_worst_speakers():
    rows = [make_row("teacher", f"w{i}", "x" * (i % 2), id=str(i), speaker=f"s{i:02}") for i in range(8)]
    rows.append(make_row("teacher", "w w", "w w", speaker="s01"))
    worst = score(rows, "teacher", "none")["sets"]["a"]["models"]["teacher"]["by_speaker"]
    assert [s["speaker"] for s in worst["worst"]] == ["s00", "s02", "s03", "s04", "s05"]
    assert worst["macro_wer"] == pytest.approx((7 + 1 / 3) / 8)


def test_domains_apart():
    rows = [
        *make_rows({"a b c d": {"m": "a b c d", "t": "a b x x"}, "e f": {"m": "e f", "t": "e f"}}),
        *make_rows({"g h": {"m": "x x", "t": "g h"}}, set="b"),
        *make_rows({"i j": {"m": "i", "t": ""}}, set="c", in_domain=False),
    ]
    scores = score(rows, "t")
    inside, outside = scores["in_domain"], scores["out_of_domain"]
    assert (inside["sets"], inside["utterances"], inside["words"]) == (["a", "b"], 3, 8)
    macro, pooled = inside["macro"], inside["pooled"]
    assert [macro["models"][n]["wer"] for n in "mt"] == [(0 + 1) / 2, (2 / 6 + 0) / 2]
    assert [pooled["models"][n]["wer"] for n in "mt"] == [2 / 8, 2 / 8]
    assert macro["against_baseline"]["m"]["value"] == pytest.approx(1 / 3)
    assert pooled["against_baseline"]["m"]["value"] == 0.0
    # A set by itself is its own mean and its own pool, draws and all.
    one = scores["sets"]["c"]
    assert outside["macro"]["against_baseline"] == outside["pooled"]["against_baseline"] == one["against_baseline"]
    assert outside["pooled"]["models"]["m"]["wer_ci95"] == one["models"]["m"]["wer_ci95"]
    assert score([row for row in rows if row.in_domain], "t")["out_of_domain"] is None


def test_conditions_over_their_sets():
    clean = [
        *make_rows({"a b c d": {"m": "a b c d", "t": "a b c x"}, "e f": {"m": "e x", "t": "e f"}}),
        *make_rows({"g h": {"m": "g h", "t": "g h"}}, set="b"),
    ]
    noisy = [replace(row, condition="white@10", hypothesis="") for row in clean if row.id != "e f"]
    noisy += [replace(row, condition="white@-5") for row in noisy]
    slow = [replace(row, condition="speed@0.9", duration_s=1.1) for row in clean if row.set == "b"]
    conditions = score([*clean, *noisy, *slow], "t")["conditions"]
    assert list(conditions) == ["speed@0.9", "white@-5", "white@10"]
    white = conditions["white@10"]
    assert (white["sets"], white["utterances"], white["words"]) == (["a", "b"], 2, 6)
    assert white["models"]["m"] == {"wer": 1.0, "wer_ci95": [1.0, 1.0]}
    assert white["clean_wer"] == {"t": 1 / 6, "m": 0.0}  # of the same two utterances
    assert white["against_baseline"]["m"]["value"] == 0.0
    assert (conditions["speed@0.9"]["sets"], conditions["speed@0.9"]["clean_wer"]["m"]) == (["b"], 0.0)
    with pytest.raises(AskdError, match="'a b c d' of a has a row under the condition white@-5 but no clean row"):
        score([row for row in [*clean, *noisy] if row.id != "a b c d" or row.condition != "clean"], "t")


def test_where_nobody_speaks():
    clips = [("silence", "1", ""), ("silence", "2", " Thanks for watching!"), ("music", "1", "(music)")]
    rows = [
        make_row(model, "", text if model == "m" else "", set="non_speech", condition=kind, id=i, duration_s=20.0)
        for model in "mt"
        for kind, i, text in clips
    ]
    scores = score([*rows, *make_rows({"a": {"m": "a", "t": "a"}})], "t")
    json.dumps(scores, allow_nan=False)
    found = scores["non_speech"]
    assert (found["clips"], found["minutes"]) == (3, 1.0)
    assert found["models"]["m"] == {
        "clips_with_words": 1,
        "share_with_words": 1 / 3,
        "words": 3,
        "words_per_minute": 3.0,
        "runaways": 0,
        "by_kind": {
            "music": {"clips": 1, "clips_with_words": 0, "texts": []},
            "silence": {"clips": 2, "clips_with_words": 1, "texts": [{"id": "2", "text": " Thanks for watching!"}]},
        },
    }
    assert found["models"]["t"]["words"] == 0
    assert list(scores["sets"]) == ["a"] and scores["conditions"] == {}
    assert score(rows, "t")["sets"] == {}
    assert score(make_rows({"a": {"t": "a"}}), "t")["non_speech"] is None


_words = st.lists(st.sampled_from(["yes", "no", "up", "down"]), max_size=6).map(" ".join)
_clips = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["clean", "white@0"]), _words, _words, _words),
    min_size=1,
    max_size=10,
)


def rows_of(clips: list[tuple[str, ...]]) -> list[Hypothesis]:
    """Clean rows of all clips, noisy ones of some, by ``t``, ``m`` and ``t2``, which says what ``t`` says."""
    rows = list[Hypothesis]()
    for i, (name, condition, reference, hypothesis, other) in enumerate(clips):
        given_ = {
            "set": name,
            "in_domain": name == "a",
            "id": str(i),
            "speaker": f"s{i % 3}",
            "duration_s": 3.0 * i + 1,
        }
        for model, text in (("t", hypothesis), ("t2", hypothesis), ("m", other)):
            tokens = tuple(f" {word}" for word in text.split())
            confidence = {"token_texts": tokens, "token_probs": tuple(i % 8 / 8 for _ in tokens)}
            for where in {"clean", condition}:
                rows.append(make_row(model, reference + " word", text, condition=where, **given_, **confidence))
    return rows


@settings(max_examples=20, deadline=None)
@given(_clips, st.randoms(use_true_random=False))
def test_order_and_parts_do_not_matter(clips: list[tuple[str, ...]], random):
    rows = rows_of(clips)
    shuffled = random.sample(rows, len(rows))
    at = random.randrange(len(rows) + 1)
    assert score(shuffled[at:] + shuffled[:at], "t") == score(rows, "t")


@settings(max_examples=20, deadline=None)
@given(_clips)
def test_a_model_against_itself_and_counts_against_jiwer(clips: list[tuple[str, ...]]):
    rows = rows_of(clips)
    scores = score(rows, "t", "none")
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "p_improvement": 0.0}
    domains = [scores[place] for place in ("in_domain", "out_of_domain") if scores[place]]
    comparisons = [*scores["sets"].values(), *scores["conditions"].values()]
    for comparison in (*comparisons, *(domain[kind] for domain in domains for kind in ("macro", "pooled"))):
        assert comparison["against_baseline"]["t2"] == nothing
        assert comparison["models"]["t"] == comparison["models"]["t2"]
        low, high = comparison["models"]["m"]["wer_ci95"]
        assert low <= high
    for name, one in scores["sets"].items():
        of = [row for row in rows if (row.model, row.set, row.condition) == ("m", name, "clean")]
        expected = jiwer.process_words([row.reference for row in of], [row.hypothesis for row in of])
        found = one["models"]["m"]
        assert found["wer"] == pytest.approx(expected.wer)
        assert found["insertions"] == expected.insertions
        weighted = [b["wer"] * b["words"] for b in found["by_duration"]]
        assert sum(weighted) == pytest.approx(found["wer"] * one["words"])
        confidence = np.concatenate([row.token_probs for row in of])
        assert sum(b["tokens"] for b in found["reliability"]) == confidence.size


def test_scores_from_parquet_are_the_same(tmp_path: Path):
    rows = rows_of([("a", "white@0", "yes", "yes", "no"), ("b", "clean", "up down", "up", "")])
    path = tmp_path / "hypotheses.parquet"
    write_hypotheses(path, rows)
    again, first = score(read_hypotheses(path), "t"), score(rows, "t")
    assert again["sets"]["b"] == first["sets"]["b"]
    assert again["conditions"] == first["conditions"]
