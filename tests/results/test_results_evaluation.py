import json
from pathlib import Path

import pytest
from scored import evaluation

from askd_ray.errors import AskdError
from askd_ray.files import write_json
from askd_ray.results.evaluation import checked, read_evaluation
from askd_ray.results.wer import domains


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    write_json(tmp_path / "scores.json", {**evaluation(), "added_later": 1})
    found = read_evaluation(tmp_path / "scores.json")
    assert found == {**json.loads(json.dumps(evaluation())), "added_later": 1}
    assert list(domains(found)) == ["in domain"]


def test_an_incomplete_record_is_refused_in_one_line():
    record = json.loads(json.dumps(evaluation()))
    del record["speed"]["hardware"]["cpu"]
    with pytest.raises(
        AskdError, match=r"^run small: speed\.hardware\.cpu: another version .* run `askd evaluate` again"
    ):
        checked(record, "run small")
