from pathlib import Path

import pytest

from askd_ray.audio.units import DecodingWindow
from askd_ray.errors import AskdError
from askd_ray.files import write_json
from askd_ray.models.bundle import read_bundle


def a_bundle(folder: Path, description: object) -> Path:
    for name in ("ctranslate2-int8", "ctranslate2-float16"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.bin").touch()
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
