"""A Whisper in ONNX Runtime's own operators: torch's log-probabilities, with and without a cache."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from random_student import write_random_student

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.load import load_whisper
from askd_ray.models.onnx_export import Quantization
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE
from askd_ray.models.windows import decode, encode


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    write_random_student(folder, tiny_model, decoder_layers=2)
    return folder


@pytest.mark.parametrize(("quantization", "tolerance"), [("float32", 1e-3), ("int8", 0.25)])
@pytest.mark.parametrize("n_frames", [60, 300])
def test_log_probs_are_those_of_torch(
    student: Path, tmp_path: Path, quantization: Quantization, tolerance: float, n_frames: int
):
    """A prompt in one pass, then two tokens in a pass of their own, from the cache; suppressed tokens have -inf."""
    write_fused_onnx(str(student), tmp_path / "onnx", quantization)
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / "onnx" / name) for name in (ENCODER_FILE, DECODER_FILE))
    model, _ = load_whisper(str(student))
    log_mel = torch.randn(1, 80, n_frames, generator=torch.Generator().manual_seed(0))
    ids = [50257, 50362, 17, 400]
    never = model.generation_config.suppress_tokens
    with torch.no_grad():
        logits = decode(model, torch.tensor([ids]), encode(model.model.encoder, log_mel))[-1] @ model.proj_out.weight.T
        logits[..., never] = -torch.inf
        expected = logits[0, 1:].log_softmax(dim=-1).numpy()
    names = [output.name for output in encoder.get_outputs()]
    cross = dict(zip(names, encoder.run(names, {"log_mel": log_mel.numpy()}), strict=True))
    shape = read_json(tmp_path / "onnx" / "config.json")["past_shape"]
    past, found = np.zeros((shape[0], 1, shape[1], 0, shape[2]), np.float32), list[np.ndarray]()
    lengths = np.array([n_frames // 2], np.int32)
    for tokens, first in (([50257, 50362], 1), ([17, 400], 0)):
        inputs = {"ids": np.array([tokens]), "first": np.array(first), "past": past, "lengths": lengths, **cross}
        rows, past = (np.asarray(x) for x in decoder.run(["log_probs", "present"], inputs))
        found += list(rows[0])
    allowed = np.isfinite(expected)
    assert np.array_equal(np.isfinite(np.array(found)), allowed) and not allowed[:, never].any()
    difference = np.abs(np.array(found)[allowed] - expected[allowed])
    assert difference.max() < tolerance and difference.mean() < tolerance / 5


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(AskdError, match="none"):
        write_fused_onnx(str(tmp_path / "none"), tmp_path / "onnx", "int8")
    assert not (tmp_path / "onnx").exists()
