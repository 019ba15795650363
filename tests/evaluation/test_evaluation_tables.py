from dataclasses import replace

from hypothesis_rows import make_row, make_rows
from rich.console import Console

from askd_ray.evaluation.scores import score
from askd_ray.evaluation.tables import table, verdicts

WORSE = [*make_rows({f"word {i}": {"teacher": "word x", "student": f"word {i}"} for i in range(30)})]
OUTSIDE = [
    *make_rows({"a b": {"teacher": "a b", "student": "a x"}, "c d": {"teacher": "c x", "student": "c d"}}),
    *make_rows({"e f": {"teacher": "e f", "student": "e f"}}, set="b"),
]
OUTSIDE = [replace(row, set=f"far_{row.set}", in_domain=False) for row in OUTSIDE]


def shown(rows: list) -> str:
    console = Console(width=300, record=True)
    console.print(table(score(rows, "teacher")))
    return console.export_text()


def test_headline_and_verdict_come_first():
    scores = score([*WORSE, *OUTSIDE], "teacher")
    inside, outside = verdicts(scores)
    assert inside == (
        "student against teacher, in domain (1 set): lower WER: yes, -50.00 points (95 %: -50.00 to -50.00), "
        "better with probability 1.00"
    )
    assert outside.startswith(
        "student against teacher, out of domain (2 sets): lower WER: cannot tell (95 % interval contains 0), +0.00 poi"
    )
    assert "; word-weighted: cannot tell, +0.00 points" in outside
    lines = [line.rstrip() for line in shown([*WORSE, *OUTSIDE]).splitlines()]
    assert lines[0].startswith("WER (mean of the sets, 95 %), runaways") and lines[7:9] == [inside, outside]
    swapped = [replace(row, model={"student": "teacher", "teacher": "student"}[row.model]) for row in WORSE]
    assert "lower WER: no, +50.00 points" in verdicts(score(swapped, "teacher"))[0]


def test_what_the_tables_say():
    text = shown([*WORSE, *OUTSIDE])
    (row,) = [line.split("│") for line in text.splitlines() if "│ a " in line]
    assert [cell.strip() for cell in row[1:-1]] == ["a", "30", "60", "50.00 (50.00 to 50.00)", "0.00 (0.00 to 0.00)"]
    assert "out of domain, mean of sets" in text and "out of domain, word-weighted" in text
    assert "in domain, mean" not in text.replace("out of domain, mean", "")  # of one set there is none
    assert "changed audio" not in text and "a minute" not in text


def test_conditions_and_silence():
    noisy = [replace(row, condition="white@0", hypothesis="") for row in WORSE]
    silent = [
        make_row(m, "", "oh well", set="non_speech", condition="hum", duration_s=30.0) for m in ("teacher", "student")
    ]
    text = shown([*WORSE, *noisy, *silent])
    assert "white@0" in text and "100.00 (100.00 to 100.00)" in text
    assert text.count("1 of 1 clip, 4.00 a minute") == 2
