"""Picking, merging and shrinking layers, on tiny.en: layers are compared by weights and by outputs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tiny_run import Model
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.audio.decode import decode
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.config.student import Layers, Student
from askd_ray.errors import AskdError
from askd_ray.models.layer_map import LayerMap, apply_layer_map, build_student, keep_layers, layer_maps, unmerged_groups
from askd_ray.models.load import load_config
from askd_ray.models.windows import WindowedWhisper
from askd_ray.text.tokens import Tokens


@pytest.fixture(scope="module")
def log_mel(speech: Path) -> torch.Tensor:
    row = json.loads((speech / "manifest.jsonl").read_text().splitlines()[10])
    waveform = decode((speech / row["audio"]).read_bytes())
    return log_mel_windows([waveform], [320 * 150])


def hidden(model: WhisperForConditionalGeneration, tokens: Tokens, log_mel: torch.Tensor) -> torch.Tensor:
    ids = torch.tensor([[*tokens.prompt(), *tokens.encode("Please hold.")]])
    with torch.no_grad():
        return WindowedWhisper(model)(log_mel, ids).hidden


def test_keeping_all_layers_changes_nothing(tiny_en: Model, log_mel: torch.Tensor):
    model, tokens = tiny_en
    for layers in (None, (0, 1, 2, 3)):
        again = keep_layers(model, layers, layers)
        assert torch.equal(hidden(again, tokens, log_mel), hidden(model, tokens, log_mel))
    assert torch.equal(
        hidden(apply_layer_map(model, LayerMap(unmerged_groups(4), unmerged_groups(4))), tokens, log_mel),
        hidden(*tiny_en, log_mel),
    )


def test_student_computes_with_the_kept_layers(tiny_en: Model, log_mel: torch.Tensor):
    model, tokens = tiny_en
    by_hand = copy.deepcopy(model)
    del by_hand.model.decoder.layers[1:3], by_hand.model.encoder.layers[2]
    picked = keep_layers(model, (0, 1, 3), (0, 3))
    assert torch.equal(hidden(picked, tokens, log_mel), hidden(by_hand, tokens, log_mel))
    assert not torch.equal(hidden(picked, tokens, log_mel), hidden(model, tokens, log_mel))


def test_merging_keeps_the_sum_of_equal_branches(tiny_en: Model):
    """Two copies of a layer become one that adds twice what each of them adds to the same input."""
    model = copy.deepcopy(tiny_en[0])
    for part in (model.model.encoder, model.model.decoder):
        part.layers[2].load_state_dict(part.layers[1].state_dict())
    merged = keep_layers(model, (0, (1, 2), 3), (0, (1, 2), 3))
    assert (merged.config.encoder_layers, merged.config.decoder_layers) == (3, 3)
    x = torch.randn(1, 7, 384, generator=torch.Generator().manual_seed(0))
    for before, after in (
        (model.model.encoder.layers[1], merged.model.encoder.layers[1]),
        (model.model.decoder.layers[1], merged.model.decoder.layers[1]),
    ):
        with torch.no_grad():
            for branch in ("self_attn", "encoder_attn"):
                if hasattr(before, branch):
                    one, both = (getattr(layer, branch)(x, key_value_states=None)[0] for layer in (before, after))
                    torch.testing.assert_close(both, 2 * one)
            one, both = (layer.fc2(torch.relu(layer.fc1(layer.final_layer_norm(x)))) for layer in (before, after))
            torch.testing.assert_close(both, 2 * one, atol=1e-4, rtol=1e-4)


def test_merging_averages_inside_a_branch_and_sums_the_end(tiny_en: Model):
    model = tiny_en[0]
    merged = keep_layers(model, None, ((0, 1, 2), 3))
    before, after = model.model.decoder.layers, merged.model.decoder.layers
    mean = torch.stack([before[i].encoder_attn.q_proj.weight for i in range(3)]).mean(0)
    total = torch.stack([before[i].encoder_attn.out_proj.bias for i in range(3)]).sum(0)
    torch.testing.assert_close(after[0].encoder_attn.q_proj.weight, mean)
    torch.testing.assert_close(after[0].encoder_attn.out_proj.bias, total)
    assert torch.equal(after[1].fc1.weight, before[3].fc1.weight)


def test_alignment_heads_follow_unchanged_layers(tiny_en: Model):
    model = copy.deepcopy(tiny_en[0])
    model.generation_config.update(alignment_heads=[[0, 1], [1, 2], [2, 3], [3, 4]])
    assert keep_layers(model, None, (0, (1, 2), 3)).generation_config.alignment_heads == [[0, 1], [2, 4]]


BAD: dict[str, tuple[Layers, str]] = {
    "nothing": ((), "keeps no layer"),
    "an empty group": ((0, ()), "an empty list is no layer"),
    "beyond the end": ((0, (3, 4)), "the model has layers 0 to 3"),
    "below 0": ((-1, 2), "the model has layers 0 to 3"),
    "not neighbours": ((0, (1, 3)), r"\[1, 3\] are not neighbours"),
    "overlapping": (((0, 1), (1, 2)), "a layer can be named once"),
    "twice": ((0, 0), "a layer can be named once"),
    "out of order": ((3, 0), "layers keep their order"),
}


@pytest.mark.parametrize("layers, message", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("part", ["encoder_layers", "decoder_layers"])
def test_impossible_layers_are_refused(weights: Path, part: str, layers: Layers, message: str):
    with pytest.raises(AskdError, match=rf"^student\.{part} = \[.*\]: .*{message}") as error:
        layer_maps(Student(**{part: layers}), load_config(str(weights)))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def steps(*decoders: Layers) -> tuple[dict[str, object], ...]:
    return tuple({"at": 0.1 * (i + 1), "decoder_layers": layers} for i, layers in enumerate(decoders))


def test_shrinkings_refer_to_the_initial_student():
    settings = Student.model_validate(
        {"decoder_layers": [0, [1, 2], 3, 5], "shrink": steps((0, 1, 3), (0, (1, 3)), ((0, 1, 3),))}
    )
    config = WhisperConfig(decoder_layers=6, encoder_layers=2)
    assert layer_maps(settings, config) == [
        LayerMap(unmerged_groups(2), ((0,), (1, 2), (3,), (5,))),
        LayerMap(unmerged_groups(2), ((0,), (1,), (3,))),
        LayerMap(unmerged_groups(2), ((0,), (1, 2))),  # neighbours after the previous shrinking
        LayerMap(unmerged_groups(2), ((0, 1),)),
    ]


UNREACHABLE: dict[str, tuple[tuple[Layers, ...], str]] = {
    "gone": (((0, 1, 3), (0, 2)), r"shrink\[1\].*: at this point the student has the layers 0, 1, 3"),
    "merged": (((0, (1, 2), 3), (0, 1, 3)), r"has the layers 0, \[1, 2\], 3; merged layers cannot be separated"),
    "half of it": ((((0, 1), 2, 3), (0, (1, 2))), "cannot be separated"),
    "not neighbours by then": (((0, 1, 3), ((0, 3),)), r"\[0, 3\] are not neighbours"),
    "nothing changes": (((0, 3), (0, 3)), r"shrink\[1\], at 0\.2, does not change the student"),
    "not there": (((0, 4),), "the model has layers 0 to 3"),
}


@pytest.mark.parametrize("decoders, message", UNREACHABLE.values(), ids=UNREACHABLE.keys())
def test_impossible_shrinkings_are_refused(weights: Path, decoders: tuple[Layers, ...], message: str):
    settings = Student.model_validate({"shrink": steps(*decoders)})
    with pytest.raises(AskdError, match=message):
        layer_maps(settings, load_config(str(weights)))


@pytest.mark.parametrize(
    "shrink, message",
    [
        ([{"at": 0.5, "decoder_layers": [0]}, {"at": 0.5, "decoder_layers": [0]}], "later than the one before"),
        ([{"at": 1.0, "decoder_layers": [0]}], "less than 1"),
        ([{"at": 0.0, "decoder_layers": [0]}], "greater than 0"),
        ([{"at": 0.5}], "neither encoder_layers nor decoder_layers"),
    ],
)
def test_invalid_shrinking_times_are_refused(shrink: list[object], message: str):
    with pytest.raises(ValueError, match=message):
        Student.model_validate({"shrink": shrink})


def test_student_after_each_shrinking(weights: Path):
    settings = Student.model_validate({"decoder_layers": [0, 1, 3], "shrink": steps((0, 2), ((0, 2),))})
    built = [build_student(settings, str(weights), n)[0] for n in range(3)]
    assert [len(model.model.decoder.layers) for model in built] == [3, 2, 1]
    assert torch.equal(built[1].model.decoder.layers[1].fc1.weight, built[0].model.decoder.layers[2].fc1.weight)
    assert load_config(str(weights)).decoder_layers == 4
