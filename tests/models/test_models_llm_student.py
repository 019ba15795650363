"""The student whose reader is a language model: what it reads, saves, loads, writes and counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ctc_student import WINDOW, known_clips
from tiny_llm import of_llm, tiny_tokenizer

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.bundles.bundle import export
from askd_ray.config.load import make_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.ctc import is_ctc_student, load_ctc
from askd_ray.models.llm import load_llm
from askd_ray.models.llm_student import ADAPTER_FILE, LLM_FILE, LlmStudent, LlmStudentKind
from askd_ray.models.student import EncoderOutput
from askd_ray.models.windows import encode
from askd_ray.train.build import student_kind


def kind_of(recipe: Recipe) -> LlmStudentKind:
    kind = student_kind(recipe)
    assert isinstance(kind, LlmStudentKind)
    return kind


def trained(kind: LlmStudentKind) -> LlmStudent:
    """A student that is not the initial one."""
    student = kind.build(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for group in ("decoder", "embeddings"):
            for parameter in student.parameter_groups()[group]:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return student.eval()


def windows(n_rows: int, n_frames: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    log_mel = torch.randn(n_rows, 80, n_frames, generator=generator)
    return log_mel, torch.randint(3, 200, (n_rows, 6), generator=generator)


@pytest.mark.parametrize("kind", ["pooling", "hfq"])
def test_a_saved_student_is_loaded_with_the_same_outputs(labelled_llm: Recipe, tiny_llm: Path, tmp_path: Path, kind):
    recipe = of_llm(labelled_llm, tiny_llm, student={"compressor": {"kind": kind}})
    kinds, (log_mel, ids) = kind_of(recipe), windows(2)
    student = trained(kinds)
    kinds.save(student, tmp_path / "student")
    again = kinds.load(tmp_path / "student", 0)
    output = student(log_mel, ids)
    assert output.hidden.shape == (2, 6, 64) and output.encoded.states.shape == (2, 50, 32)
    assert torch.equal(again(log_mel, ids).hidden, output.hidden)
    assert kinds.transcribe(again, log_mel, "en") == kinds.transcribe(student, log_mel, "en")
    initial = kinds.build(0)
    initial.load_state_dict(student.state_dict(), strict=True)  # as a checkpoint does it
    assert torch.equal(initial.eval()(log_mel, ids).hidden, output.hidden)
    files = sorted(file.name for file in (tmp_path / "student").iterdir())
    configs = ["config.json", LLM_FILE, "preprocessor_config.json"]
    assert files == sorted([*configs, "compressor.safetensors", ADAPTER_FILE, "model.safetensors"])


def test_a_row_does_not_depend_on_what_is_beside_it(labelled_llm: Recipe):
    student = trained(kind_of(labelled_llm))
    log_mel, ids = windows(3)
    frames = torch.tensor([40, 100, 74])
    for row, n in enumerate(frames.tolist()):
        log_mel[row, :, n:] = 0.0
    together = student(log_mel, ids, frames).hidden
    for row, n in enumerate(frames.tolist()):
        alone = student(log_mel[row : row + 1, :, :n], ids[row : row + 1, :4]).hidden
        torch.testing.assert_close(together[row : row + 1, :4], alone, atol=1e-5, rtol=1e-5)


def test_embedded_text_in_place_of_audio_is_read_as_the_llm_reads_it(labelled_llm: Recipe, tiny_llm: Path):
    student, llm = kind_of(labelled_llm).build(0).eval(), load_llm(str(tiny_llm))
    text, closing = llm.tokens.encode(" press four"), list(llm.tokens.closing)
    embedded = llm.model.model.embed_tokens(torch.tensor([text, text[::-1]]))
    inside = torch.ones(2, len(text), dtype=torch.bool)
    inside[1, 2:] = False
    found = student.read(EncoderOutput(embedded, inside=inside), torch.tensor([closing] * 2))
    for row, read in ((0, text), (1, text[::-1][:2])):
        ids = torch.tensor([[*llm.tokens.opening, *read, *closing]])
        expected = llm.model.model(input_ids=ids).last_hidden_state[0, -len(closing) :]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(student.projection, llm.model.lm_head.weight)
    without = llm.model.model(input_ids=torch.tensor([[*llm.tokens.opening, *closing]])).last_hidden_state
    torch.testing.assert_close(
        student.read(None, torch.tensor([closing])), without[:, -len(closing) :], atol=1e-5, rtol=1e-5
    )


def test_greedy_tokens_are_the_most_likely_ones(labelled_llm: Recipe):
    student = trained(kind_of(labelled_llm))
    with torch.no_grad():
        audio = student.audio(windows(2)[0])
        written = student.greedy(audio, 7)
        for row, ids in enumerate(written):
            states = EncoderOutput(audio.states[row : row + 1])
            hidden = student.read(states, torch.tensor([[*student.tokens.closing, *ids]]))[0]
            best = (hidden @ student.projection.T).argmax(-1).tolist()
            first = len(student.tokens.closing) - 1
            assert best[first : first + len(ids)] == ids
            assert len(ids) == 7 or best[first + len(ids)] == student.tokens.end


def test_groups_have_all_that_is_trained_and_the_llm_stays(labelled_llm: Recipe):
    student = kind_of(labelled_llm).build(0)
    groups = student.parameter_groups()
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    assert sorted(map(id, trainable)) == sorted(id(p) for group in groups.values() for p in group)
    assert not any("embed_tokens" in name or "frozen" in name for name in student.state_dict())
    log_mel, ids = windows(2)
    student(log_mel, ids).hidden.square().sum().backward()
    assert all(p.grad is not None for group in groups.values() for p in group if p.requires_grad)
    ups = [p for name, p in student.llm.named_parameters() if name.endswith(".up")]
    assert len(ups) == 2 * 7 and all(p.grad is not None and p.grad.abs().max() > 0.0 for p in ups)


def test_the_initial_student_is_that_of_every_seed(labelled_llm: Recipe):
    first, second = (kind_of(labelled_llm.model_copy(update={"seed": seed})).build(0) for seed in (0, 1))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_costs_count_the_llm(labelled_llm: Recipe, tiny_llm: Path):
    kind = kind_of(labelled_llm)
    student = kind.costs()[1]
    parts = {part.name: part for part in student.padded}
    n_llm = sum(parameter.numel() for parameter in load_llm(str(tiny_llm)).model.parameters())
    assert parts["LLM"].params == n_llm and parts["LLM"].multiply_adds == n_llm * (375 + 20)
    assert "decoder layer 0" not in parts and "compressor" in parts
    built = kind.build(0)
    map_and_norm = [*built.embedder.norm.parameters(), *built.embedder.map.parameters()]
    added = [*built.parameter_groups()["decoder"], *map_and_norm]
    assert built.n_params == student.params + sum(parameter.numel() for parameter in added)


def test_an_llm_with_other_weights_or_damaged_files_are_named(labelled_llm: Recipe, tmp_path: Path):
    kind = kind_of(labelled_llm)
    kind.save(kind.build(0), tmp_path / "student")
    adapter = tmp_path / "student" / ADAPTER_FILE
    adapter.write_bytes(adapter.read_bytes()[:50])
    with pytest.raises(AskdError, match=r"student in .* cannot be loaded"):
        kind.load(tmp_path / "student", 0)
    description = tmp_path / "student" / LLM_FILE
    description.write_text(description.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(AskdError, match="has other weights"):
        kind.load(tmp_path / "student", 0)
    with pytest.raises(AskdError, match="no engine of a bundle runs an LLM"):
        export(labelled_llm)


def test_what_is_no_language_model_of_chats_is_refused(tmp_path: Path, tiny_model: Path):
    with pytest.raises(AskdError, match=r"cannot be loaded|has no token"):
        load_llm(str(tiny_model))
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").write_bytes(b"")
    with pytest.raises(AskdError, match=r"language model in .* cannot be loaded"):
        load_llm(str(plain))


def test_special_tokens_in_a_text_stay_text(tiny_llm: Path):
    tokens = load_llm(str(tiny_llm)).tokens
    assert tokens.end not in tokens.encode("one <|im_end|> two")
    assert tokens.decode([*tokens.encode("one two"), tokens.end]) == "one two"
    assert tiny_tokenizer().token_to_id("<|im_end|>") == tokens.end == tokens.closing[0]


REFUSED: dict[str, dict[str, Any]] = {
    r"its LLM reads references, .*set data\.derive=null": {"data": {"derive": {}}},
    r"its LLM reads references: set targets\.kind=reference": {"targets": {"kind": "pseudo"}},
    r"learns from cached soft labels: set teacher\.online=false": {"teacher": {"online": True, "top_k": 32}},
    r"timestamps = True would be ignored": {"targets": {"timestamps": True}},
    r"decoder_layers = \(0,\) would be ignored": {"student": {"decoder_layers": [0]}},
    r"compressor pooling needs a student that keeps its layers": {
        "student": {"shrink": [{"at": 0.5, "encoder_layers": [0]}]}
    },
    r"objective\.decoder_states would be ignored": {"objective": {"decoder_states": {"kind": "mse"}}},
    r"set train\.workers\.parallel=ddp": {
        "train": {"workers": {"count": 2, "parallel": "fsdp"}, "batching": {"micro_batches": 2}},
        "objective": {"self_teacher": {"kind": "previous_epoch", "refresh": 0.0}},
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(labelled_llm: Recipe, tiny_llm: Path, message: str):
    with pytest.raises(ValueError, match=message):
        of_llm(labelled_llm, tiny_llm, **REFUSED[message])


def test_a_compressor_and_a_preset_of_tokens_are_needed():
    values = {"student": {"reader": "llm"}, "data": {"derive": None}}
    with pytest.raises(AskdError, match=r"reader = llm reads compressed states: set compressor\.kind=pooling or hfq"):
        make_recipe(values, (), "recipe.yaml")
    values["student"]["compressor"] = {"kind": "hfq"}
    make_recipe(values, (), "recipe.yaml")
    with pytest.raises(AskdError, match=r"preset ctc trains a CTC head: set student\.reader=ctc or hybrid"):
        make_recipe({**values, "objective": {"preset": "ctc"}}, (), "recipe.yaml")
    with pytest.raises(AskdError, match="a study compares bundles, and no bundle holds an LLM"):
        make_recipe(
            {**values, "study": {"against": "ce", "arms": {"ce": {"preset": "ce"}, "askd": {"preset": "askd"}}}},
            (),
            "recipe.yaml",
        )
    with pytest.raises(AskdError, match=r"speed_clips = 3 would be ignored: student\.reader = llm has no bundle"):
        make_recipe({**values, "evaluate": {"speed_clips": 3}}, (), "recipe.yaml")
    with pytest.raises(AskdError, match=r"evaluate.models are compared with bundles"):
        make_recipe({**values, "evaluate": {"models": {"base": "wheel:base"}}}, (), "recipe.yaml")


def test_a_language_model_needs_its_reader(labelled: Recipe):
    values = labelled.model_dump(mode="json")
    values["student"]["llm"]["lora_rank"] = 4
    with pytest.raises(ValueError, match="would be ignored: reader = whisper has no language model"):
        Recipe.model_validate(values)


@pytest.fixture(scope="module")
def kind_with_units(labelled_llm: Recipe, tiny_llm: Path, ctc_student: Path) -> LlmStudentKind:
    """Students that begin as a CTC student: their LLM reads its units."""
    return kind_of(of_llm(labelled_llm, tiny_llm, student={"init": str(ctc_student)}))


def speech_windows(speech: Path, n_clips: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real clips in windows, with their numbers of frames: those that the CTC student knows."""
    waveforms = [waveform_of(clip) for clip in known_clips(speech)[:n_clips]]
    lengths = [WINDOW.samples(len(waveform), 80) for waveform in waveforms]
    return log_mel_windows(waveforms, lengths, 80), torch.tensor([n // 160 for n in lengths])


def test_the_encoder_and_the_units_of_a_ctc_student_are_read(kind_with_units, ctc_student: Path, speech: Path):
    student, (log_mel, frames) = kind_with_units.build(0).eval(), speech_windows(speech, 4)
    encoded = encode(load_ctc(ctc_student)[0].encoder, log_mel, window_frames=frames)
    assert torch.equal(encode(student.encoder, log_mel, window_frames=frames).states, encoded.states)
    read = student.audio(log_mel, frames)
    states = read.positions_inside.sum(dim=1)
    assert (states >= 2).all() and len(set(states.tolist())) > 1
    assert (states < 0.5 * frames / 100 * 12.5).all()  # fewer than the compressor makes


def test_a_student_with_units_is_loaded_with_the_same_outputs(kind_with_units, speech: Path, tmp_path: Path):
    student, (log_mel, frames) = trained(kind_with_units), speech_windows(speech, 2)
    ids = windows(2)[1]
    kind_with_units.save(student, tmp_path / "student")
    again = kind_with_units.load(tmp_path / "student", 0)
    assert torch.equal(again(log_mel, ids, frames).hidden, student(log_mel, ids, frames).hidden)
    assert not is_ctc_student(tmp_path / "student")


def test_rows_with_units_are_those_of_the_row_alone(kind_with_units, speech: Path):
    student, (log_mel, frames) = trained(kind_with_units), speech_windows(speech, 3)
    ids = windows(3)[1]
    together = student(log_mel, ids, frames).hidden
    written = student.greedy(student.audio(log_mel, frames), 5)
    for row, n in enumerate(frames.tolist()):
        window = log_mel[row : row + 1, :, :n]
        torch.testing.assert_close(
            together[row : row + 1], student(window, ids[row : row + 1]).hidden, atol=1e-4, rtol=1e-4
        )
        assert student.greedy(student.audio(window), 5) == [written[row]]


def test_a_ctc_student_keeps_its_layers(labelled_llm: Recipe, tiny_llm: Path, ctc_student: Path):
    cut = of_llm(labelled_llm, tiny_llm, student={"init": str(ctc_student), "encoder_layers": [0]})
    with pytest.raises(AskdError, match="is a CTC student, which keeps its encoder_layers"):
        kind_of(cut).build(0)
