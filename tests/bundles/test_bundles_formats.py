"""A CTC student as a bundle: its formats agree, and the bundle describes itself."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.bundle import export
from askd_ray.bundles.formats import FORMATS, formats_to_write
from askd_ray.bundles.verify import verify
from askd_ray.data.shards import read_utterances
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes, check_reference, hashes, open_engine, read_bundle
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.ctc_onnx import write_onnx
from askd_ray.models.description import BundleReader
from askd_ray.runs import Run

pytestmark = pytest.mark.slow


def test_formats_agree(ctc_run: Run):
    result = export(ctc_run.recipe)  # finished: returns the result
    assert set(result["agreement"]) == {"torch and float32, trimmed", "int8 and float32, trimmed"}
    assert result["agreement"]["torch and float32, trimmed"] == 1.0
    assert result["agreement"]["int8 and float32, trimmed"] >= 0.5
    assert set(result["size_mb"]) >= {form.name for form in FORMATS["ctc"]}
    assert result["size_mb"]["onnx-int8"] < 0.5 * result["size_mb"]["onnx-float32"]
    assert result["params_m"] == pytest.approx(8.2 + 0.26, abs=0.05)  # encoder of tiny.en, and head


def test_bundle_describes_itself(ctc_run: Run):
    description = read_json(ctc_run.bundle / BUNDLE_FILE)
    assert description["reader"] == "ctc" and description["languages"] == ["en"]
    sweep = description["window_sweep"]
    assert len(sweep["scores"]) == 13 and all(score["runaways"] == 0 for score in sweep["scores"])
    info = read_bundle(ctc_run.bundle)
    assert (info.reader, info.window) == ("ctc", DecodingWindow(**description["window"]))
    assert "CTC head in place of the decoder" in (ctc_run.bundle / "README.md").read_text(encoding="utf-8")
    assert check_hashes(ctc_run.bundle) > 10


def test_reference_clips(ctc_run: Run):
    for compute_type in ("int8", "float32"):
        engine = open_engine(read_bundle(ctc_run.bundle, compute_type=compute_type), threads=1)
        assert isinstance(engine, CtcEngine) and check_reference(engine, ctc_run.bundle) == 3


@pytest.mark.parametrize("reader", ["whisper", "ctc"])
def test_openvino_is_refused_with_the_reason(reader: BundleReader):
    with pytest.raises(AskdError, match=r"format openvino: not written: openvino-genai computes 30 s .* allowed are"):
        formats_to_write(reader, ["openvino"])


def test_format_of_students_with_a_decoder_is_refused(ctc_run: Run):
    before = read_json(ctc_run.bundle / BUNDLE_FILE)
    with pytest.raises(
        AskdError, match="format ggml: a CTC student has no such format; allowed are transformers, onnx"
    ):
        export(ctc_run.recipe, formats=["ggml"])
    assert read_json(ctc_run.bundle / BUNDLE_FILE) == before


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "ggml" not in {form.name for form in formats_to_write("whisper")}
    with pytest.raises(AskdError, match=r"format ggml: pywhispercpp, .*: pip install 'askd-ray\[exports\]'"):
        formats_to_write("whisper", ["ggml"])


def test_wrong_weights_are_found(ctc_run: Run, tmp_path: Path):
    """The float32 folder is that of another encoder."""
    bundle, spoilt = tmp_path / "bundle", tmp_path / "spoilt"
    shutil.copytree(ctc_run.bundle, bundle)
    shutil.copytree(ctc_run.student, spoilt)
    arrays = load_file(spoilt / "model.safetensors")
    weight = arrays["conv1.weight"]
    arrays["conv1.weight"] = np.random.default_rng(0).normal(0, float(weight.std()), weight.shape).astype(np.float32)
    save_file(arrays, spoilt / "model.safetensors", metadata={"format": "pt"})
    write_onnx(spoilt, bundle / "onnx-float32", "float32")
    write_json(bundle / BUNDLE_FILE, {**read_json(bundle / BUNDLE_FILE), "sha256": hashes(bundle)})
    with pytest.raises(AskdError, match="torch and float32, trimmed differ in"):
        verify(bundle, read_utterances(ctc_run.shards, "dev"))
