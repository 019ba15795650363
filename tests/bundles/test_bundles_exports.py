"""The optional formats of a student with a decoder, each in its own engine, from an exported bundle."""

from pathlib import Path
from typing import Any

import pytest
from extending import PAGE, example
from small_run import small_run
from tiny_run import Model

from askd_ray.bundles.bundle import export
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances, waveform_of
from askd_ray.files import read_json
from askd_ray.models.bundle import open_engine, read_bundle
from askd_ray.models.load import save_whisper
from askd_ray.runs import Run
from askd_ray.text.normalize import normalizer

pytest.importorskip("pywhispercpp", reason="the extra `exports` is not installed")
pytestmark = pytest.mark.slow
OPTIONAL = ["ggml", "onnx"]
FORMATS_PAGE = PAGE.with_name("formats.md")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speech: Path, tiny_en: Model) -> Run:
    """A run whose student is the untrained tiny.en; it needs a longer window than a trained one."""
    window = {"silence_s": 2.0, "min_s": 5.0, "choose_on_dev": False}
    settings = {"data": {"sources": [{"path": "cache:ivr"}]}, "window": window}
    run = small_run(tmp_path_factory.mktemp("runs"), speech, **settings)
    save_whisper(*tiny_en, run.student)
    run.finish("distill", "distilled", {"dev_wer": 0.1}, run.begin("distill"))
    return run


@pytest.fixture(scope="module")
def exported(run: Run) -> dict[str, Any]:
    return export(run.recipe, formats=OPTIONAL)


@pytest.fixture(scope="module")
def clips(run: Run) -> list[Utterance]:
    return read_utterances(run.shards, "test")


@pytest.fixture(scope="module")
def texts(exported: dict[str, Any], run: Run, clips: list[Utterance]) -> list[str]:
    """The texts of our engine, in float32."""
    engine = open_engine(read_bundle(run.bundle))
    return [normalizer("en")(engine.transcribe([waveform_of(clip)])[0].text) for clip in clips]


def test_formats_agree(exported: dict[str, Any], run: Run):
    assert set(OPTIONAL) <= set(exported["formats"]) and set(OPTIONAL) <= exported["size_mb"].keys()
    assert read_json(run.bundle / "bundle.json")["formats"] == exported["formats"]
    assert exported["agreement"]["whisper.cpp f16 and float16, trimmed"] == 1.0
    assert exported["agreement"]["whisper.cpp q8_0 and float16, trimmed"] >= 0.75
    for windows in ("", ", trimmed"):
        assert exported["agreement"][f"onnx float32 and float16{windows}"] == 1.0
        assert exported["agreement"][f"onnx int8 and float16{windows}"] >= 0.75
    size_mb = exported["size_mb"]
    assert size_mb["onnx"] < 1.6 * size_mb["transformers"] and size_mb["ggml"] < 0.9 * size_mb["transformers"]


def test_whisper_cpp_of_the_page(run: Run, clips: list[Utterance], texts: list[str]):
    transcribe = example("whisper_cpp_text", FORMATS_PAGE)
    assert [normalizer("en")(transcribe(run.bundle, waveform_of(clip))) for clip in clips] == texts
