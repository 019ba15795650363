"""The costs agree with the real model's parameters and with torch's operation counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.audio.units import PADDED_FRAMES
from askd_ray.cli import main
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.models.cost import N_TOKENS, costs, line, parts
from askd_ray.models.load import load_config, load_whisper
from askd_ray.models.windows import encode


@pytest.fixture(scope="module")
def tiny_en(weights: Path) -> WhisperForConditionalGeneration:
    return load_whisper(str(weights))[0]


def named(model: WhisperForConditionalGeneration, part: str) -> torch.nn.Module:
    """The module of a part, if the part is one module."""
    which, _, number = part.partition(" layer ")
    return getattr(model.model, which).layers[int(number)]


def test_parameters_are_those_of_the_model(tiny_en: WhisperForConditionalGeneration):
    found = parts(tiny_en.config, PADDED_FRAMES)
    assert sum(part.params for part in found) == sum(p.numel() for p in tiny_en.parameters())
    for part in found:
        if " layer " in part.name:
            assert part.params == sum(p.numel() for p in named(tiny_en, part.name).parameters()), part.name
    assert [part.name for part in found] == [
        "encoder stem",
        *(f"encoder layer {i}" for i in range(4)),
        "token embeddings",
        *(f"decoder layer {i}" for i in range(4)),
    ]


def test_parameters_of_another_shape():
    shape = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
    config = WhisperConfig(
        **shape, vocab_size=77, num_mel_bins=128, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0
    )
    model = WhisperForConditionalGeneration(config)
    assert sum(part.params for part in parts(config, 100)) == sum(p.numel() for p in model.parameters())


def counted(model: WhisperForConditionalGeneration, n_frames: int) -> dict[str, int]:
    """The multiply-adds that torch counts, by part; it counts two operations for each."""
    counter = FlopCounterMode(display=False, depth=6)
    with torch.no_grad(), counter:
        states = encode(model, torch.zeros(1, 80, n_frames)).states
        cache = None
        for _ in range(N_TOKENS):
            out = model.model.decoder(
                input_ids=torch.zeros(1, 1, dtype=torch.long),
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            model.proj_out(out.last_hidden_state)
    return {module: sum(ops.values()) // 2 for module, ops in counter.get_flop_counts().items()}


@pytest.mark.full
@pytest.mark.parametrize("n_frames", [530, PADDED_FRAMES])
def test_multiply_adds_are_those_that_torch_counts(weights: Path, n_frames: int):
    model, _ = load_whisper(str(weights))
    model.set_attn_implementation("eager")  # the counter counts matrix products, but not every fused attention
    found = parts(model.config, n_frames)
    seen = counted(model, n_frames)
    assert sum(part.multiply_adds for part in found) == pytest.approx(seen["Global"], rel=0.02)
    encoder = sum(part.multiply_adds for part in found if part.name.startswith("encoder"))
    decoder = sum(part.multiply_adds for part in found if part.name.startswith("decoder"))
    assert decoder == pytest.approx(seen["WhisperDecoder"], rel=0.02)
    assert encoder == pytest.approx(seen["Global"] - seen["WhisperDecoder"] - seen["Linear"], rel=0.02)


def with_student(weights: Path, **student: object) -> Recipe:
    return Recipe.model_validate({"teacher": {"model": str(weights)}, "student": student})


def test_costs_follow_the_shrinkings(weights: Path):
    recipe = with_student(
        weights,
        decoder_layers=[0, [1, 2], 3],
        shrink=[{"at": 0.2, "encoder_layers": [0, 1, 3]}, {"at": 0.5, "decoder_layers": [0, 2]}],
    )
    teacher, *students = costs(recipe)
    layers = [
        (sum("encoder layer" in p.name for p in c.trimmed), sum("decoder layer" in p.name for p in c.trimmed))
        for c in students
    ]
    assert layers == [(4, 3), (3, 3), (3, 2)]
    assert students[0].name == "student" and "20%" in students[1].name and "encoder 0, 1, 3" in students[1].name
    assert teacher.params > students[0].params > students[1].params > students[2].params
    trimmed, padded = students[2].multiply_adds
    assert 3 * trimmed < padded < teacher.multiply_adds[1]


def test_the_line_tells_what_the_student_ends_as(weights: Path):
    recipe = with_student(weights, shrink=[{"at": 0.5, "decoder_layers": [0, 3]}])
    teacher, built, left = costs(recipe)
    assert teacher.params == built.params == parts_params(weights)
    output = line([teacher, built, left])
    assert f"{left.params / 1e6:.2f} M parameters ({left.params / teacher.params:.0%} of the teacher's)" in output


def parts_params(weights: Path) -> int:
    return sum(part.params for part in parts(load_config(str(weights)), PADDED_FRAMES))


def test_the_command_prints_every_part(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "160")
    overrides = [f"teacher.model={weights}", "student.shrink=[{at: 0.4, decoder_layers: [0, [1, 2], 3]}]"]
    with pytest.raises(SystemExit) as exit_:
        main(["student", *(word for o in overrides for word in ("--set", o))])
    assert exit_.value.code == 0
    output = capsys.readouterr().out
    recipe = load_recipe("demo", overrides)
    for model in costs(recipe):
        assert f"{model.params / 1e6:.2f} M" in output
    for part in costs(recipe)[1].trimmed:
        assert f"{part.name} " in output
    assert "from 40% on, decoder 0, 1+2, 3" in output and "5.3 s" in output
