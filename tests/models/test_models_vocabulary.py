"""A Whisper with fewer tokens: the same logits, configs without other tokens, and the same texts in every engine."""

import copy
from pathlib import Path

import pytest
import torch
from faster_whisper import WhisperModel
from small_run import utterances
from tiny_run import Model
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.fetch.weights import fetch_weights
from askd_ray.models.engine import Engine
from askd_ray.models.load import convert_to_ctranslate2, load_whisper, save_whisper
from askd_ray.models.transcript import Decoding
from askd_ray.models.vocabulary import prune, pruned_tokens, suppressed_tokens
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import PrunedVocabulary, choose_tokens

KEPT = 3_000
PROMPT = "Please press the pound key, extraordinarily."


@pytest.fixture(scope="module")
def vocabulary(tiny_en: Model, weights: Path) -> PrunedVocabulary:
    return choose_tokens(tiny_en[1], (), suppressed_tokens(str(weights)), KEPT)


@pytest.fixture(scope="module")
def pruned(tiny_en: Model, vocabulary: PrunedVocabulary) -> WhisperForConditionalGeneration:
    return prune(tiny_en[0], vocabulary)


@torch.no_grad()
def test_logits_of_kept_tokens_are_those_of_the_whole_model(
    tiny_en: Model, vocabulary: PrunedVocabulary, pruned: WhisperForConditionalGeneration
):
    states = torch.randn(1, 9, 384, generator=torch.Generator().manual_seed(0))
    kept = [*vocabulary.token_ids, *range(50_256, 51_864)]
    ids = [50_257, 50_362, *vocabulary.token_ids[300:310]]
    of_student = [vocabulary.student_id(i) for i in ids]
    found, whole = (
        model(encoder_outputs=(states,), decoder_input_ids=torch.tensor([row])).logits
        for model, row in ((pruned, of_student), (tiny_en[0], ids))
    )
    torch.testing.assert_close(found, whole[:, :, kept])
    assert pruned.proj_out.weight is pruned.model.decoder.embed_tokens.weight
    assert not pruned.model.encoder.embed_positions.weight.requires_grad and pruned.proj_out.weight.requires_grad


def test_configs_name_the_student_s_tokens(tiny_en: Model, vocabulary: PrunedVocabulary):
    model = copy.deepcopy(tiny_en[0])
    model.config.suppress_tokens, model.config.forced_decoder_ids = [1, 50_255], [[1, 50_362], [2, None]]
    settings = model.generation_config
    settings.forced_decoder_ids, settings.lang_to_id = [[1, 50_362]], {"<|en|>": 50_258}
    settings.eos_token_id = [50_256]
    student = prune(model, vocabulary)
    shift = 50_256 - KEPT
    config, found = student.config, student.generation_config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (51_864 - shift, KEPT, KEPT)
    assert config.decoder_start_token_id == found.decoder_start_token_id == KEPT + 1
    assert config.suppress_tokens == [1] and config.forced_decoder_ids == [[1, 50_362 - shift], [2, None]]
    assert found.forced_decoder_ids == [[1, 50_362 - shift]] and found.lang_to_id == {"<|en|>": KEPT + 2}
    assert found.eos_token_id == [KEPT] and found.no_timestamps_token_id == 50_362 - shift
    assert found.begin_suppress_tokens == [220, KEPT]
    assert found.suppress_tokens == [vocabulary.student_id(i) for i in settings.suppress_tokens]
    assert found.alignment_heads == settings.alignment_heads
    assert model.config.vocab_size == 51_864 and settings.no_timestamps_token_id == 50_362  # unchanged


def test_a_saved_student_is_loaded_with_its_tokens(
    vocabulary: PrunedVocabulary, pruned: WhisperForConditionalGeneration, tmp_path: Path
):
    save_whisper(pruned, pruned_tokens(vocabulary), tmp_path / "saved")
    model, tokens = load_whisper(str(tmp_path / "saved"))
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.generation_config.suppress_tokens == pruned.generation_config.suppress_tokens
    stock = AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer
    text = " Astronomically naïve: «ö» 你好"
    assert (
        stock(text, add_special_tokens=False).input_ids == tokens.encode(text) == pruned_tokens(vocabulary).encode(text)
    )
    assert stock.decode(tokens.encode(text)) == text
    assert stock.convert_tokens_to_ids("<|notimestamps|>") == tokens.id_of("<|notimestamps|>")


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Utterance]:
    return utterances(speech, 5)


@pytest.fixture(scope="module")
def folders(
    tiny_en: Model, weights: Path, clips: list[Utterance], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders of tiny.en, whole and with the words of the clips; an untrained student."""
    folder = tmp_path_factory.mktemp("models")
    texts = [t.text for t in Engine(weights).transcribe([waveform_of(c) for c in clips])]
    counts = {i: 1 for text in (*texts, *(c.text for c in clips), PROMPT) for i in tiny_en[1].encode(text)}
    vocabulary = choose_tokens(tiny_en[1], counts, suppressed_tokens(str(weights)), KEPT)
    save_whisper(*tiny_en, folder / "whole")
    save_whisper(prune(tiny_en[0], vocabulary), pruned_tokens(vocabulary), folder / "small")
    for name in ("whole", "small"):
        convert_to_ctranslate2(folder / name, folder / f"{name}-int8", "int8")
    return {file.name: file for file in folder.iterdir()}


TRIMMED = DecodingWindow(0.3, 1.0)
DECODINGS: dict[str, tuple[DecodingWindow | None, Decoding]] = {
    "padded": (None, Decoding()),
    "greedy": (TRIMMED, Decoding()),
    "timestamps": (TRIMMED, Decoding(timestamps=True)),
    "prompt": (TRIMMED, Decoding(prompt=PROMPT, confidence=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODINGS)
def test_the_engine_writes_the_same_texts(folders: dict[str, Path], clips: list[Utterance], name: str):
    window, decoding = DECODINGS[name]
    small, whole = (
        Engine(folders[f"{model}-int8"], window=window, decoding=decoding).transcribe([waveform_of(c) for c in clips])
        for model in ("small", "whole")
    )
    assert [(t.text, t.token_texts, t.ended) for t in small] == [(t.text, t.token_texts, t.ended) for t in whole]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("timestamps", [False, True])
def test_transformers_writes_the_same_texts(folders: dict[str, Path], clips: list[Utterance], timestamps: bool):
    texts: dict[str, list[str]] = {}
    for name in ("small", "whole"):
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folders[name])
        processor = AutoProcessor.from_pretrained(folders[name])
        features = log_mel_padded([waveform_of(clip) for clip in clips[:3]])
        ids = model.generate(features, return_timestamps=timestamps)
        texts[name] = processor.batch_decode(ids, skip_special_tokens=True, decode_with_timestamps=timestamps)
    assert texts["small"] == texts["whole"] and all(texts["small"])
    assert ("<|" in texts["small"][0]) == timestamps


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_stock_faster_whisper_writes_the_same_texts(folders: dict[str, Path], clips: list[Utterance], plain: bool):
    options = {"without_timestamps": True} if plain else {"word_timestamps": True}
    found: dict[str, list[str]] = {}
    for name in ("small", "whole"):
        model = WhisperModel(str(folders[f"{name}-int8"]), device="cpu", compute_type="int8")
        assert not model.model.is_multilingual
        segments = [list(model.transcribe(waveform_of(c), beam_size=1, temperature=0.0, **options)[0]) for c in clips]
        found[name] = ["".join(s.text for s in of_clip) for of_clip in segments]
    assert found["small"] == found["whole"]


@pytest.mark.slow
def test_a_multilingual_model_stays_multilingual_in_every_engine(tmp_path: Path, clips: list[Utterance]):
    reference = str(fetch_weights("base"))
    model, tokens = load_whisper(reference)
    waveforms = [waveform_of(clip) for clip in clips[:2]]
    counts = {i: 1 for t in Engine(Path(reference)).transcribe(waveforms, None) for i in t.token_ids}
    vocabulary = choose_tokens(tokens, counts, suppressed_tokens(reference), KEPT)
    save_whisper(prune(model, vocabulary), pruned_tokens(vocabulary), tmp_path / "small")
    convert_to_ctranslate2(tmp_path / "small", tmp_path / "int8", "int8")
    assert Tokens(tmp_path / "int8").languages == tokens.languages
    for language in ("en", None):
        small, whole = (Engine(f).transcribe(waveforms, language) for f in (tmp_path / "int8", Path(reference)))
        assert [(t.text, t.language) for t in small] == [(t.text, t.language) for t in whole]
    stock = WhisperModel(str(tmp_path / "int8"), device="cpu", compute_type="int8")
    assert stock.model.is_multilingual and stock.transcribe(waveforms[0])[1].language == "en"
    processor = AutoProcessor.from_pretrained(tmp_path / "small")
    generated = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "small").generate(
        log_mel_padded(waveforms[:1]), language="de", task="transcribe"
    )
    assert processor.batch_decode(generated, skip_special_tokens=True)[0]
