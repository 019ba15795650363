"""What a folder holds that --peer of benchmarks/engines.py names: which kind of model, and in which files.

The layout is that of sherpa-onnx's model archives, with names such as ``tiny.en-encoder.int8.onnx``,
``joiner-epoch-99-avg-1.onnx`` and ``model.int8.onnx``. Where several kinds of models have the same names, the metadata
``model_type`` of the first file tells them apart.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from askd_ray.errors import AskdError


@dataclass(frozen=True)
class SherpaModel:
    """A model that sherpa-onnx opens.

    ``constructor`` is a class method of its ``OfflineRecognizer``, which takes ``arguments`` and the threads.
    ``weights`` are all files of the model, without the tokens.
    """

    name: str
    constructor: str
    arguments: dict[str, str]
    weights: tuple[Path, ...]


LAYOUTS: dict[str, tuple[str, dict[str, str]]] = {
    "moonshine_v2": (".ort", {"encoder": "encoder_model", "decoder": "decoder_model_merged"}),
    "moonshine": (
        ".onnx",
        {
            "preprocessor": "preprocess",
            "encoder": "encode",
            "uncached_decoder": "uncached_decode",
            "cached_decoder": "cached_decode",
        },
    ),
    "transducer": (".onnx", {"encoder": "encoder", "decoder": "decoder", "joiner": "joiner"}),
    "whisper": (".onnx", {"encoder": "encoder", "decoder": "decoder"}),
    "ctc": (".onnx", {"model": "(?:model|ctc)"}),
}
"""The suffix of the files, and for each argument of the constructor the word in the file's name; first match wins."""
KINDS: dict[str, dict[str, str]] = {
    "transducer": {
        "conformer": "transducer",
        "zipformer": "transducer",
        "zipformer2": "transducer",
        "EncDecRNNTBPEModel": "nemo_transducer",
        "EncDecHybridRNNTCTCBPEModel": "nemo_transducer",
    },
    "whisper": {"whisper": "whisper"},
    # Those that transcribe English: the clips of the benchmark are English.
    "ctc": {
        "zipformer2_ctc": "zipformer_ctc",
        "EncDecCTCModel": "nemo_ctc",
        "EncDecCTCModelBPE": "nemo_ctc",
        "EncDecHybridRNNTCTCBPEModel": "nemo_ctc",
        "wenet_ctc": "wenet_ctc",
        "sense_voice_ctc": "sense_voice",
        "medasr_ctc": "medasr_ctc",
        "omnilingual-asr": "omnilingual_asr_ctc",
        "fire-red-asr-2-ctc": "fire_red_asr_ctc",
    },
}
"""For a layout with several kinds of models: the kind by ``model_type``, or by the part of it before a dash."""
_PRECISIONS = ("int8", "", "fp16")
"""In the order of preference: fp16 is slow on a CPU."""


def models_of(folders: Sequence[Path]) -> list[SherpaModel]:
    """Return the model of each folder; raises :class:`AskdError` for a folder without one, and for equal names."""
    models = [sherpa_model(folder) for folder in folders]
    for model, folder in zip(models, folders, strict=True):
        if sum(other.name == model.name for other in models) > 1:
            raise AskdError(f"--peer {folder}: another folder has the row {model.name!r}, too: rename one")
    return models


def sherpa_model(folder: Path) -> SherpaModel:
    """Return the model in a folder; int8 files are preferred, and then its name says so.

    Raises :class:`AskdError` when the folder has none of the layouts, or several models.
    """
    if not folder.is_dir():
        raise AskdError(f"--peer {folder}: no such folder")
    tokens = [file for file in folder.iterdir() if re.fullmatch(r"(.*-)?tokens\.txt", file.name)]
    if len(tokens) != 1:
        raise _refusal(folder, "several tokens.txt" if tokens else "no tokens.txt")
    for layout, (suffix, words) in LAYOUTS.items():
        candidates = sorted(folder.glob(f"*{suffix}"))
        files = {argument: _preferred(folder, candidates, word) for argument, word in words.items()}
        if all(files.values()):
            return _model(folder, layout, {argument: file for argument, file in files.items() if file}, tokens[0])
    raise _refusal(folder, "none of these layouts")


def _model(folder: Path, layout: str, files: dict[str, Path], tokens: Path) -> SherpaModel:
    kind, external = layout, set[Path]()
    if layout in KINDS:
        read = {file: _metadata(folder, file) for file in files.values()}
        external = {file.parent / place for file, (_, places) in read.items() for place in places}
        first = next(iter(files.values()))
        model_type = read[first][0]
        kinds = KINDS[layout]
        kind = kinds.get(model_type) or kinds.get(model_type.partition("-")[0], "")
        if not kind:
            found = f"{first.name} has the model_type {model_type!r}, not one of {', '.join(kinds)}"
            raise _refusal(folder, found)
    int8 = " int8" if any(_precision(file) == "int8" for file in files.values()) else ""
    arguments = {"tokens": str(tokens), **{argument: str(file) for argument, file in files.items()}}
    if layout == "transducer":
        arguments["model_type"] = kind
    constructor = f"from_{layout if layout == 'transducer' else kind}"
    name = f"sherpa-onnx {kind.replace('_', ' ')}{int8}, {folder.resolve().name}"
    return SherpaModel(name, constructor, arguments, (*files.values(), *sorted(external)))


def _preferred(folder: Path, files: Sequence[Path], word: str) -> Path | None:
    """Return the file whose name contains ``word``, in the preferred precision; None if there is none."""
    named = [file for file in files if re.search(rf"(^|[-_.]){word}([-_.]|$)", file.stem)]
    for precision in _PRECISIONS:
        found = [file for file in named if _precision(file) == precision]
        if len(found) > 1:
            raise _refusal(folder, f"several models: {', '.join(file.name for file in found)}")
        if found:
            return found[0]
    return None


def _precision(file: Path) -> str:
    last = re.split("[-_.]", file.stem)[-1]
    return last if last in _PRECISIONS else ""


def _metadata(folder: Path, file: Path) -> tuple[str, set[str]]:
    """Return the ``model_type`` of an ONNX file, "" without one, and the names of the files with its weights."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError:
        raise _refusal(folder, f"{file.name} is not an ONNX file") from None
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    model_type = next((entry.value for entry in model.metadata_props if entry.key == "model_type"), "")
    return model_type, {entry.value for entry in entries if entry.key == "location"}


def _refusal(folder: Path, found: str) -> AskdError:
    return AskdError(
        f"--peer {folder}: {found}; needed is a model archive of sherpa-onnx, unpacked: tokens.txt, and encoder, "
        "decoder and joiner of a transducer, encoder and decoder of Whisper, the files of Moonshine, or the model.onnx "
        "of a CTC model"
    )
