"""The student with a compressor: saved, loaded, decoded, counted, and refused where nothing can run it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import with_objective

from askd_ray.bundles.bundle import export
from askd_ray.config.load import make_recipe
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models.compressed_student import CompressedStudent, CompressedStudentKind
from askd_ray.models.cost import line, table
from askd_ray.models.generate import greedy
from askd_ray.models.load import COMPRESSOR_FILE, convert_to_ctranslate2, load_whisper
from askd_ray.train.build import student_kind

KINDS = ("pooling", "hfq")


def compressed(labelled: Recipe, kind: str, **sections: Any) -> Recipe:
    return with_objective(labelled, {}, student={"compressor": {"kind": kind, "rate": 12.5}}, **sections)


def trained(kind: CompressedStudentKind) -> CompressedStudent:
    """A student whose compressor is not the initial one."""
    student = kind.build(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.compressor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()


def kind_of(recipe: Recipe) -> CompressedStudentKind:
    kind = student_kind(recipe)
    assert isinstance(kind, CompressedStudentKind)
    return kind


def windows(n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n_rows, 80, 100, generator=generator), torch.randint(0, 50_000, (n_rows, 5), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_student_is_loaded_with_the_same_outputs(labelled: Recipe, tmp_path: Path, kind: str):
    recipe = compressed(labelled, kind)
    kinds, (log_mel, ids) = kind_of(recipe), windows(2)
    student = trained(kinds)
    kinds.save(student, tmp_path / "student")
    again = kinds.load(tmp_path / "student", 0)
    empty = kinds.empty_like(student)
    empty.load_state_dict(student.state_dict(), strict=True)
    expected = student(log_mel, ids)
    assert expected.encoded.states.shape[1] == 50  # the encoder's own: other losses compare them with the teacher's
    for other in (again, empty.eval()):
        assert torch.equal(other(log_mel, ids).hidden, expected.hidden)
        assert kinds.transcribe(other, log_mel, "en") == kinds.transcribe(student, log_mel, "en")


@pytest.mark.parametrize("kind", KINDS)
def test_transcripts_are_those_of_compressed_states(labelled: Recipe, kind: str):
    kinds, log_mel = kind_of(compressed(labelled, kind)), windows(3)[0]
    student = trained(kinds)
    with torch.no_grad():
        states = student.read_by_decoder(student.encode(log_mel)).states
        prompt = torch.tensor([[50257, 50362]] * 3)
        hidden = student.whisper.model.decoder(input_ids=prompt, encoder_hidden_states=states).last_hidden_state
        logits = student.whisper.proj_out(hidden[:, -1])
    settings = student.whisper.generation_config
    logits[:, [*settings.suppress_tokens, *settings.begin_suppress_tokens]] = -torch.inf
    found = greedy(student.whisper, kinds._whisper._tokens, log_mel, [50257, 50362], states)
    assert [ids[:1] for ids in found] == [[i] for i in logits.argmax(-1).tolist()]
    read: list[torch.Tensor] = []
    student.compressor.register_forward_hook(lambda _, inputs, output: read.append(output.states))
    assert kinds.transcribe(student, log_mel, "en") == [kinds._whisper._tokens.decode(ids) for ids in found]
    assert [tuple(one.shape) for one in read] == [(3, 13, 32)] and torch.equal(read[0], states)


def test_the_initial_compressor_is_that_of_every_seed(labelled: Recipe):
    first, second = (kind_of(compressed(labelled, "hfq").model_copy(update={"seed": seed})).build(0) for seed in (0, 1))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_compressor_belongs_to_the_decoder(labelled: Recipe):
    student = kind_of(compressed(labelled, "hfq")).build(0)
    groups = student.parameter_groups()
    of_decoder = {id(parameter) for parameter in groups["decoder"]}
    assert all(id(parameter) in of_decoder for parameter in student.compressor.parameters())
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    assert sorted(map(id, trainable)) == sorted(id(p) for group in groups.values() for p in group)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_name_the_compressor(labelled: Recipe, kind: str):
    recipe = compressed(labelled, kind)
    teacher, student = student_kind(recipe).costs()
    (part,) = [part for part in student.padded if part.name == "compressor"]
    built = kind_of(recipe).build(0)
    assert part.params == sum(parameter.numel() for parameter in built.compressor.parameters())
    assert student.params == built.n_params and "compressor" not in {part.name for part in teacher.padded}
    if kind == "pooling":
        assert part.multiply_adds == 375 * 32 * 32
    of_decoder, of_teacher = (
        next(part.multiply_adds for part in cost.padded if part.name == "decoder layer 0")
        for cost in (student, teacher)
    )
    assert of_teacher - of_decoder == (1500 - 375) * 2 * (
        32 * 32 + 20 * 32
    )  # keys and values, and 20 tokens' attention
    assert line([teacher, student]) and table(recipe).renderables


def test_nothing_loads_the_whisper_without_its_compressor(labelled: Recipe, tmp_path: Path):
    kinds, folder = kind_of(compressed(labelled, "pooling")), tmp_path / "student"
    kinds.save(kinds.build(0), folder)
    with pytest.raises(AskdError, match=r"has a compressor \(compressor.safetensors\): only its training can run it"):
        load_whisper(str(folder))
    with pytest.raises(AskdError, match="has a compressor"):
        convert_to_ctranslate2(folder, tmp_path / "int8", "int8")
    with pytest.raises(AskdError, match="has a compressor"):
        student_kind(with_objective(labelled, {}, student={"init": str(folder)})).build(0)


def test_a_compressor_of_other_settings_or_a_damaged_one_is_named(labelled: Recipe, tmp_path: Path):
    kinds, folder = kind_of(compressed(labelled, "pooling")), tmp_path / "student"
    kinds.save(kinds.build(0), folder)
    with pytest.raises(AskdError, match=r"compressor.safetensors cannot be loaded as the compressor hfq: .*[Mm]issing"):
        kind_of(compressed(labelled, "hfq")).load(folder, 0)
    (folder / COMPRESSOR_FILE).write_bytes((folder / COMPRESSOR_FILE).read_bytes()[:50])
    with pytest.raises(AskdError, match=r"compressor.safetensors cannot be loaded as the compressor pooling"):
        kinds.load(folder, 0)


def test_export_refuses_it(labelled: Recipe):
    with pytest.raises(AskdError, match=r"student.compressor hfq: .* cannot be exported; distill with .*kind=none"):
        export(compressed(labelled, "hfq"))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"reader": "ctc"}, r"student: compressor pooling shortens .*: it needs reader=whisper"),
        ({"reader": "hybrid"}, r"student: compressor pooling shortens .*: it needs reader=whisper"),
        ({"shrink": [{"at": 0.5, "decoder_layers": [0]}]}, r"student: compressor pooling .*shrink must be empty"),
        (
            {"compressor": {"kind": "pooling", "rate": 10}},
            r"student\.compressor\.rate = 10.*allowed are 25, 12\.5, 6\.25",
        ),
        (
            {"compressor": {"kind": "none", "rate": 25}},
            r"rate: unknown with kind none: .*kind pooling or hfq reads rate",
        ),
        ({"compressor": {"kind": "mean"}}, r"student\.compressor\.kind = 'mean': .*'none', 'pooling', 'hfq'"),
    ],
)
def test_what_a_recipe_cannot_ask_for(student: dict[str, Any], message: str):
    values = {"student": {"compressor": {"kind": "pooling"}, **student}}
    if student.get("reader"):
        values["objective"] = {"preset": "ctc" if student["reader"] == "ctc" else "askd"}
    with pytest.raises(AskdError, match=message):
        make_recipe(values, (), "recipe.yaml")


def test_losses_between_encoder_states_compare_those_before_the_compressor(labelled: Recipe):
    objective = {"hidden_states": {"kind": "mse", "layers": [[0, 0], [-1, -1]]}}
    recipe = with_objective(
        labelled, objective, teacher={"online": True, "top_k": 32}, student={"compressor": {"kind": "pooling"}}
    )
    log_mel, ids = windows(2)
    decoded = student_kind(recipe, teacher_width=32).build(0)(log_mel, ids, torch.tensor([60, 100]))
    assert [states.shape for states in decoded.encoded.tapped] == [(2, 50, 32)] * 2
    assert decoded.encoded.inside is not None and decoded.encoded.inside.sum(dim=1).tolist() == [30, 50]
