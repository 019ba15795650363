from pathlib import Path
from typing import Any

import pytest
from transformers import WhisperConfig

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models.layer_map import layer_maps
from askd_ray.models.load import load_config
from askd_ray.models.state_pairs import decoder_pairs


def pairs(weights: Path, layers: Any, n_shrunk: int = 0, **student: Any) -> dict[int, int]:
    """The student's layer by the teacher's layer, for students of tiny.en, which has four decoder layers."""
    recipe = Recipe.model_validate(
        {
            "teacher": {"model": str(weights)},
            "student": student,
            "targets": {"states": "all"},
            "objective": {"decoder_states": {"kind": "mse", "layers": layers}},
        }
    )
    maps = layer_maps(recipe.student, load_config(student.get("init", str(weights))))
    return decoder_pairs(recipe, maps[: n_shrunk + 1])


def test_all_layers_follow_the_teacher_layers_that_they_are_made_of(weights: Path):
    assert pairs(weights, "all") == {0: 0, 1: 1, 2: 2, 3: 3}
    assert pairs(weights, "all", decoder_layers=[0, 3]) == {0: 0, 3: 1}
    assert pairs(weights, "all", decoder_layers=[0, 1]) == {0: 0, 3: 1}  # the last with the teacher's last
    assert pairs(weights, "all", decoder_layers=[[0, 1], 2, 3]) == {1: 0, 2: 1, 3: 2}


def test_all_layers_follow_a_shrinking(weights: Path):
    shrink = [{"at": 0.3, "decoder_layers": [[0, 1], 2, 3]}, {"at": 0.6, "decoder_layers": [[0, 1], 3]}]
    found = [pairs(weights, "all", n, shrink=shrink) for n in range(3)]
    assert found == [{0: 0, 1: 1, 2: 2, 3: 3}, {1: 0, 2: 1, 3: 2}, {1: 0, 3: 1}]


def test_last_layer_and_given_pairs(weights: Path):
    assert pairs(weights, "last", decoder_layers=[0, 2]) == {-1: -1}
    assert pairs(weights, [[0, 1], [-1, -1]], decoder_layers=[0, 2, 3]) == {1: 0, 3: 2}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([[2, 0]], r"layers = \[\[2, 0\]\]: the student has decoder layers 0 to 1, the teacher 0 to 3; -1 is the last"),
        ([[0, -2]], r"the teacher 0 to 3"),
        ([[1, 3], [-1, 2]], r"a layer can be in one pair"),
        ([[0, 3], [1, -1]], r"a layer can be in one pair"),
    ],
)
def test_wrong_pairs_are_refused(weights: Path, layers: Any, message: str):
    with pytest.raises(AskdError, match=message):
        pairs(weights, layers, decoder_layers=[0, 3])


def test_all_layers_of_a_student_of_another_depth_are_refused(weights: Path, tmp_path: Path):
    WhisperConfig(**{**load_config(str(weights)).to_dict(), "decoder_layers": 2}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        AskdError, match=r"layers = all: student.init has 2 decoder layers and the teacher 4: give pairs"
    ):
        pairs(weights, "all", init=str(tmp_path))
    assert pairs(weights, [[0, 1], [1, 3]], init=str(tmp_path)) == {1: 0, 3: 1}
