"""A bundle as a repository of a model hub: in a folder that stock libraries load, and on a hub of this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, running_hub
from huggingface_hub import ModelCard, metadata_load
from random_student import write_random_student
from scored import description_of, evaluation

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.bundles.formats import FORMATS
from askd_ray.bundles.push import push, write_repository
from askd_ray.config.objective import Objective
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes, hashes, open_engine, read_bundle
from askd_ray.models.whisper_onnx_engine import OnnxWhisper

NOISE = np.random.default_rng(3).normal(0, 0.1, SAMPLE_RATE_HZ // 2).astype(np.float32)
ROOT_FILES = {
    *("README.md", "bundle.json", "recipe.yaml", "config.json", "generation_config.json", "model.safetensors"),
    *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json"),
}


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated bundle of a random student, with all formats, a dev clip and hypotheses."""
    folder = tmp_path_factory.mktemp("push") / "bundle"
    write_random_student(folder / "transformers", tiny_model)
    for form in FORMATS["whisper"][1:]:
        form.write(folder / "transformers", folder / form.name)
    (folder / "reference").mkdir()
    (folder / "reference" / "clip-0.flac").write_bytes(b"speech of somebody")
    (folder / "hypotheses.parquet").write_bytes(b"texts of somebody")
    (folder / "licences").mkdir()
    (folder / "licences" / "teacher-LICENSE.txt").write_text("MIT")
    (folder / "recipe.yaml").write_text("name: small\n")
    formats = [form.name for form in FORMATS["whisper"]]
    described = {**description_of(Objective()), "scores": evaluation(), "formats": formats}
    write_json(folder / BUNDLE_FILE, {**described, "sha256": hashes(folder)})
    return folder


@pytest.fixture(scope="module")
def pushed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "small"
    assert push(bundle, str(folder)) == f"repository in {folder}"
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_layout(pushed: Path, bundle: Path):
    assert {path.name for path in pushed.iterdir() if path.is_file()} == ROOT_FILES
    folders = {path.name for path in pushed.iterdir() if path.is_dir()}
    assert folders == {"ctranslate2-int8", "ctranslate2-float16", "onnxruntime-int8", "ggml", "onnx", "licences"}
    onnx = sorted(path.name for path in (pushed / "onnx").iterdir())
    assert len(onnx) == 4 and onnx[0] == "decoder_model_merged.onnx"
    weights = "model.safetensors"
    assert (pushed / weights).read_bytes() == (bundle / "transformers" / weights).read_bytes()
    assert check_hashes(pushed) == len([path for path in pushed.rglob("*") if path.is_file()]) - 1


@pytest.mark.slow
def test_stock_transformers_and_faster_whisper_load_it(pushed: Path, bundle: Path):
    from faster_whisper import WhisperModel
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    texts = list[str]()
    for folder in (pushed, bundle / "transformers"):
        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor(NOISE, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        ids = AutoModelForSpeechSeq2Seq.from_pretrained(folder).generate(**inputs, max_new_tokens=20)
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    assert texts[0] == texts[1] and len(texts[0]) > 20
    model = WhisperModel(str(pushed / "ctranslate2-int8"), device="cpu", compute_type="int8")
    segments, _ = model.transcribe(NOISE, language="en", beam_size=1, max_new_tokens=20)
    assert "".join(segment.text for segment in segments)


def test_it_is_a_bundle_too(pushed: Path, bundle: Path):
    """And its root is an ONNX folder. A hub's client adds hidden files to a download."""
    texts = [open_engine(read_bundle(folder), threads=1).transcribe([NOISE])[0].text for folder in (pushed, bundle)]
    assert texts[0] == texts[1] and len(texts[0]) > 20
    assert OnnxWhisper(pushed, "int8", threads=1).transcribe(NOISE)
    (pushed / ".gitattributes").touch()
    check_hashes(pushed)
    (pushed / ".gitattributes").unlink()


def test_metadata_of_the_card(pushed: Path):
    card = ModelCard.load(pushed / "README.md")
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("wer", 10.0, "test (in domain)")
    assert result.task_type == card.data.pipeline_tag == "automatic-speech-recognition"
    assert (card.data.base_model, card.data.library_name, card.data.language) == (
        *("openai/whisper-tiny.en", "transformers"),
        ["en"],
    )
    assert metadata_load(pushed / "README.md")["license"] == "other"
    assert 'from_pretrained("OWNER/small")' in card.text and "BUNDLE/transformers" not in card.text


def test_second_push_replaces_the_first(bundle: Path, tmp_path: Path):
    target = tmp_path / "there"
    push(bundle, str(target))
    before = (target / BUNDLE_FILE).stat().st_ino
    push(bundle, str(target))
    assert (target / BUNDLE_FILE).stat().st_ino != before and check_hashes(target) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_repository_is_not_pushed_again(pushed: Path, tmp_path: Path):
    with pytest.raises(AskdError, match="give the bundle of `askd export`"):
        push(pushed, str(tmp_path / "new"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", "has changed since it was written"),
        (".git/HEAD", r"has \.git, which would be lost"),
        ("bundle.json", "is not empty, and `askd push` has not written it"),
    ],
)
def test_changed_folder_is_not_replaced(pushed: Path, bundle: Path, tmp_path: Path, name: str, message: str):
    shutil.copytree(pushed, tmp_path / "there")
    file = tmp_path / "there" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")
    with pytest.raises(AskdError, match=message):
        push(bundle, str(tmp_path / "there"))
    assert file.read_text() == "{}"


def test_other_targets_are_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for target, message in (
        (str(bundle), "is in the bundle"),
        (str(bundle / "onnx" / "new"), "is in the bundle"),
        ("file", "is a file"),
        ("me/small", "add --upload private or public, or write ./me/small"),
        ("s3://bucket/x", "not a URI"),
    ):
        with pytest.raises(AskdError, match=message):
            push(bundle, target)
    with pytest.raises(AskdError, match=r"--upload private needs a hub id"):
        push(bundle, "./me/small", "private")
    push(bundle, "./me/small")
    assert (tmp_path / "me" / "small" / "config.json").is_file()
    push(bundle, "me/small")  # a folder that exists


@pytest.mark.slow
def test_upload(hub: FakeHub, bundle: Path):
    line = push(bundle, "me/small", "private")
    assert line == f"uploaded: {hub.address}/me/small" and hub.private == {"me/small": True}
    files = hub.files["me/small"]
    assert ROOT_FILES | {"onnx/encoder_model.onnx", "ggml/ggml-model.bin", ".gitattributes"} <= files.keys()
    assert files["model.safetensors"] == (bundle / "transformers" / "model.safetensors").read_bytes()
    assert b'from_pretrained("me/small")' in files["README.md"]
    files["old.bin"] = b"of an earlier push"
    push(bundle, "me/small", "public")
    assert "old.bin" not in files and hub.private == {"me/small": True}
    push(bundle, "me/open", "public")
    assert hub.private["me/open"] is False


def test_uploads_that_are_refused(hub: FakeHub, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    hub.files["me/other"] = {"pytorch_model.bin": b""}
    with pytest.raises(AskdError, match="me/other has files that `askd push` has not written"):
        push(bundle, "me/other", "private")
    with pytest.raises(AskdError, match=r"you/small: your token may not write to you's repository \(You don't have"):
        push(bundle, "you/small", "private")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AskdError, match="a token that may write: set HF_TOKEN") as caught:
        push(bundle, "me/small", "private")
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(AskdError, match="a token that may write: set HF_TOKEN"):
        push(bundle, "me/small", "private")
    assert hub.files.keys() == {"me/other"}


@pytest.mark.slow
def test_hub_that_cannot_be_reached(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AskdError, match="me/small: the upload failed: OfflineModeIsEnabled"):
        push(bundle, "me/small", "private")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(AskdError, match="me/small: the hub cannot be reached"):
        push(bundle, "me/small", "private")


def test_damaged_bundle_is_not_written(bundle: Path, tmp_path: Path):
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "recipe.yaml").write_text("name: changed\n")
    with pytest.raises(AskdError, match=r"recipe\.yaml is corrupt"):
        write_repository(tmp_path / "bundle", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_ctc_student(ctc_student: Path, ctc_onnx: dict[str, Path], tmp_path: Path):
    """It runs from the root on a GPU, where a bundle has the folder transformers."""
    folder = tmp_path / "bundle"
    shutil.copytree(ctc_student, folder / "transformers")
    for quantization, source in ctc_onnx.items():
        shutil.copytree(source, folder / f"onnx-{quantization}")
    formats = [form.name for form in FORMATS["ctc"]]
    described = {**description_of(Objective()), "reader": "ctc", "formats": formats}
    write_json(folder / BUNDLE_FILE, {**described, "sha256": hashes(folder)})
    push(folder, str(tmp_path / "new"))
    info, on_gpu = (read_bundle(tmp_path / "new", device) for device in ("cpu", "cuda"))
    assert (info.folder.name, on_gpu.folder) == ("onnx-int8", (tmp_path / "new").resolve())
    assert on_gpu.weights_sha256 == read_bundle(folder, "cuda").weights_sha256
    assert open_engine(info, threads=1).transcribe([NOISE])
    assert read_json(tmp_path / "new" / BUNDLE_FILE)["layout"] == "hub"
