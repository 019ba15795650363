from pathlib import Path

import pytest
from small_run import utterances

from askd_ray.errors import AskdError
from askd_ray.evaluation.speculative import speculative_scores
from askd_ray.models.load import load_whisper
from askd_ray.text.tokens import Tokens


@pytest.mark.slow
def test_a_model_as_its_own_draft(weights: Path, speech: Path):
    loaded, clips = load_whisper(str(weights)), utterances(speech, 3)
    found = speculative_scores(loaded, loaded, clips, silence_s=None, n_drafted=4)
    assert (found["clips"], found["identical"], found["acceptance_rate"]) == (3, 1.0, 1.0)
    assert found["drafted"] == found["accepted"] > 10 and 3.0 < found["tokens_per_pass"] <= 5.0
    medians = found["p50_ms"]
    assert found["speedup"]["value"] == pytest.approx(medians["teacher"] / medians["speculative"], abs=0.01)
    assert 0.2 < found["speedup"]["value"] < 2.0  # the draft costs as much as its teacher
    assert (found["device"], found["dtype"], found["drafted_per_turn"]) == ("cpu", "float32", 4)


def test_what_cannot_be_measured(weights: Path, speech: Path, tmp_path: Path):
    loaded = load_whisper(str(weights))
    with pytest.raises(AskdError, match="there is no clip"):
        speculative_scores(loaded, loaded, [], None)
    text = (weights / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('"<|fr|>"', '"<|fx|>"'), encoding="utf-8")
    with pytest.raises(AskdError, match="models of one vocabulary"):
        speculative_scores(loaded, (loaded[0], Tokens(tmp_path)), utterances(speech, 1), None)
