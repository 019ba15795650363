import re
from pathlib import Path
from typing import Any

import pytest
from parsed import Page, read_markdown
from reported import finish, model_rows, write_run

from askd_ray.evaluation.report.write import report
from askd_ray.files import read_json
from askd_ray.runs import Run
from askd_ray.study import over_seeds

pytestmark = pytest.mark.slow
ARMS = {"ce": {"preset": "ce"}, "askd": {"preset": "askd"}, "adakd": {"preset": "adakd"}}
RATES = {"ce": (0.5, 0.52, 0.48), "askd": (0.05, 0.06, 0.04), "adakd": (0.1, 0.5, 0.3)}


@pytest.fixture
def study(tmp_path: Path) -> Run:
    """A study of three arms and three seeds: one is worse than the teacher, one better, and one goes by the seed."""
    run = write_run(tmp_path, "small", study={"arms": ARMS, "against": "ce", "seeds": [0, 1, 2]})
    models = {f"{arm}-{seed}": rates[seed] for arm, rates in RATES.items() for seed in range(3)}
    finish(run, model_rows(run, {"teacher": 0.3, **models}, {"white@0": 0.2}))
    assert run.recipe.study is not None
    scores: Any = read_json(run.path / "evaluate" / "scores.json")
    run.finish("study", "", {"comparison": over_seeds(scores, run.recipe.study)}, run.begin("study"))
    return run


def test_the_verdict_is_over_seeds(study: Run):
    page = report([str(study.path)])
    markdown, html = page.with_suffix(".md").read_text(), page.read_text()
    answers = re.findall(r"^- Is the WER of (\w+) over 3 seeds .*, (in|out of) domain\? \*\*(.*)\.\*\*", markdown, re.M)
    assert {arm: answer for arm, place, answer in answers if place == "in"} == {
        "ce": "No",
        "askd": "Yes",
        "adakd": "Cannot tell",
    }
    assert len(answers) == 6 and "sign-flip test p = 0.250" in markdown
    table = next(t for t in read_markdown(markdown).tables if t[0][1] == "arm")
    assert [row[1] for row in table[1:4]] == ["askd", "adakd", "ce"]  # the best first
    comparison = study.result("study")["comparison"]["in_domain"]
    best = comparison["arm"]["presets"]["askd"]
    assert table[1][2] == f"{100 * best['mean']:.2f} ({100 * best['std']:.2f})"
    assert table[1][4].startswith(f"{100 * comparison['arm']['differences']['askd']['value']:+.2f} (")
    assert table[1][5].startswith(f"{100 * comparison['teacher']['differences']['askd']['value']:+.2f} (")
    assert table[3][4] == ""  # nothing is compared with itself
    assert Page(html).seen.tables == read_markdown(markdown).tables
    assert "](report/over-seeds-small.png)" in markdown and (page.parent / "report/over-seeds-small.png").is_file()


def test_seeds_of_an_arm_share_its_colour_and_the_students_their_worst_clips(study: Run):
    page = report([str(study.path)])
    html = page.read_text()
    assert len(re.findall("<h2.*>Worst utterances</h2>", html)) == 1
    clips = html.split("<article>")[1:]
    assert {clip.count("<dt>") for clip in clips} == {1 + 1 + 5}  # the reference, the teacher, the five worst
    used = set(re.findall(r"var\(--model-(\d)\)", html.split("<main>")[1]))
    assert used == {"0", "1", "2", "3"}
