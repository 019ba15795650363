"""A hybrid student on ONNX Runtime: torch's results, and the same text with and without drafts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import utterances
from tiny_run import Model

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import SAMPLE_RATE_HZ, DecodingWindow
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.bound import token_limit
from askd_ray.models.ctc import CtcHead, CtcModel, save_head
from askd_ray.models.draft import EMPTY, Draft, ctc_draft
from askd_ray.models.draft_decoding import Verified
from askd_ray.models.draft_engine import DraftEngine
from askd_ray.models.fused_onnx import write_fused_onnx
from askd_ray.models.generate import greedy
from askd_ray.models.load import load_whisper, save_whisper
from askd_ray.models.onnx_export import Quantization
from askd_ray.text.units import BLANK, CtcVocabulary

WINDOW = DecodingWindow(silence_s=0.3)
NOISE = np.random.default_rng(3).normal(0, 0.1, SAMPLE_RATE_HZ // 2).astype(np.float32)


@pytest.fixture(scope="module")
def student(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CtcModel, Model]:
    """A Whisper of random weights that writes many different tokens, with a random head."""
    model, tokens = load_whisper(str(tiny_model))
    with torch.no_grad():
        model.model.decoder.embed_positions.weight.mul_(60.0)
        model.model.decoder.layer_norm.weight.mul_(40.0)  # so that few calls are close
    folder = tmp_path_factory.mktemp("hybrid") / "student"
    save_whisper(model, tokens, folder)
    vocabulary = CtcVocabulary.of(range(1000, 1100))
    torch.manual_seed(1)
    head = CtcHead(vocabulary, torch.randn(vocabulary.n_classes, 32))  # an untrained one would write blanks only
    save_head(head, folder)
    return folder, CtcModel(model.model.encoder, head).eval(), (model, tokens)


@pytest.fixture(scope="module")
def engine(student: tuple[Path, CtcModel, Model], tmp_path_factory: pytest.TempPathFactory):
    """Return the engine of the student in a quantization, made once."""
    made: dict[Quantization, DraftEngine] = {}

    def open_engine(quantization: Quantization) -> DraftEngine:
        if quantization not in made:
            target = tmp_path_factory.mktemp("onnx") / quantization
            write_fused_onnx(str(student[0]), target, quantization)
            made[quantization] = DraftEngine(target, threads=1, window=WINDOW)
        return made[quantization]

    return open_engine


OpenEngine = Callable[[Quantization], DraftEngine]


def test_float32_equals_torch(engine: OpenEngine, student: tuple[Path, CtcModel, Model]):
    onnx, (_, ctc, (whisper, tokens)) = engine("float32"), student
    log_mel = log_mel_windows([NOISE], [WINDOW.samples(len(NOISE), 80)])
    clip = onnx.encode(NOISE)
    with torch.no_grad():
        expected = ctc_draft(ctc(log_mel)[0].numpy(), ctc.head.vocabulary, tokens)
    assert clip.draft is not None
    assert clip.draft.token_ids == expected.token_ids != ()
    assert clip.draft.entropy == pytest.approx(expected.entropy, abs=1e-3)
    texts = greedy(whisper, tokens, log_mel, tokens.prompt())
    assert list(onnx.greedy(clip).token_ids) == texts[0]
    assert len(set(texts[0])) > 3


@pytest.mark.parametrize("quantization", ["float32", "int8"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_draft_gives_the_greedy_text(engine: OpenEngine, quantization: Quantization, data: st.DataObject):
    onnx = engine(quantization)
    clip = onnx.encode(NOISE)
    assert clip.draft is not None
    limit = token_limit(clip.draft, clip.window_s)
    expected = onnx.greedy(clip, limit=limit)
    ids = list(expected.token_ids)
    assert expected.n_passes == len(ids) + (len(ids) < limit) and expected.n_accepted == 0
    start, end = data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, len(ids)))
    wrong = data.draw(st.lists(st.integers(0, onnx.tokens.end - 1) | st.sampled_from(ids), max_size=20))
    draft = [*ids[:start], *wrong, *ids[end:]]
    found = onnx.decode(clip, draft=Draft(tuple(draft), (9.0,) * len(draft), len(draft)))
    assert list(found.token_ids) == ids
    if draft == ids and quantization == "float32":  # in int8, most calls of random weights are close
        assert found.n_passes < 0.7 * expected.n_passes


def test_int8_is_close_to_float32(engine: OpenEngine):
    exact, rounded = (engine(quantization).encode(NOISE) for quantization in ("float32", "int8"))
    assert exact.cross.keys() == rounded.cross.keys() and len(exact.cross) == 5
    assert exact.cross.pop("lengths") == rounded.cross.pop("lengths") == 40
    for name, values in exact.cross.items():
        assert values.shape == rounded.cross[name].shape == (1, 2, 48, 16)  # padded to a multiple of 16
        np.testing.assert_allclose(rounded.cross[name], values, atol=0.05 * np.abs(values).max())


def test_where_ctc_is_silent_the_decoder_is_not_asked(student: tuple[Path, CtcModel, Model], tmp_path: Path):
    _, ctc, (whisper, tokens) = student
    save_whisper(whisper, tokens, tmp_path / "silent")
    head = CtcHead(ctc.head.vocabulary, torch.zeros_like(ctc.head.projection))
    with torch.no_grad():  # its hidden states are all 1, and only the blank has a logit above 0
        head.transform.weight.zero_()
        head.transform.bias.fill_(1.0)
        head.projection[BLANK] = 1.0
    save_head(head, tmp_path / "silent")
    write_fused_onnx(str(tmp_path / "silent"), tmp_path / "onnx", "int8")
    silent = DraftEngine(tmp_path / "onnx", threads=1, window=WINDOW)
    clip = silent.encode(NOISE)
    assert clip.draft == EMPTY
    assert silent.decode(clip) == silent.greedy(clip, limit=0) == Verified((), 0, 0)
    assert len(silent.greedy(clip).token_ids) > 0  # without the bound the decoder writes something


def test_without_a_head_there_is_no_draft(tiny_model: Path, tmp_path: Path):
    write_fused_onnx(str(tiny_model), tmp_path / "onnx", "int8")
    plain = DraftEngine(tmp_path / "onnx", threads=1)
    clip = plain.encode(NOISE)
    assert clip.draft is None and clip.window_s == 30.0
    assert plain.decode(clip).token_ids == plain.greedy(clip).token_ids


@pytest.mark.parametrize("missing", ["encoder.onnx", "decoder.onnx", "config.json", "tokenizer.json"])
def test_an_incomplete_folder(missing: str, tmp_path: Path):
    for name in {"encoder.onnx", "decoder.onnx", "config.json", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(AskdError, match=f"{missing} does not exist"):
        DraftEngine(tmp_path)


def test_a_damaged_folder(tmp_path: Path):
    for name in ("encoder.onnx", "decoder.onnx", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(AskdError, match="cannot be loaded by ONNX Runtime"):
        DraftEngine(tmp_path)


@pytest.mark.slow
def test_tiny_en_in_int8_on_real_clips(weights: Path, speech: Path, tmp_path: Path):
    write_fused_onnx(str(weights), tmp_path / "onnx", "int8")
    onnx = DraftEngine(tmp_path / "onnx", threads=1, window=WINDOW)
    n_passes, n_tokens = 0, 0
    for utterance in utterances(speech, 6):
        clip = onnx.encode(waveform_of(utterance))
        expected = onnx.greedy(clip)
        words = onnx.tokens.decode(list(expected.token_ids)).split()
        for text in (words, words[:-1], ["Well,", *words], [w.lower() for w in words]):
            ids = onnx.tokens.encode(" ".join(text)) if text else []
            found = onnx.decode(clip, draft=Draft(tuple(ids), (9.0,) * len(ids), len(ids)))
            assert found.token_ids == expected.token_ids, " ".join(text)
            n_passes, n_tokens = n_passes + found.n_passes, n_tokens + expected.n_passes
    assert n_passes < 0.6 * n_tokens
