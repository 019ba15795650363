"""The stage `export`: writes the best student as a bundle that others can run.

<run>/bundle/
    transformers/           model.safetensors, tokenizer, preprocessor and generation configs
    ctranslate2-int8/       for CPUs (faster-whisper, askd serve); of a CTC student onnx-int8/ and onnx-float32/
    onnxruntime-int8/       for greedy decoding on CPUs (askd serve); not of a CTC student
    ctranslate2-float16/    for GPUs; a CTC student runs there from transformers/
    ...                     a folder for each optional format that the command names (bundles/formats.py)
    reference/              a few dev clips, and the model's transcripts of them
    licences/               licence texts of the teacher and of the data, if they have any
    README.md               the model card
    hypotheses.parquet      the student's hypotheses in its last evaluation
    recipe.yaml             the recipe of the run
    bundle.json             description, window and how it was chosen, scores, and the SHA-256 of every other file
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from askd_ray.audio.units import DecodingWindow
from askd_ray.bundles.formats import Format, formats_to_write
from askd_ray.bundles.verify import verify
from askd_ray.bundles.window_sweep import chosen_window, sweep_clips, sweep_windows, window_grid
from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.data.dev import read_dev
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import derived_paths, read_table, shard_paths, waveform_of
from askd_ray.errors import AskdError
from askd_ray.fetch.speech import speech_folder
from askd_ray.files import atomic_path, read_json, write_json
from askd_ray.location import Location
from askd_ray.models.bundle import (
    BUNDLE_FILE,
    CARD,
    REFERENCE,
    BundleInfo,
    check_hashes,
    hashes,
    info_of_student,
    open_engine,
)
from askd_ray.models.card import model_card
from askd_ray.models.ctc import is_ctc_student
from askd_ray.models.description import BundleDescription, BundleReader, BundleVocabulary, reader_of
from askd_ray.models.load import quiet_transformers
from askd_ray.models.reference import resolve
from askd_ray.progress import console
from askd_ray.provenance import git_sha, versions
from askd_ray.results.windows import WindowSweep
from askd_ray.runs import BUNDLE, Result, Run, StageWork, run_stage, stage_key
from askd_ray.text.tokens import Tokens

FORMAT = 3
"""Version of a bundle: from 2 on, the window has ``min_s``; from 3 on, there is a folder for ONNX Runtime."""

_N_REFERENCE = 3  # dev clips that are stored in the bundle
_N_CLIPS = 6  # dev clips that each format transcribes before the bundle is published


def export(recipe: Recipe, force: bool = False, formats: Sequence[str] = ()) -> Result:
    """Write the best student as a bundle, verify it on real dev clips, and publish it atomically.

    ``formats`` names optional formats, which it gets beside those of every bundle (:mod:`askd_ray.bundles.formats`). A
    finished bundle that lacks some of them keeps its files and scores, and gets these formats.

    Returns the bundle's folder, its formats, the student's size and the agreement of the formats.

    Raises :class:`AskdError` without a student or dev shards, for a student that the formats cannot run, for a format
    that this student cannot have, and when the formats disagree.
    """
    if recipe.student.reader == "llm":
        raise AskdError("student.reader llm: no engine of a bundle runs an LLM, so this student cannot be exported")
    if recipe.student.compressor.kind != "none":
        raise AskdError(
            f"student.compressor {recipe.student.compressor.kind}: no engine of a bundle reads compressed states, so "
            "this student cannot be exported; distill with student.compressor.kind=none"
        )
    run = Run(recipe)
    key = stage_key(FORMAT, recipe.window.choose_on_dev, run.key("distill"))
    done = run.finished("export", key) if run.has(f"{BUNDLE}/{BUNDLE_FILE}") and not force else None
    if done is None:
        if not run.has("distill/best/model.safetensors"):
            raise AskdError(f"no student in {run.place / 'distill/best'}: run `askd distill` first")
        shard_paths(run.shards, "dev")  # raises where there are none
    complete = done is not None and set(formats) <= set(done.get("formats", ()))

    def work() -> Result:
        if done is not None:
            run.fetch(BUNDLE)
            return _add_formats(run, formats)
        run.fetch("distill/best")
        return _export(run, formats)

    # Until the new bundle is verified, the one before stays valid.
    last = done if complete else None
    stage = StageWork(run, "export", key, last, work, lambda _: str(run.place / BUNDLE), (BUNDLE,), forgets=False)
    return {**run_stage(stage, force), "bundle": str(run.bundle)}


def _export(run: Run, names: Sequence[str]) -> Result:
    reader: BundleReader = "ctc" if is_ctc_student(run.student) else "whisper"
    formats = formats_to_write(reader, names)
    dev = read_dev(run.shards, run.labels, {}).clips
    clips = _verified_clips(dev)
    with quiet_transformers(), atomic_path(run.bundle) as temporary:
        temporary.mkdir()
        _convert(run.student, temporary, formats)
        window = DecodingWindow.of(run.recipe.window)
        info = info_of_student(temporary, run.recipe.name, reader, window)
        sweep = _sweep(info, dev, window) if run.recipe.window.choose_on_dev else None
        if sweep is not None:
            window = chosen_window(sweep)
            info = replace(info, window=window)
        _write(temporary, run, clips, info, sweep, formats)
        verified = _verify(temporary, clips)
        run.forget("export")
    return _result(run, verified)


def _add_formats(run: Run, names: Sequence[str]) -> Result:
    """Write further formats into the finished bundle; everything else stays as it is, its scores too."""
    check_hashes(run.bundle)  # before new hashes are written
    description: BundleDescription = read_json(run.bundle / BUNDLE_FILE)
    there = {form.name for form in formats_to_write(reader_of(description), description.get("formats", ()))}
    formats = formats_to_write(reader_of(description), {*there, *names})
    clips = _verified_clips(read_dev(run.shards, run.labels, {}).clips)
    with quiet_transformers(), atomic_path(run.bundle) as temporary:
        shutil.copytree(run.bundle, temporary)
        _convert(run.bundle / "transformers", temporary, [form for form in formats if form.name not in there])
        _write_description(temporary, {**description, "formats": [form.name for form in formats]})
        verified = _verify(temporary, clips)
        run.forget("export")
    return _result(run, verified)


def _verified_clips(dev: Sequence[Utterance]) -> list[Utterance]:
    return [u for u in dev if not u.derived][:_N_CLIPS]


def _convert(source: Path, bundle: Path, formats: Sequence[Format]) -> None:
    for form in formats:
        with console.status(f"Converting the student: {form.name}"):
            form.write(source, bundle / form.name)


def _verify(bundle: Path, clips: Sequence[Utterance]) -> Result:
    with console.status(f"Verifying every format on {len(clips)} clips"):
        return verify(bundle, clips)


def _result(run: Run, verified: Result) -> Result:
    description: BundleDescription = read_json(run.bundle / BUNDLE_FILE)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in verified["agreement"].items())
    console.print(f"exported: {run.place / BUNDLE}; same text from {shares} of {verified['clips']} clips")
    return {
        "bundle": str(run.bundle),
        "formats": description.get("formats", []),
        "params_m": description["params_m"],
        "size_mb": {f.name: _size_mb(f) for f in sorted(run.bundle.iterdir()) if f.is_dir()},
        "window": description["window"],
        "window_sweep": description.get("window_sweep"),
        **verified,
    }


def _sweep(info: BundleInfo, dev: Sequence[Utterance], window: DecodingWindow) -> WindowSweep:
    """Compare a grid of windows, and ``window``, on dev clips, in int8."""
    clips, windows = sweep_clips(dev), window_grid(window)
    with console.status(f"Comparing {len(windows)} windows on {len(clips)} dev clips"):
        sweep = sweep_windows(open_engine(info), clips, windows)
    console.print(f"window: {chosen_window(sweep)}, of {len(windows)} compared on {len(clips)} dev clips")
    return sweep


def _write(
    folder: Path,
    run: Run,
    clips: Sequence[Utterance],
    info: BundleInfo,
    sweep: WindowSweep | None,
    formats: Sequence[Format],
) -> None:
    """Write all other files of the bundle into ``folder``, which has the formats."""
    _write_reference(folder, clips, info)
    _copy_licences(folder / "licences", run)
    (folder / "recipe.yaml").write_text(dump_recipe(run.recipe), encoding="utf-8")
    description = _describe(folder, run, info, sweep)
    _write_description(folder, {**description, "formats": [form.name for form in formats]})


def _write_description(folder: Path, description: BundleDescription) -> None:
    """Write the model card and bundle.json of a bundle whose other files are there."""
    (folder / CARD).write_text(model_card(description), encoding="utf-8")
    write_json(folder / BUNDLE_FILE, {**description, "sha256": hashes(folder)})


def _write_reference(folder: Path, clips: Sequence[Utterance], info: BundleInfo) -> None:
    """Write a few clips and the model's transcripts, so that a loader can check that the bundle still works."""
    engine = open_engine(info)
    (folder / REFERENCE).mkdir()
    transcripts: list[dict[str, str]] = []
    for number, clip in enumerate(sorted(clips, key=lambda clip: clip.duration_s)[:_N_REFERENCE]):
        name = f"clip-{number}{Path(clip.path).suffix}"
        (folder / REFERENCE / name).write_bytes(clip.audio)
        text = engine.transcribe([waveform_of(clip)], clip.language)[0].text
        transcripts.append({"file": name, "language": clip.language, "text": text})
    write_json(folder / REFERENCE / "reference.json", transcripts)


def _describe(folder: Path, run: Run, info: BundleInfo, sweep: WindowSweep | None) -> BundleDescription:
    recipe, window = run.recipe, info.window
    assert window is not None
    rows = [row for path in shard_paths(run.shards, "train") for row in _rows(path)]
    return {
        "format": FORMAT,
        "reader": info.reader,
        "name": recipe.name,
        "teacher": recipe.teacher.model,
        "window": asdict(window),
        "window_sweep": sweep,
        "languages": sorted({row["language"] for row in rows}),
        "vocabulary": _vocabulary(folder / "transformers", recipe),
        "data": {
            "utterances": len(rows),
            "derived": _derived_clips(run),
            "hours": round(sum(row["duration_s"] for row in rows) / 3600, 3),
            "domains": dict(sorted(Counter(row["domain"] for row in rows).items())),
            "licences": dict(sorted(Counter(row["licence"] for row in rows).items())),
        },
        "params_m": _params_m(folder / "transformers"),
        "objective": recipe.objective.model_dump(mode="json"),
        "epochs": recipe.train.epochs,
        "scores": None,
        "git_sha": git_sha(),
        "versions": versions(),
    }


def _vocabulary(student: Path, recipe: Recipe) -> BundleVocabulary | None:
    """Return the sizes of the vocabularies of the student and of its teacher; None if they are the same."""
    text_tokens, of_teacher = (Tokens(folder).end for folder in (student, resolve(recipe.teacher.model)))
    return None if text_tokens == of_teacher else {"text_tokens": text_tokens, "of_teacher": of_teacher}


def _derived_clips(run: Run) -> dict[str, int]:
    """Return the number of derived train clips by kind."""
    kinds = [read_table(path, ["kind"]).column("kind") for path in derived_paths(run.shards, "train")]
    return dict(sorted(Counter(kind for column in kinds for kind in column.to_pylist()).items()))


def _rows(path: Location) -> list[dict[str, Any]]:
    return read_table(path, ["language", "licence", "domain", "duration_s"]).to_pylist()


def _copy_licences(folder: Path, run: Run) -> None:
    """Copy the licence texts of the teacher and of fetched speech, so that the model keeps its attribution."""
    origins = {"teacher": resolve(run.used("label").teacher.model)}
    for source in run.used("prepare").data.sources:
        if source.path.startswith("cache:"):
            name = source.path.removeprefix("cache:")
            origins[f"data-{name}"] = speech_folder(name)
    for name, origin in origins.items():
        for file in sorted(origin.glob("LICEN[SC]E*")):
            folder.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / f"{name}-{file.name}")


def _params_m(folder: Path) -> float:
    """Return the number of stored weights in millions; tied weights are stored once."""
    n = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if name != "token_ids"]  # a CTC head's vocabulary
            n += sum(prod(file.get_slice(name).get_shape()) for name in names)
    return round(n / 1e6, 3)


def _size_mb(folder: Path) -> float:
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6, 1)
