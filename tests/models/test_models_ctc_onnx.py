"""The ONNX folder of a CTC student gives torch's log-probabilities, at every length."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.ctc import load_ctc
from askd_ray.models.ctc_onnx import RowScaled, write_onnx
from askd_ray.models.ctc_runners import OnnxCtcRunner, TorchCtcRunner, open_runner


@pytest.mark.parametrize(("batch", "n_frames"), [(1, 100), (3, 100), (2, 102), (3, 330), (1, 3000)])
def test_log_probs_are_those_of_torch(ctc_student: Path, ctc_onnx: dict[str, Path], batch: int, n_frames: int):
    model, _ = load_ctc(ctc_student)
    log_mel = torch.randn(batch, 80, n_frames, generator=torch.Generator().manual_seed(n_frames))
    with torch.no_grad():
        expected = model(log_mel).numpy()
    found = OnnxCtcRunner(ctc_onnx["float32"], threads=1).log_probs(log_mel)
    assert found.shape == expected.shape == (batch, n_frames // 2, model.head.vocabulary.n_classes)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_int8_is_close_and_a_quarter_of_the_size(ctc_onnx: dict[str, Path]):
    plain, int8 = (OnnxCtcRunner(ctc_onnx[name], threads=1) for name in ("float32", "int8"))
    log_mel = torch.randn(1, 80, 300, generator=torch.Generator().manual_seed(0))
    assert np.abs(np.exp(plain.log_probs(log_mel)) - np.exp(int8.log_probs(log_mel))).mean() < 1e-3
    sizes = {name: (folder / "model.onnx").stat().st_size for name, folder in ctc_onnx.items()}
    assert sizes["int8"] < 0.4 * sizes["float32"]


@torch.no_grad()
def test_row_scaled_layer_computes_the_same():
    linear = torch.nn.Linear(16, 8)
    inputs = torch.randn(2, 5, 16) * torch.tensor([1.0, 1e3, 1e-3, 0.0, 1.0])[:, None]
    torch.testing.assert_close(RowScaled(linear)(inputs), linear(inputs), rtol=1e-4, atol=1e-4)


def test_folder_describes_the_model(ctc_student: Path, ctc_onnx: dict[str, Path]):
    model, tokens = load_ctc(ctc_student)
    folder = ctc_onnx["int8"]
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.onnx", "tokenizer.json"]
    config = read_json(folder / "config.json")
    assert config == {"num_mel_bins": 80, "token_ids": list(model.head.vocabulary.token_ids)}
    assert open_runner(folder, "cpu", 1).tokens.tokenizer is tokens.tokenizer  # parsed once for equal files


def test_runner_is_chosen_by_the_folder(ctc_student: Path, ctc_onnx: dict[str, Path]):
    assert isinstance(open_runner(ctc_student, "cpu", 1), TorchCtcRunner)
    assert isinstance(open_runner(ctc_onnx["float32"], "cpu", 1), OnnxCtcRunner)


@pytest.mark.parametrize("missing", ["model.onnx", "config.json", "tokenizer.json"])
def test_incomplete_folder_is_refused(ctc_onnx: dict[str, Path], tmp_path: Path, missing: str):
    folder = tmp_path / "onnx"
    shutil.copytree(ctc_onnx["int8"], folder, ignore=shutil.ignore_patterns(missing))
    with pytest.raises(AskdError, match=rf"{missing} does not exist: the engine needs the ONNX folder"):
        OnnxCtcRunner(folder, threads=1)


@pytest.mark.parametrize("damaged", ["model.onnx", "config.json"])
def test_damaged_folder_is_refused(ctc_onnx: dict[str, Path], tmp_path: Path, damaged: str):
    folder = tmp_path / "onnx"
    shutil.copytree(ctc_onnx["int8"], folder)
    (folder / damaged).write_bytes((folder / damaged).read_bytes()[:1000])
    with pytest.raises(AskdError, match=r"cannot be loaded by ONNX Runtime: [^\n]+$"):
        OnnxCtcRunner(folder, threads=1)


def test_student_that_is_missing_is_refused(tmp_path: Path):
    with pytest.raises(AskdError, match="cannot be loaded as the head of a CTC student"):
        write_onnx(tmp_path, tmp_path / "onnx", "float32")
    assert not (tmp_path / "onnx").exists()
