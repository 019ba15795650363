"""The costs agree with the real model's parameters and with a count by hand."""

from pathlib import Path

import pytest
import torch
from tiny_run import Model
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.audio.units import PADDED_FRAMES
from askd_ray.cli import main
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.models.cost import N_TOKENS, costs, flops, line, parts
from askd_ray.models.load import load_config


def named(model: WhisperForConditionalGeneration, part: str) -> torch.nn.Module:
    """The module of a part, if the part is one module."""
    which, _, number = part.partition(" layer ")
    return getattr(model.model, which).layers[int(number)]


def test_parameter_counts_equal_the_model(tiny_en: Model):
    model, _ = tiny_en
    found = parts(model.config, PADDED_FRAMES)
    assert sum(part.params for part in found) == sum(p.numel() for p in model.parameters())
    for part in found:
        if " layer " in part.name:
            assert part.params == sum(p.numel() for p in named(model, part.name).parameters()), part.name
    assert [part.name for part in found] == [
        "encoder stem",
        *(f"encoder layer {i}" for i in range(4)),
        "token embeddings",
        *(f"decoder layer {i}" for i in range(4)),
    ]


def test_a_ctc_student_has_the_encoder_of_its_teacher():
    teacher, student = costs(load_recipe("study_ctc"))
    assert student.trimmed == teacher.trimmed[:5] and student.padded == teacher.padded[:5]


def test_parameter_counts_of_another_shape():
    shape = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56}
    config = WhisperConfig(
        **shape, vocab_size=77, num_mel_bins=128, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=0
    )
    model = WhisperForConditionalGeneration(config)
    assert sum(part.params for part in parts(config, 100)) == sum(p.numel() for p in model.parameters())


def counted_by_hand(d: int, ffn: int, n_vocab: int, n_frames: int) -> dict[str, int]:
    """The multiply-adds of the parts of a Whisper of width ``d``, decoding one token after another with a cache."""
    n_positions, layer = n_frames // 2, 4 * d * d + 2 * d * ffn  # attention's four projections, and the feed-forward
    keys_and_values, attention_to_audio = 2 * n_positions * d * d, 2 * n_positions * d
    attention_to_text = N_TOKENS * (N_TOKENS + 1) * d
    return {
        "encoder stem": 3 * 80 * d * n_frames + 3 * d * d * n_positions,
        "encoder layer 0": n_positions * (layer + 2 * n_positions * d),
        "token embeddings": n_vocab * d * N_TOKENS,
        "decoder layer 0": keys_and_values + N_TOKENS * (layer + 2 * d * d + attention_to_audio) + attention_to_text,
    }


@pytest.mark.parametrize("n_frames", [180, 530, PADDED_FRAMES])
def test_multiply_adds_equal_those_by_hand(weights: Path, n_frames: int):
    config = load_config(str(weights))
    found = {part.name: part.multiply_adds for part in parts(config, n_frames)}
    expected = counted_by_hand(config.d_model, config.encoder_ffn_dim, config.vocab_size, n_frames)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0.003)
    assert found["encoder layer 3"] == found["encoder layer 0"] and found["decoder layer 3"] == found["decoder layer 0"]


def with_student(weights: Path, **student: object) -> Recipe:
    return Recipe.model_validate({"teacher": {"model": str(weights)}, "student": student})


def test_costs_after_each_shrinking(weights: Path):
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


def test_line_describes_the_final_student(weights: Path):
    recipe = with_student(weights, shrink=[{"at": 0.5, "decoder_layers": [0, 3]}])
    teacher, built, left = costs(recipe)
    assert teacher.params == built.params == parts_params(weights)
    output = line([teacher, built, left])
    assert f"{left.params / 1e6:.2f} M parameters ({left.params / teacher.params:.0%} of the teacher's)" in output


def parts_params(weights: Path) -> int:
    return sum(part.params for part in parts(load_config(str(weights)), PADDED_FRAMES))


def test_command_prints_every_part(weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
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
    assert "from 40% on, decoder 0, 1+2, 3" in output and "5.4 s" in output


def test_flops_are_two_per_multiply_add_and_three_passes_in_a_training():
    config = WhisperConfig(d_model=24, encoder_layers=1, decoder_layers=1)
    forward = flops(config, 200, 7)
    assert forward == 2 * sum(part.multiply_adds for part in parts(config, 200, 7))
    assert flops(config, 200, 7, passes=3) == 3 * forward
