"""A student with fewer tokens than its teacher trains, resumes, shrinks and is averaged as any other."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed_run import CPU, assert_same_run, killed, metrics_of
from small_run import with_objective
from tiny_run import record_as_labelled

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch
from askd_ray.data.shards import read_table, shard_paths, to_utterances
from askd_ray.data.token_counts import token_counts
from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.targets.kl_report import measure
from askd_ray.targets.soft_labels import label, label_key
from askd_ray.text.tokens import Tokens
from askd_ray.train.average import write_average
from askd_ray.train.build import build_loop, student_kind
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader, read_vocabulary, vocabulary_lines

KEPT = 512
SMALL: dict[str, Any] = {"vocabulary": {"keep": KEPT}}
WHOLE_SIZE, SIZE = 51_864, KEPT + 51_864 - 50_256


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies without the tokens of the train texts: many targets have several pieces."""
    monkeypatch.setattr("askd_ray.targets.student_vocabulary.token_counts", lambda index, labels: {})


def small(labelled: Recipe, objective: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    sections["student"] = SMALL | sections.get("student", {})
    return with_objective(labelled, objective or {}, **sections)


def batches(recipe: Recipe) -> list[Batch]:
    loader = make_batch_loader(recipe, 80)
    tasks = tasks_from(length_grouped_sampler(loader.rows(), loader), DataCursor(), 0, 1)
    return [batch for task in tasks for batch in loader.batches(task) if batch.ids]


def test_batches_are_those_of_the_teacher_s_tokens_with_other_ids(labelled: Recipe):
    vocabulary = read_vocabulary(small(labelled))
    whole_tokens = Tokens(Path(labelled.teacher.model))
    student_id = np.vectorize(lambda i: vocabulary.student_id(int(i)))
    texts = 0
    for ours, theirs in zip(batches(small(labelled)), batches(labelled), strict=True):
        for name in ("ids", "numbers", "log_mel", "n_targets", "has_teacher", "rest_log_prob", "token_loss", "rows"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        assert np.array_equal(ours.targets, student_id(theirs.targets))
        assert ours.targets.max() == KEPT and theirs.targets.max() == whole_tokens.end
        texts += len(ours.ids)
    assert texts == 28


def test_counts_are_those_of_the_labels(labelled: Recipe):
    loader = make_batch_loader(labelled, 80)
    counts = token_counts(loader.rows(), loader.labels)
    assert sum(counts.values()) == sum(b.n_tokens for b in batches(labelled)) / 2
    assert counts[50_256] == 14 and set(counts) == set(loader.rows().token_ids)


def test_pieces_count_as_targets_without_a_teacher(labelled: Recipe, few_words: None):
    tokens = Tokens(Path(labelled.teacher.model))
    n_split = 0
    for ours, theirs in zip(batches(small(labelled)), batches(labelled), strict=True):
        assert ours.has_teacher.sum() == theirs.has_teacher.sum() == theirs.n_tokens
        assert np.array_equal(ours.teacher_loss, theirs.teacher_loss)
        assert np.array_equal(ours.rest_log_prob[ours.has_teacher], theirs.rest_log_prob)
        assert ours.targets.max() < SIZE and ours.top_ids.max() < SIZE
        assert (ours.decoder_ids < SIZE).all() and ours.n_targets.sum() == ours.n_tokens
        n_split += ours.n_tokens - theirs.n_tokens
    assert n_split > 20 and tokens.end > SIZE


def test_the_share_of_tokens_in_pieces_is_told(labelled: Recipe, monkeypatch: pytest.MonkeyPatch):
    assert vocabulary_lines(labelled) == []
    (line,) = vocabulary_lines(small(labelled))
    assert line == "vocabulary: 512 of 50,256 text tokens; 0.00% of the target tokens are written in pieces"
    crowded = dict.fromkeys(range(256, 600), 2) | {40_000: 1, 50_256: 2}
    monkeypatch.setattr("askd_ray.targets.student_vocabulary.token_counts", lambda index, labels: crowded)
    (line,) = vocabulary_lines(small(labelled))
    kept = {*read_vocabulary(small(labelled)).token_ids, 50_256}
    in_pieces = sum(n for token, n in crowded.items() if token not in kept)
    assert in_pieces > 100 and f"; {in_pieces / sum(crowded.values()):.2%} of the target tokens" in line


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "askd": ({"self_teacher": {"switch": 0.3}}, {}),
    "pskd": ({"preset": "pskd"}, {}),
    "best": ({"self_teacher": {"kind": "best", "switch": 0.3}, "divergence": {"kind": "reverse_kl"}}, {}),
    "states": ({"preset": "askd_window", "self_teacher": {"switch": 0.3}}, {"targets": {"states": "all"}}),
    "adakd": ({"preset": "adakd"}, {}),
    "shrink": (
        {"self_teacher": {"kind": "ema", "switch": 0.2}},
        {"student": {"shrink": [{"at": 0.5, "decoder_layers": [1]}]}},
    ),
    "pooling": ({"self_teacher": {"switch": 0.3}}, {"student": {"compressor": {"kind": "pooling", "rate": 12.5}}}),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_resumes_exactly(labelled: Recipe, few_words: None, tmp_path: Path, name: str):
    objective, sections = CASES[name]
    recipe = small(labelled, objective, train={"evals_per_epoch": 2}, **sections)
    build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key").run()
    killed(recipe, tmp_path / "killed", 9)
    build_loop(recipe, PlainContext(CPU), tmp_path / "killed", "key").run()
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    metrics = metrics_of(tmp_path / "whole")
    assert 0.3 < metrics[0]["taught"] < 0.9
    assert metrics[-1]["ce"] < metrics[0]["ce"]


def test_student_learns_and_is_saved_with_its_vocabulary(labelled: Recipe, tmp_path: Path):
    summary = build_loop(small(labelled), PlainContext(CPU), tmp_path, "key").run()
    metrics = metrics_of(tmp_path)
    assert metrics[0]["taught"] == 1.0 and metrics[-1]["ce"] < 0.95 * metrics[0]["ce"]
    student, tokens = load_whisper(str(tmp_path / "best"))
    assert student.config.vocab_size == SIZE and tokens.end == KEPT
    assert summary["params_m"] == round(sum(p.numel() for p in student.parameters()) / 1e6, 2)
    assert tokens.decode(tokens.encode("Any text, naïve")) == "Any text, naïve"


@pytest.mark.parametrize("hidden", [False, True])
def test_an_online_teacher_has_the_student_s_tokens(
    labelled: Recipe, few_words: None, tmp_path: Path, tiny_model: Path, hidden: bool
):
    values = small(labelled).model_dump(mode="json") | {"teacher": {"model": str(tiny_model), "online": True}}
    if hidden:
        values["objective"] = {"hidden_states": {"kind": "mse", "layers": [[-1, -1]]}}
    recipe = Recipe.model_validate(values)
    record_as_online(recipe, tmp_path)
    recipe = recipe.model_copy(update={"runs_root": str(tmp_path / "runs")})
    build_loop(recipe, PlainContext(CPU), tmp_path / "whole", "key").run()
    metrics = metrics_of(tmp_path / "whole")
    assert abs(metrics[0]["kd"]) < 1e-3 < metrics[1]["kd"]  # at the start, the student is the teacher
    assert metrics[0]["teacher_ce"] > 0.0 and np.isfinite([m["loss"] for m in metrics]).all()


def record_as_online(recipe: Recipe, folder: Path) -> None:
    """Copy the shards, and write labels without probabilities."""
    source = Run(recipe)
    run = Run(recipe.model_copy(update={"runs_root": str(folder / "runs")}))
    shutil.copytree(source.shards.path, run.shards.path)
    model, tokens = load_whisper(recipe.teacher.model)
    for shard in shard_paths(run.shards, "train"):
        made = label(model, tokens, to_utterances(read_table(shard)), recipe)
        write_labels(run.labels / shard.name, made, label_key(recipe))


@pytest.fixture
def smaller(labelled: Recipe, tmp_path: Path) -> Path:
    """The folder of a student with fewer tokens."""
    kind = student_kind(small(labelled))
    kind.save(kind.build(0), tmp_path / "smaller")
    return tmp_path / "smaller"


def test_student_of_fewer_tokens_is_trained_on_with_these(
    labelled: Recipe, smaller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the targets of the new run are."""
    monkeypatch.setattr("askd_ray.targets.student_vocabulary.token_counts", lambda index, labels: {30_000: 1})
    recipe = small(labelled, student={"init": str(smaller)})
    assert read_vocabulary(recipe).token_ids != read_vocabulary(small(labelled)).token_ids
    built = student_kind(recipe).build(0).whisper
    before, _ = load_whisper(str(smaller))
    assert all(torch.equal(built.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    assert student_kind(recipe).costs() == student_kind(small(labelled)).costs()
    assert measure(recipe, shard_paths(Run(recipe).shards, "train")[0], tmp_path) == []
    loop = build_loop(recipe, PlainContext(CPU), tmp_path / "run", "key")
    loop.run()
    metrics = metrics_of(tmp_path / "run")
    assert metrics[-1]["ce"] < metrics[0]["ce"]
    _, tokens = load_whisper(str(tmp_path / "run" / "best"))
    assert tokens.tokenizer.get_vocab() == Tokens(smaller).tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"vocabulary": None}, "has 512 of the teacher's 50256 text tokens: set student.vocabulary.keep=512"),
        ({"vocabulary": {"keep": 600}}, "set student.vocabulary.keep=512 to train on with these"),
        ({"vocabulary": None, "reader": "hybrid"}, "student.reader=hybrid needs all of them"),
        ({"vocabulary": None, "reader": "ctc"}, "student.reader=ctc needs all of them"),
    ],
)
def test_smaller_student_needs_its_number_of_tokens(
    labelled: Recipe, smaller: Path, student: dict[str, Any], message: str
):
    objective = {"preset": "askd_ctc"} if student.get("reader") == "ctc" else {}
    with pytest.raises(AskdError, match=message):
        student_kind(small(labelled, objective, student={"init": str(smaller), **student}))


def test_student_of_other_tokens_is_refused(labelled: Recipe, smaller: Path):
    settings = read_json(smaller / "tokenizer.json")
    ids = settings["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    write_json(smaller / "tokenizer.json", settings)
    with pytest.raises(AskdError, match="its vocabulary is not that of the teacher"):
        student_kind(small(labelled, student={"init": str(smaller)}))


def test_students_of_one_vocabulary_are_averaged(labelled: Recipe, copy_of_run: Any, tmp_path: Path):
    recipe = small(copy_of_run())
    record_as_labelled(Run(recipe))
    runs: list[Run] = []
    for seed in range(2):
        named = {**recipe.model_dump(mode="json"), "name": f"seed-{seed}", "data_run": recipe.name, "seed": seed}
        runs.append(Run(Recipe.model_validate(named)))
        kind = student_kind(runs[-1].recipe)
        student = kind.build(0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        kind.save(student, runs[-1].student)
    mean = Run(runs[0].recipe.model_copy(update={"name": "mean"}))
    result = write_average(mean, runs)
    model, tokens = load_whisper(str(mean.student))
    assert result["students"] == ["seed-0", "seed-1"] and (model.config.vocab_size, tokens.end) == (SIZE, KEPT)


def test_a_student_of_other_train_texts_is_refused(labelled: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = student_kind(small(labelled))
    kind.save(kind.build(0), tmp_path / "student")
    kind.load(tmp_path / "student", 0)
    monkeypatch.setattr("askd_ray.targets.student_vocabulary.token_counts", lambda index, labels: {30_000: 1})
    with pytest.raises(AskdError, match="student: its vocabulary is not that of this run"):
        student_kind(small(labelled)).load(tmp_path / "student", 0)


@pytest.mark.parametrize("reader", ["ctc", "hybrid"])
def test_other_readers_are_refused(labelled: Recipe, reader: str):
    with pytest.raises(ValueError, match=f"vocabulary is of a decoder alone: reader = {reader} needs vocabulary=null"):
        small(labelled, student={"reader": reader})


def test_costs_are_those_of_the_smaller_vocabulary(labelled: Recipe):
    teacher, student = student_kind(small(labelled)).costs()
    whole = student_kind(labelled).costs()[1]
    removed = WHOLE_SIZE - SIZE
    assert whole.params - student.params == removed * 32 and teacher.params == whole.params
    assert student.params == sum(p.numel() for p in student_kind(small(labelled)).build(0).whisper.parameters())
    with pytest.raises(AskdError, match=r"student.vocabulary.keep = 60000: .* has 50256 text tokens"):
        student_kind(small(labelled, student={"vocabulary": {"keep": 60_000}})).costs()
