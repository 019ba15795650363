import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from extending import example
from safetensors.numpy import load_file, save_file
from small_run import small_run
from tiny_run import Model

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.bundle import export
from askd_ray.bundles.formats import FORMATS
from askd_ray.bundles.verify import verify
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances, waveform_of
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import REFERENCE, check_hashes, check_reference, open_engine, read_bundle
from askd_ray.models.load import convert_to_ctranslate2, save_whisper
from askd_ray.models.vocabulary import prune, pruned_tokens, suppressed_tokens
from askd_ray.runs import Run
from askd_ray.text.vocabulary import choose_tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, speech: Path, tiny_en: Model) -> Run:
    """A run whose student is the untrained tiny.en."""
    run = small_run(tmp_path_factory.mktemp("runs"), speech, data={"sources": [{"path": "cache:ivr"}]})
    save_whisper(*tiny_en, run.student)
    run.finish("distill", "distilled", {"dev_wer": 0.1}, run.begin("distill"))
    return run


@pytest.fixture(scope="module")
def exported(run: Run) -> dict[str, Any]:
    return export(run.recipe)


@pytest.fixture(scope="module")
def clip(run: Run) -> Utterance:
    return read_utterances(run.shards, "test")[0]


def words(text: str) -> set[str]:
    return {w.strip(".,").lower() for w in text.split()}


def test_formats_agree_in_the_result(exported: dict[str, Any], run: Run):
    assert exported["bundle"] == str(run.bundle)
    assert exported["params_m"] == pytest.approx(37.76, abs=0.01)  # OpenAI: 39 M, its fixed positions counted
    assert exported["agreement"]["transformers and float16"] == 1.0
    assert exported["agreement"]["faster-whisper and int8"] >= 0.75
    assert exported["size_mb"]["ctranslate2-int8"] < 0.6 * exported["size_mb"]["ctranslate2-float16"]
    assert not [p for p in run.path.iterdir() if p.name.endswith((".tmp", ".old"))]


def test_transformers_folder_in_transformers(exported: dict[str, Any], run: Run, clip: Utterance):
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    folder = run.bundle / "transformers"
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(waveform_of(clip), sampling_rate=16_000, return_tensors="pt")
    text = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]
    assert len(words(text) & words(clip.text)) >= 0.6 * len(words(clip.text)), text


@pytest.mark.parametrize("quantization", ["int8", "float16"])
def test_ctranslate2_folders_in_stock_faster_whisper(
    exported: dict[str, Any], run: Run, clip: Utterance, quantization: str
):
    from faster_whisper import WhisperModel

    model = WhisperModel(str(run.bundle / f"ctranslate2-{quantization}"), device="cpu", compute_type="int8")
    segments, _ = model.transcribe(io.BytesIO(clip.audio), language="en", beam_size=1)
    text = "".join(segment.text for segment in segments)
    assert len(words(text) & words(clip.text)) >= 0.6 * len(words(clip.text)), text


def test_description_and_card(exported: dict[str, Any], run: Run):
    description = read_json(run.bundle / "bundle.json")
    assert description["name"] == "small"
    sweep = description["window_sweep"]
    assert sweep == exported["window_sweep"] and sweep["clips"] == 4 and len(sweep["scores"]) == 13
    score = sweep["scores"][sweep["chosen"]]
    assert description["window"] == exported["window"] == {name: score[name] for name in ("silence_s", "min_s")}
    assert read_bundle(run.bundle).window == DecodingWindow(**exported["window"])
    assert description["languages"] == ["en"]
    assert description["data"]["licences"] == {"CC-BY-SA-3.0": 4}
    assert description["scores"] is None and description["vocabulary"] is None
    assert load_recipe(str(run.bundle / "recipe.yaml")) == run.recipe
    card = (run.bundle / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "openai/whisper-tiny.en"
    assert front["language"] == ["en"]
    assert "Not evaluated yet" in card and "CC-BY-SA-3.0: 4 utterances" in card
    # Attribution travels with the model.
    licences = {p.name: p.read_text() for p in (run.bundle / "licences").iterdir()}
    assert "OpenAI" in licences["teacher-LICENSE.txt"] and "Allison Smith" in licences["data-ivr-LICENSE.txt"]


def test_finished_export_is_not_repeated(exported: dict[str, Any], run: Run):
    before = (run.bundle / "bundle.json").stat().st_mtime_ns
    assert export(run.recipe) == exported
    assert (run.bundle / "bundle.json").stat().st_mtime_ns == before


def test_fixed_window_is_not_compared(exported: dict[str, Any], run: Run, tmp_path: Path):
    values = run.recipe.model_dump(mode="json")
    values["window"] |= {"choose_on_dev": False}
    shutil.copytree(run.path, tmp_path / run.recipe.name)
    fixed = Recipe.model_validate({**values, "runs_root": str(tmp_path)})
    result = export(fixed)
    assert result["window"] == {"silence_s": 0.3, "min_s": 1.0} and result["window_sweep"] is None
    assert read_bundle(tmp_path / run.recipe.name / "bundle").window == DecodingWindow(0.3, 1.0)


def test_reference_clips_are_in_the_bundle(exported: dict[str, Any], run: Run):
    expected = read_json(run.bundle / REFERENCE / "reference.json")
    assert len(expected) == 3 and all(clip["text"] and clip["language"] == "en" for clip in expected)
    assert check_reference(open_engine(read_bundle(run.bundle)), run.bundle) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ctranslate2-int8/model.bin", r"ctranslate2-int8/model\.bin is corrupt"),
        ("README.md", r"README\.md is corrupt"),
    ],
)
def test_changed_file_is_detected(exported: dict[str, Any], run: Run, clip: Utterance, name: str, message: str):
    path = run.bundle / name
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b"\0")
        with pytest.raises(AskdError, match=message):
            verify(run.bundle, [clip])
        path.unlink()
        with pytest.raises(AskdError, match="is missing"):
            verify(run.bundle, [clip])
    finally:
        path.write_bytes(whole)
    (run.bundle / "stray.bin").touch()
    with pytest.raises(AskdError, match=r"stray\.bin is not part of it"):
        check_hashes(run.bundle)
    (run.bundle / "stray.bin").unlink()
    assert check_hashes(run.bundle) > 10


def test_missing_bundle_is_refused(tmp_path: Path):
    with pytest.raises(AskdError, match="is no bundle"):
        check_hashes(tmp_path)


@pytest.mark.full
def test_wrong_conversion_is_not_published(
    exported: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wrong(source: Path, target: Path, quantization: str) -> None:
        """Convert another model than the student."""
        convert_to_ctranslate2(_spoilt(source, tmp_path / quantization), target, quantization)

    before = read_json(run.bundle / "bundle.json")
    monkeypatch.setattr("askd_ray.bundles.bundle._N_CLIPS", 2)  # of noise, a model writes as much as it may
    monkeypatch.setattr("askd_ray.bundles.formats.convert_to_ctranslate2", wrong)
    with pytest.raises(AskdError, match="transformers and float16 differ in"):
        export(run.recipe, force=True)
    assert read_json(run.bundle / "bundle.json") == before
    assert run.record("export") is not None
    assert not [p for p in run.path.iterdir() if p.name.endswith((".tmp", ".old"))]


def _spoilt(source: Path, folder: Path) -> Path:
    """Copy a transformers folder; the copy's first convolution is noise."""
    shutil.copytree(source, folder)
    arrays = load_file(folder / "model.safetensors")
    weight = arrays["model.encoder.conv1.weight"]
    noise = np.random.default_rng(0).normal(0, float(weight.std()), weight.shape)
    arrays["model.encoder.conv1.weight"] = noise.astype(np.float32)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_format_is_added_to_a_finished_bundle(
    exported: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The format of docs/extending.md: scores, window and all other files of the bundle stay."""
    monkeypatch.setitem(FORMATS, "whisper", (*FORMATS["whisper"], example("float32")))
    shutil.copytree(run.path, tmp_path / run.recipe.name)
    copy = Run(run.recipe.model_copy(update={"runs_root": str(tmp_path)}))
    before = read_json(copy.bundle / "bundle.json")
    write_json(copy.bundle / "bundle.json", {**before, "epochs": 7.5})  # what no export would write
    result = export(copy.recipe, formats=["ctranslate2-float32"])
    assert result["agreement"]["float32 and float16"] == result["agreement"]["float32 and float16, trimmed"] == 1.0
    assert result["size_mb"]["ctranslate2-float32"] > 1.9 * result["size_mb"]["ctranslate2-float16"]
    after = read_json(copy.bundle / "bundle.json")
    assert after["formats"] == result["formats"] == [*before["formats"], "ctranslate2-float32"]
    assert after["epochs"] == 7.5 and after["window_sweep"] == before["window_sweep"]
    kept = {name: digest for name, digest in before["sha256"].items() if name != "README.md"}
    assert kept.items() <= after["sha256"].items() and "ctranslate2-float32/model.bin" in after["sha256"]
    assert export(copy.recipe) == export(copy.recipe, formats=["ctranslate2-float32"]) == result  # finished


def test_format_is_not_added_to_a_damaged_bundle(exported: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FORMATS, "whisper", (*FORMATS["whisper"], example("float32")))
    path = run.bundle / "ctranslate2-int8" / "model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    try:
        with pytest.raises(AskdError, match=r"ctranslate2-int8/model\.bin is corrupt"):
            export(run.recipe, formats=["ctranslate2-float32"])
    finally:
        path.write_bytes(whole)


def test_unknown_format_is_refused(exported: dict[str, Any], run: Run):
    with pytest.raises(
        AskdError, match=r"format ctranslate2-int4: there is no such format; allowed are transformers, "
    ):
        export(run.recipe, formats=["ctranslate2-int4"])


def test_missing_student_is_refused(tmp_path: Path, speech: Path):
    with pytest.raises(AskdError, match="run `askd distill` first"):
        export(small_run(tmp_path, speech).recipe)


def test_a_smaller_vocabulary_is_described(tmp_path: Path, speech: Path, tiny_en: Model):
    run = small_run(tmp_path, speech, student={"vocabulary": {"keep": 4_000}}, window={"choose_on_dev": False})
    ranked = [i for u in read_utterances(run.shards, "dev") for i in tiny_en[1].encode(u.text)]
    vocabulary = choose_tokens(tiny_en[1], ranked, suppressed_tokens(run.recipe.teacher.model), 4_000)
    save_whisper(prune(tiny_en[0], vocabulary), pruned_tokens(vocabulary), run.student)
    run.finish("distill", "distilled", {"dev_wer": 0.1}, run.begin("distill"))
    result = export(run.recipe)
    assert result["agreement"]["transformers and float16"] == 1.0
    assert result["params_m"] == pytest.approx(37.76 - 46_256 * 384 / 1e6, abs=0.01)
    description = read_json(run.bundle / "bundle.json")
    assert description["vocabulary"] == {"text_tokens": 4_000, "of_teacher": 50_256}
    assert "Its vocabulary has 4,000 of the 50,256 text tokens" in (run.bundle / "README.md").read_text()
    assert check_reference(open_engine(read_bundle(run.bundle)), run.bundle) == 3
