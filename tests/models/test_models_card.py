import pytest
import yaml
from scored import description_of

from askd_ray.config.objective import Objective
from askd_ray.config.presets import PRESETS
from askd_ray.models.card import model_card


@pytest.mark.parametrize("preset", PRESETS)
def test_the_card_describes_the_training_of_every_preset(preset: str):
    objective = Objective.model_validate({"preset": preset})
    card = model_card(description_of(objective))
    weight = objective.teacher_weight
    if weight.schedule == "constant":
        assert f"weight `a` is {weight.start:g} throughout" in card
    else:
        assert f"weight `a` goes {weight.schedule} from {weight.start:g} to {weight.end:g}" in card


def test_the_card_of_a_ctc_student_says_how_to_use_it_and_what_it_cannot_do():
    card = model_card({**description_of(Objective()), "reader": "ctc"})
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "onnx" and "ctc" in front["tags"] and "ctranslate2" not in front["tags"]
    assert "with a CTC head in place of the decoder" in card and 'model = askd.load("BUNDLE")' in card
    assert "faster_whisper" not in card and "AutoModelForSpeechSeq2Seq" not in card and "pad to 30 s" not in card
    assert all(word in card for word in ("translate", "prompt", "temperature", "timestamp tokens", "trained for en"))
    whisper = model_card(description_of(Objective()))
    assert "faster_whisper" in whisper and "CTC" not in whisper


def test_the_card_says_how_to_use_the_formats_that_there_are():
    described = description_of(Objective())
    plain, with_ggml = model_card(described), model_card({**described, "formats": ["transformers", "ggml"]})
    assert "whisper-cli" not in plain and "whisper.cpp" not in yaml.safe_load(plain.split("---")[1])["tags"]
    assert "whisper-cli -m BUNDLE/ggml/" in with_ggml and "0.3 s of silence" in with_ggml
    assert "whisper.cpp" in yaml.safe_load(with_ggml.split("---")[1])["tags"]
    with_onnx = model_card({**described, "formats": ["transformers", "onnx"]})
    assert "transformers.js" in yaml.safe_load(with_onnx.split("---")[1])["tags"]
    assert 'pipeline("automatic-speech-recognition", "onnx", { dtype: "q8" })' in with_onnx
    assert "whisper-cli" not in with_onnx
