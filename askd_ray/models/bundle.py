"""Bundles and bare CTranslate2 folders: read them, open their engine, check their files, add evaluation scores."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from askd_ray.audio.decode import decode
from askd_ray.audio.units import DecodingWindow
from askd_ray.data.shards import write_table
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path, read_json, sha256_of_file, write_json
from askd_ray.models.card import model_card
from askd_ray.models.ctc_engine import CtcEngine
from askd_ray.models.decode_fallback import DecodingEngine, WindowedEngine
from askd_ray.models.description import BundleDescription, BundleReader, reader_of, window_of
from askd_ray.models.engine import Engine
from askd_ray.models.onnx_engine import OnnxEngine
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE
from askd_ray.models.transcript import GREEDY, Decoding
from askd_ray.results.evaluation import Evaluation
from askd_ray.text.error_rate import count_word_errors
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import Device

BUNDLE_FILE, CARD, REFERENCE, HYPOTHESES_FILE = "bundle.json", "README.md", "reference", "hypotheses.parquet"
_MAX_REFERENCE_WER = 0.2  # int8 rounds differently on another CPU: a word of a clip may change
ComputeType = Literal["int8", "float16", "int8_float16", "float32"]
"""How an engine computes; ``int8_float16``: matrix products of int8 weights, everything else in float16."""
_FOLDERS: dict[BundleReader, dict[Device, dict[ComputeType, str]]] = {
    "whisper": {
        "cpu": {"int8": "ctranslate2-int8"},
        "cuda": {"float16": "ctranslate2-float16", "int8_float16": "ctranslate2-int8"},
    },
    "ctc": {
        "cpu": {"int8": "onnx-int8", "float32": "onnx-float32"},
        "cuda": {"float16": "transformers"},  # in torch: onnxruntime's wheel is for CPUs
    },
}
"""The folder of a bundle for a compute type on a device; the first is the default."""
ONNXRUNTIME_FOLDER = "onnxruntime-int8"
"""The folder with which int8 on the CPU decodes greedily; CTranslate2's does the rest (models/onnx_engine.py)."""
COMPUTE_TYPES: dict[Device, tuple[ComputeType, ...]] = {"cpu": ("int8", "float32"), "cuda": ("float16", "int8_float16")}
"""The compute types of a device; a bundle has some of them."""


@dataclass(frozen=True)
class BundleInfo:
    """The description of a model folder, without its weights.

    ``window`` is the one that its student was trained for; None means windows of 30 s. ``languages`` are those of its
    training, for a CTC student, which cannot detect them. ``onnxruntime`` is the folder of the same weights for ONNX
    Runtime; None: CTranslate2 does everything.
    """

    name: str
    folder: Path
    window: DecodingWindow | None
    compute_type: ComputeType
    reader: BundleReader = "whisper"
    languages: tuple[str, ...] = ()
    onnxruntime: Path | None = None

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files of the weights, of all engines that read them."""
        names: tuple[str, ...] = ("model.bin",)
        if self.reader == "ctc":
            in_torch = self.compute_type == "float16"
            names = ("model.safetensors", "ctc_head.safetensors") if in_torch else ("model.onnx",)
        files = tuple(self.folder / name for name in names)
        if self.onnxruntime is not None:
            files += tuple(self.onnxruntime / name for name in (ENCODER_FILE, DECODER_FILE))
        return files

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights; of several files, that of their joined SHA-256."""
        digests = [sha256_of_file(file) for file in self.weight_files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def version(self) -> str:
        """The version of the weights: the first 12 digits of their SHA-256."""
        return self.weights_sha256[:12]


def read_bundle(path: Path, device: Device = "cpu", compute_type: ComputeType | None = None) -> BundleInfo:
    """Read the description of a bundle, or of a bare CTranslate2 Whisper folder, without loading the model.

    ``compute_type`` None is the default of the device: int8 on the CPU, float16 on a GPU.

    Raises :class:`AskdError` when the folder is neither, and for a compute type that it does not have.
    """
    path = local_path(path).resolve()
    if (path / BUNDLE_FILE).is_file():
        info = _described(path, device, compute_type)
    else:
        info = BundleInfo(path.name, path, None, compute_type or COMPUTE_TYPES[device][0])
    if not all(file.is_file() for file in info.weight_files):
        raise AskdError(f"no model in {info.folder}: give a bundle of `askd export` or a CTranslate2 Whisper folder")
    return info


def info_of_student(folder: Path, name: str, reader: BundleReader, window: DecodingWindow | None) -> BundleInfo:
    """Return the description of a bundle that is being written and has only its formats: int8 on the CPU."""
    info = BundleInfo(name, folder / _FOLDERS[reader]["cpu"]["int8"], window, "int8", reader)
    return replace(info, onnxruntime=_onnxruntime(folder, reader, "cpu", "int8"))


def open_engine(
    info: BundleInfo, device: Device = "cpu", threads: int = 0, decoding: Decoding = GREEDY, workers: int = 1
) -> WindowedEngine:
    """Load the model in the compute type of ``info``. ``threads`` = 0 uses all cores.

    Raises :class:`AskdError` when the model cannot be loaded.
    """
    if info.reader == "ctc":
        return CtcEngine(
            info.folder,
            threads=threads,
            device=device,
            window=info.window,
            decoding=decoding,
            languages=info.languages,
        )
    engine = Engine(
        info.folder,
        compute_type=info.compute_type,
        threads=threads,
        workers=workers,
        device=device,
        window=info.window,
        decoding=decoding,
    )
    return engine if info.onnxruntime is None else OnnxEngine(info.onnxruntime, engine, threads, decoding)


def hashes(bundle: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a bundle except its description, by relative path.

    Hidden files are left out: a download from a hub has some.
    """
    files = sorted(f.relative_to(bundle) for f in bundle.rglob("*") if f.is_file())
    visible = [f for f in files if not any(part.startswith(".") for part in f.parts) and str(f) != BUNDLE_FILE]
    return {f.as_posix(): sha256_of_file(bundle / f) for f in visible}


def check_hashes(bundle: Path) -> int:
    """Compare a bundle's files with the hashes in its description; return the number of files.

    Raises :class:`AskdError` with the first file that is missing, added or changed.
    """
    if not (bundle / BUNDLE_FILE).is_file():
        raise AskdError(f"{bundle} is no bundle: it has no {BUNDLE_FILE}; `askd export` writes bundles")
    try:
        expected: dict[str, str] = read_json(bundle / BUNDLE_FILE)["sha256"]
    except (ValueError, KeyError, TypeError):
        raise AskdError(f"{bundle / BUNDLE_FILE} is damaged: export the model again") from None
    actual = hashes(bundle)
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            raise AskdError(f"{bundle / name} is missing: export the model again")
        if expected.get(name) != actual[name]:
            problem = "is corrupt (its SHA-256 is not the recorded one)" if name in expected else "is not part of it"
            raise AskdError(f"bundle {bundle}: {name} {problem}; export the model again")
    return len(actual)


def add_scores(bundle: Path, scores: Evaluation, hypotheses: pa.Table) -> None:
    """Write the scores of an evaluation into the bundle's description and model card, and the model's hypotheses.

    `askd promote` compares two bundles by ``hypotheses``, on the utterances that both have transcribed.

    Raises :class:`AskdError` when the bundle is missing or damaged.
    """
    check_hashes(bundle)
    description: BundleDescription = read_json(bundle / BUNDLE_FILE)
    description["scores"] = scores
    with atomic_path(bundle / CARD) as temporary:
        temporary.write_text(model_card(description), encoding="utf-8")
    write_table(bundle / HYPOTHESES_FILE, hypotheses)
    changed = {name: sha256_of_file(bundle / name) for name in (CARD, HYPOTHESES_FILE)}
    write_json(bundle / BUNDLE_FILE, {**description, "sha256": description.get("sha256", {}) | changed})


def check_reference(engine: DecodingEngine, bundle: Path) -> int:
    """Transcribe a bundle's reference clips and compare with the transcripts of the export; return their number.

    Raises :class:`AskdError` when the transcripts differ by more than rounding explains.
    """
    file = bundle / REFERENCE / "reference.json"
    clips: list[dict[str, str]] = read_json(file) if file.is_file() else []
    references, hypotheses = list[str](), list[str]()
    for clip in clips:
        normalize = normalizer(clip["language"])
        waveform = decode((file.parent / clip["file"]).read_bytes())
        references.append(normalize(clip["text"]))
        hypotheses.append(normalize(engine.transcribe([waveform], clip["language"])[0].text))
    errors = count_word_errors(references, hypotheses)
    if errors.rate > _MAX_REFERENCE_WER:
        raise AskdError(
            f"bundle {bundle}: its transcripts of its {len(clips)} reference clips differ from those of the export in "
            f"{min(errors.rate, 1.0):.0%} of the words; at most {_MAX_REFERENCE_WER:.0%} is allowed"
        )
    return len(clips)


def _described(bundle: Path, device: Device, compute_type: ComputeType | None) -> BundleInfo:
    file = bundle / BUNDLE_FILE
    try:
        description: dict[str, Any] = read_json(file)
        name, window = str(description["name"]), window_of(description)
        reader, languages = reader_of(description), tuple(map(str, description.get("languages", ())))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AskdError(f"{file} is damaged: it must have name and window.silence_s; export the model again") from None
    if reader not in _FOLDERS:
        raise AskdError(f"{file}: reader {reader!r} is unknown, allowed are {', '.join(_FOLDERS)}: a newer bundle?")
    folders = _FOLDERS[reader][device]
    chosen = compute_type or next(iter(folders))
    if chosen not in folders:
        allowed = " or ".join(folders)
        raise AskdError(f"compute_type = {chosen}: {bundle} has only {allowed} for device {device}")
    is_root = description.get("layout") == "hub" and folders[chosen] == "transformers"
    folder = bundle if is_root else bundle / folders[chosen]
    onnxruntime = _onnxruntime(bundle, reader, device, chosen)
    return BundleInfo(name, folder, window, chosen, reader, languages, onnxruntime)


def _onnxruntime(bundle: Path, reader: BundleReader, device: Device, compute_type: ComputeType) -> Path | None:
    """Return the folder for ONNX Runtime, where the bundle has it and it is of use."""
    folder = bundle / ONNXRUNTIME_FOLDER
    is_used = (reader, device, compute_type) == ("whisper", "cpu", "int8")
    return folder if is_used and folder.is_dir() else None
