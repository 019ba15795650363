"""The peers of benchmarks/engines.py that sherpa-onnx runs: what a folder holds, and their rows."""

import base64
import sys
from collections.abc import Callable
from inspect import signature
from io import BytesIO
from pathlib import Path

import engine_systems
import engines
import numpy as np
import one_line_errors
import onnx
import pytest
import sherpa_models
import sherpa_rows
import soundfile
from audio_files import sweep
from engine_results import measure, results_table
from engine_rows import Row
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from repeating import Repeats
from rich.console import Console
from sherpa_folders import KINDS, LAYOUTS, models_of, sherpa_model

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluation.isolated import Isolated

V1 = ("preprocess.onnx", "encode.onnx", "uncached_decode.onnx", "cached_decode.onnx")
PARTS = ("encoder", "decoder", "joiner")
V1_INT8 = ("encode.int8.onnx", "uncached_decode.int8.onnx", "cached_decode.int8.onnx")


def folder_of(folder: Path, names: tuple[str, ...], model_type: str = "", tokens: str = "tokens.txt") -> Path:
    """Write a folder with these files; the ONNX files are models without a node."""
    folder.mkdir()
    for name in names:
        model = helper.make_model(helper.make_graph([], "empty", [], []))
        if model_type:
            helper.set_model_props(model, {"model_type": model_type})
        (folder / name).write_bytes(model.SerializeToString() if name.endswith(".onnx") else b"")
    if tokens:
        (folder / tokens).write_text("<blk> 0\n▁yes 1\n▁no 2\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("names", "model_type", "name", "constructor", "arguments"),
    [
        (V1, "", "moonshine", "from_moonshine", dict(zip(("preprocessor", "encoder"), V1, strict=False))),
        ((*V1, *V1_INT8), "", "moonshine int8", "from_moonshine", {"preprocessor": V1[0], "encoder": V1_INT8[0]}),
        (
            ("encoder_model.ort", "decoder_model_merged.ort"),
            "",
            "moonshine v2",
            "from_moonshine_v2",
            {"encoder": "encoder_model.ort", "decoder": "decoder_model_merged.ort"},
        ),
        (
            tuple(f"{part}-epoch-9-avg-1{mark}.onnx" for part in PARTS for mark in ("", ".int8")),
            "zipformer2",
            "transducer int8",
            "from_transducer",
            {"joiner": "joiner-epoch-9-avg-1.int8.onnx", "model_type": "transducer"},
        ),
        (
            ("encoder.onnx", "decoder.onnx", "joiner.onnx"),
            "EncDecRNNTBPEModel",
            "nemo transducer",
            "from_transducer",
            {"decoder": "decoder.onnx", "model_type": "nemo_transducer"},
        ),
        (
            ("tiny.en-encoder.onnx", "tiny.en-decoder.onnx", "tiny.en-decoder.int8.onnx"),
            "whisper-tiny.en",
            "whisper int8",
            "from_whisper",
            {"encoder": "tiny.en-encoder.onnx", "decoder": "tiny.en-decoder.int8.onnx"},
        ),
        (("model.onnx", "model.fp16.onnx"), "EncDecCTCModelBPE", "nemo ctc", "from_nemo_ctc", {"model": "model.onnx"}),
        (("model.int8.onnx",), "sense_voice_ctc", "sense voice int8", "from_sense_voice", {"model": "model.int8.onnx"}),
        (("ctc-epoch-2-avg-1.onnx",), "zipformer2_ctc", "zipformer ctc", "from_zipformer_ctc", {}),
        (("model.onnx",), "omnilingual-asr", "omnilingual asr ctc", "from_omnilingual_asr_ctc", {}),
    ],
)
def test_what_a_folder_holds(
    tmp_path: Path, names: tuple[str, ...], model_type: str, name: str, constructor: str, arguments: dict[str, str]
):
    folder = folder_of(tmp_path / "peer", names, model_type)
    model = sherpa_model(folder)
    assert (model.name, model.constructor) == (f"sherpa-onnx {name}, peer", constructor)
    short = {argument: Path(value).name for argument, value in model.arguments.items()}
    assert short == {**short, **arguments, "tokens": "tokens.txt"}
    files = {Path(value) for argument, value in model.arguments.items() if argument not in ("tokens", "model_type")}
    assert set(model.weights) == files
    assert all(file.parent == folder and file.is_file() for file in files)


def test_the_files_of_whisper_have_the_name_of_the_model_before_them(tmp_path: Path):
    files = ("tiny.en-encoder.int8.onnx", "tiny.en-decoder.int8.onnx")
    model = sherpa_model(folder_of(tmp_path / "peer", files, "whisper-tiny.en", tokens="tiny.en-tokens.txt"))
    assert Path(model.arguments["tokens"]).name == "tiny.en-tokens.txt"


def test_weights_in_a_second_file_count(tmp_path: Path):
    folder = folder_of(tmp_path / "peer", (), "")
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "weight")
    model = helper.make_model(helper.make_graph([], "large", [], [], [weight]))
    helper.set_model_props(model, {"model_type": "EncDecCTCModel"})
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.weights", size_threshold=0)
    assert {file.name for file in sherpa_model(folder).weights} == {"model.onnx", "model.weights"}


@pytest.mark.parametrize(
    ("names", "model_type", "tokens", "found"),
    [
        ((), "", "tokens.txt", "none of these layouts"),
        (("model.onnx",), "zipformer2_ctc", "", "no tokens.txt"),
        (("model.onnx",), "", "tokens.txt", "model.onnx has the model_type '', not one of zipformer2_ctc"),
        (("encoder.onnx", "decoder.onnx"), "EncDecMultiTaskModel", "tokens.txt", "not one of whisper"),
        (("encoder.onnx",), "whisper-tiny", "tokens.txt", "none of these layouts"),
        (V1[:3], "", "tokens.txt", "none of these layouts"),
        (("model-a.onnx", "model-b.onnx"), "wenet_ctc", "tokens.txt", "several models: model-a.onnx, model-b.onnx"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, names: tuple[str, ...], model_type: str, tokens: str, found: str):
    with pytest.raises(AskdError, match="needed is a model archive of sherpa-onnx") as refused:
        sherpa_model(folder_of(tmp_path / "peer", names, model_type, tokens))
    assert found in str(refused.value)


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path):
    folder = folder_of(tmp_path / "peer", ())
    (folder / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(AskdError, match=r"model\.onnx is not an ONNX file"):
        sherpa_model(folder)


def test_rows_have_different_names(tmp_path: Path):
    (tmp_path / "a").mkdir()
    folders = [folder_of(tmp_path / at / "peer", ("model.onnx",), "wenet_ctc") for at in (".", "a")]
    with pytest.raises(AskdError, match="rename one"):
        models_of(folders)


def test_the_benchmark_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["engines.py", "--peer", str(tmp_path / "nothing"), "--quick"])
    with pytest.raises(SystemExit) as exited:
        one_line_errors.run(engines.main)
    assert exited.value.code == 2
    assert capsys.readouterr().err == f"engines.py: --peer {tmp_path / 'nothing'}: no such folder\n"


def test_without_the_packages_the_rows_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = sherpa_model(folder_of(tmp_path / "peer", ("model.onnx",), "wenet_ctc"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = {row.name: row.problem for row in sherpa_rows.sherpa_rows([model], 1, tmp_path)}
    assert problems == {
        sherpa_rows.MOONSHINE: "no package here brings its weights: pip install sherpa-onnx 'moonshine-voice<0.1'",
        "sherpa-onnx wenet ctc, peer": "sherpa-onnx is not installed: pip install sherpa-onnx",
    }


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=20))
def test_every_token_of_moonshine_has_its_line(tokens: list[bytes]):
    lines = sherpa_rows.token_lines(b"".join(bytes([len(token)]) + token for token in tokens)).splitlines()
    assert [line.split()[1] for line in lines] == [str(number) for number in range(len(tokens))]
    assert [base64.b64decode(line.split()[0]) for line in lines] == tokens


@pytest.fixture
def wav() -> bytes:
    """One second of a sweep."""
    file = BytesIO()
    soundfile.write(file, sweep(1.0), SAMPLE_RATE_HZ, format="WAV")
    return file.getvalue()


def test_a_peer_that_does_not_open_has_a_line(wav: bytes):
    clip = Utterance("a", wav, "a", "yes", 1.0, "", "en", "test", "dev", "")
    rows = [Row("faster-whisper", Repeats, ("yes",)), Row("peer", Repeats, ("",))]
    measured = measure(rows, [clip])
    assert measured.timed["faster-whisper"].texts == ("yes",)
    assert [row.problem for row in measured.rows] == ["", "it does not open, or transcribes nothing: nothing to repeat"]
    console = Console(width=150, record=True)
    console.print(results_table("title", measured))
    assert "peer: not measured: it does not open" in console.export_text()


def test_without_what_the_other_rows_are_compared_with_nothing_is_measured(wav: bytes):
    clip = Utterance("a", wav, "a", "yes", 1.0, "", "en", "test", "dev", "")
    with pytest.raises(AskdError, match="nothing to repeat"):
        measure([Row("faster-whisper", Repeats, ("",))], [clip])


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (sherpa_models.zipformer_ctc, "zipformer ctc"),
        (sherpa_models.nemo_ctc, "nemo ctc int8"),
        (sherpa_models.transducer, "transducer"),
    ],
)
def test_sherpa_onnx_runs_a_row(tmp_path: Path, wav: bytes, write: Callable[[Path], None], name: str):
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install sherpa-onnx")
    (tmp_path / "peer").mkdir()
    write(tmp_path / "peer")
    _, row = sherpa_rows.sherpa_rows([sherpa_model(tmp_path / "peer")], 1, tmp_path)
    assert (row.name, row.make) == (f"sherpa-onnx {name}, peer", engine_systems.sherpa_onnx)
    with Isolated(row.make, *row.args) as system:
        assert system.transcribe(wav, "en") == "yes"


def test_a_model_that_sherpa_onnx_cannot_run_has_a_line(tmp_path: Path, wav: bytes):
    """sherpa-onnx ends the process in such a case."""
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install sherpa-onnx")
    folder = folder_of(tmp_path / "peer", ("model.onnx",), "zipformer2_ctc")
    rows = [Row("faster-whisper", Repeats, ("yes",)), *sherpa_rows.sherpa_rows([sherpa_model(folder)], 1, tmp_path)]
    clip = Utterance("a", wav, "a", "yes", 1.0, "", "en", "test", "dev", "")
    problem = measure(rows, [clip]).rows[-1].problem
    assert problem.startswith("it does not open, or transcribes nothing")


def test_sherpa_onnx_has_the_constructors():
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install sherpa-onnx")
    for layout, (_, words) in LAYOUTS.items():
        for kind in set(KINDS.get(layout, {layout: layout}).values()):
            constructor = "from_transducer" if layout == "transducer" else f"from_{kind}"
            parameters = signature(getattr(sherpa_onnx.OfflineRecognizer, constructor)).parameters
            assert {*words, "tokens", "num_threads"} <= set(parameters), constructor
