from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scored import TEXTS, description_of_bundle, evaluation, hypotheses

from askd_ray.data.shards import write_table
from askd_ray.errors import AskdError
from askd_ray.evaluation.bundle_scores import evaluation_of_one, publish_scores
from askd_ray.evaluation.gate import check_gate
from askd_ray.evaluation.hypotheses import RAW, TEACHER, Hypothesis, read_hypotheses, to_table
from askd_ray.evaluation.scores import score
from askd_ray.files import read_json
from askd_ray.models.bundle import HYPOTHESES_FILE, check_hashes
from askd_ray.results.evaluation import Evaluation


def bundle(folder: Path, weights: str = "w") -> Path:
    (folder / "ctranslate2-int8").mkdir(parents=True)
    (folder / "ctranslate2-int8" / "model.bin").write_text(weights)
    description_of_bundle(folder)
    return folder


def test_scores_go_into_the_card_and_the_bundle_stays_whole(tmp_path: Path):
    made, scores = bundle(tmp_path / "b"), evaluation()
    n_files = check_hashes(made)
    publish_scores(made, scores, [*hypotheses(), replace(hypotheses()[0], condition="white@10")])
    assert read_hypotheses(made / HYPOTHESES_FILE) == [row for row in hypotheses() if row.model == "student"]
    card = (made / "README.md").read_text()
    assert "| test (in domain) | 3 | 20.00 (" in card and "| 10.00 (" in card and "Not evaluated" not in card
    assert "| student | served | 10.00 (" in card and "| 0 of 3 |" in card
    assert "-10.00 points" in card and "Out of domain: not scored" in card
    assert (
        "student: 9.83x (95 %: 9.10 to 10.40) as fast as teacher on the median of 3 clips, one at a time, on up" in card
    )
    assert read_json(made / "bundle.json")["scores"] == scores
    assert check_hashes(made) == n_files + 2
    publish_scores(made, scores, hypotheses())  # once more changes nothing
    assert check_hashes(made) == n_files + 2 and (made / "README.md").read_text() == card


def test_a_damaged_bundle_takes_no_scores(tmp_path: Path):
    made = bundle(tmp_path / "b")
    (made / "ctranslate2-int8" / "model.bin").write_text("other")
    with pytest.raises(AskdError, match=r"model\.bin is corrupt"):
        publish_scores(made, evaluation(), hypotheses())


def test_promote_compares_the_path_that_both_bundles_have(tmp_path: Path):
    """Bundles of an earlier version have only raw hypotheses."""

    def scored(name: str, rows: list[Hypothesis]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        write_table(folder / HYPOTHESES_FILE, to_table(rows))
        return folder

    reference, wrong = TEXTS["student"][0], "red green"
    right = [replace(hypotheses()[0], id=f"u{i}", reference=reference, hypothesis=reference) for i in range(30)]
    bad = [replace(row, hypothesis=wrong) for row in right]
    raw_right, raw_bad = ([replace(row, path=RAW) for row in rows] for rows in (right, bad))
    old = tmp_path / "old"
    old.mkdir()
    write_table(old / HYPOTHESES_FILE, to_table(bad).drop_columns(["path"]))
    check_gate(scored("raw is better", [*bad, *raw_right]), old)
    with pytest.raises(AskdError, match="does not beat"):
        check_gate(scored("served is better", [*right, *raw_bad]), old)
    current = scored("current", [*bad, *raw_right])
    check_gate(scored("as served", [*right, *raw_bad]), current)
    with pytest.raises(AskdError, match="does not beat"):
        check_gate(scored("raw only", [*bad, *raw_right]), current)


def of_a_study(n_wrong: dict[str, int], n: int = 30) -> tuple[Evaluation, list[Hypothesis]]:
    """Return what a study's evaluation gives: several students, of which the first one's speed was measured."""
    right, wrong = TEXTS["student"][0], "red green"
    rows = [
        replace(hypotheses()[0], model=model, id=f"u{i}", reference=right, hypothesis=wrong if i < bad else right)
        for model, bad in n_wrong.items()
        for i in range(n)
    ]
    first = next(name for name in n_wrong if name != TEACHER)
    speed = evaluation()["speed"]
    renamed: Any = {
        key: {first if n == "student" else n: v for n, v in speed[key].items()} for key in ("models", "speedup")
    }
    return {**score(rows, TEACHER), "speed": {**speed, **renamed}, "left_out": {}}, rows


def test_each_student_of_a_study_gets_its_own_scores_and_promote_takes_them(tmp_path: Path):
    evaluated, rows = of_a_study({"ce-0": 25, "askd-0": 2, TEACHER: 10})
    made = {name: bundle(tmp_path / name, name) for name in ("ce-0", "askd-0")}
    for name, folder in made.items():
        publish_scores(folder, *evaluation_of_one(evaluated, rows, name))
    scores = {name: read_json(folder / "bundle.json")["scores"] for name, folder in made.items()}
    for name, student_scores in scores.items():
        assert student_scores["models"] == [TEACHER, "student"]
        expected, actual = (
            evaluated["sets"]["test"]["models"][name],
            student_scores["sets"]["test"]["models"]["student"],
        )
        assert actual["wer"] == expected["wer"]
        assert {row.model for row in read_hypotheses(made[name] / HYPOTHESES_FILE)} == {"student"}
        assert "student: 9.83x" in (made[name] / "README.md").read_text()
    check_gate(made["askd-0"], made["ce-0"])
    with pytest.raises(AskdError, match="does not beat the served version"):
        check_gate(made["ce-0"], made["askd-0"])
