from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from askd_ray.audio.units import DecodingWindow
from askd_ray.errors import AskdError
from askd_ray.files import write_json
from askd_ray.models.bundle import read_bundle


def a_bundle(folder: Path, description: object) -> Path:
    files = ("ctranslate2-int8/model.bin", "ctranslate2-float16/model.bin")
    return with_files(folder, description, files)


def a_ctc_bundle(folder: Path) -> Path:
    files = ("onnx-int8/model.onnx", "onnx-float32/model.onnx", "transformers/model.safetensors")
    description = {"name": "ctc", "reader": "ctc", "languages": ["de", "en"], "window": {"silence_s": 0.3}}
    return with_files(folder, description, (*files, "transformers/ctc_head.safetensors"))


def with_files(folder: Path, description: object, files: Sequence[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    write_json(folder / "bundle.json", description)
    return folder


def test_bundle_names_model_and_window(tmp_path: Path):
    bundle = a_bundle(tmp_path / "b", {"name": "tiny-student", "window": {"silence_s": 0.4, "min_s": 1.2}})
    info = read_bundle(bundle)
    assert (info.name, info.window, info.folder) == (
        "tiny-student",
        DecodingWindow(0.4, 1.2),
        bundle / "ctranslate2-int8",
    )
    assert info.compute_type == "int8"


def test_compute_type_chooses_the_folder(tmp_path: Path):
    bundle = a_bundle(tmp_path / "b", {"name": "tiny-student", "window": {"silence_s": 0.4}})
    on_gpu, quantized = read_bundle(bundle, "cuda"), read_bundle(bundle, "cuda", "int8_float16")
    assert (on_gpu.folder.name, on_gpu.compute_type) == ("ctranslate2-float16", "float16")
    assert (quantized.folder.name, quantized.compute_type) == ("ctranslate2-int8", "int8_float16")


def test_bundle_of_format_1_has_no_minimal_window(tmp_path: Path):
    bundle = a_bundle(tmp_path / "b", {"format": 1, "name": "x", "window": {"silence_s": 0.3}})
    assert read_bundle(bundle).window == DecodingWindow(silence_s=0.3, min_s=0.0)


def test_plain_ctranslate2_folder_has_padded_windows(tmp_path: Path):
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "model.bin").touch()
    info = read_bundle(tmp_path / "whisper")
    assert (info.name, info.window) == ("whisper", None)


def test_invalid_folders_are_refused(tmp_path: Path):
    with pytest.raises(AskdError, match=r"no model in .*askd export"):
        read_bundle(tmp_path)
    with pytest.raises(AskdError, match="no model in"):
        read_bundle(tmp_path / "missing")


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"name": "x", "window": None},
        {"name": "x", "window": 0.3},
        {"name": "x", "window": {"silence_s": "?"}},
        {"name": "x", "window": {"silence_s": 0.3, "min_s": "?"}},
    ],
)
def test_damaged_description_is_refused(tmp_path: Path, description: object):
    with pytest.raises(AskdError, match=r"bundle\.json is damaged"):
        read_bundle(a_bundle(tmp_path / "b", description))


def test_ctc_bundle(tmp_path: Path):
    bundle = a_ctc_bundle(tmp_path / "b")
    info = read_bundle(bundle)
    assert (info.reader, info.languages, info.compute_type) == ("ctc", ("de", "en"), "int8")
    assert info.folder == bundle / "onnx-int8" and read_bundle(bundle, "cpu", "float32").folder.name == "onnx-float32"
    assert info.version == sha256(b"onnx-int8/model.onnx").hexdigest()[:12]
    on_gpu = read_bundle(bundle, "cuda")
    assert (on_gpu.folder.name, on_gpu.compute_type) == ("transformers", "float16")
    before = on_gpu.version  # of encoder and head: either may change alone
    (on_gpu.folder / "ctc_head.safetensors").write_text("trained on")
    assert on_gpu.version != before
    (on_gpu.folder / "ctc_head.safetensors").unlink()
    with pytest.raises(AskdError, match="no model in"):
        read_bundle(bundle, "cuda")


def test_compute_type_that_a_bundle_lacks_is_refused(tmp_path: Path):
    whisper = a_bundle(tmp_path / "w", {"name": "w", "window": {"silence_s": 0.3}})
    with pytest.raises(AskdError, match=r"compute_type = float32: .* has only int8 for device cpu"):
        read_bundle(whisper, "cpu", "float32")
    with pytest.raises(AskdError, match=r"compute_type = int8_float16: .* has only float16 for device cuda"):
        read_bundle(a_ctc_bundle(tmp_path / "c"), "cuda", "int8_float16")


def test_unknown_reader_is_refused(tmp_path: Path):
    newer = {"name": "w", "reader": "transducer", "window": {"silence_s": 0.3}}
    with pytest.raises(AskdError, match="reader 'transducer' is unknown, allowed are whisper, ctc"):
        read_bundle(a_bundle(tmp_path / "b", newer))
