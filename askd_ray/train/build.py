"""Build the training of a recipe. Only this module of the training knows which kinds of students there are."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.amp.grad_scaler import GradScaler

from askd_ray.config.schema import Recipe
from askd_ray.data.dev import read_dev
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.row_index import RowIndex
from askd_ray.data.sampler import SamplerFactory
from askd_ray.models.compressed_student import CompressedStudentKind
from askd_ray.models.ctc_student import CtcStudentKind
from askd_ray.models.hybrid_student import HybridStudentKind
from askd_ray.models.llm_student import LlmStudentKind
from askd_ray.models.load import load_config, load_whisper
from askd_ray.models.reference import resolve
from askd_ray.models.student import StudentKind, StudentModel
from askd_ray.models.vocabulary import prune
from askd_ray.models.whisper_student import WhisperStudentKind
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.online_teacher import OnlineTeacher, encoders_agree
from askd_ray.objective.readers import DECODER, CtcReader, Reader
from askd_ray.objective.schedules import Gap
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.runs import Run
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import CtcVocabulary, Segmenter
from askd_ray.torch_setup import DTYPES, use_tf32, use_threads
from askd_ray.train.best import BestStudent
from askd_ray.train.checkpoint import TrainObjects, TrainState, latest_train_state, load_checkpoint
from askd_ray.train.checkpoint_store import CheckpointStore
from askd_ray.train.context import Context
from askd_ray.train.dev import rank_part
from askd_ray.train.inputs import make_batch_loader, read_vocabulary
from askd_ray.train.ledger import Ledger
from askd_ray.train.loop import CHECKPOINTS, LEDGER, SELF_TEACHER, Loop
from askd_ray.train.optim import build_optimizer
from askd_ray.train.parallel import shard
from askd_ray.train.shrink import check_shrinkings
from askd_ray.train.weight_ema import WeightEma

StudentKindFactory = Callable[[Recipe, int], StudentKind]
"""Makes the kind of a recipe's student; the number is the width of an online teacher's encoder states, or 0."""


def student_kind(recipe: Recipe, teacher_width: int = 0) -> StudentKind:
    """Return the kind of a recipe's student.

    Raises :class:`AskdError` when the recipe asks for a student that cannot be built.
    """
    if recipe.student.reader == "ctc":
        return CtcStudentKind(recipe, partial(_ctc_vocabulary, recipe))
    if recipe.student.reader == "hybrid":
        return HybridStudentKind(recipe, partial(_ctc_vocabulary, recipe))
    if recipe.student.compressor.kind != "none":
        if recipe.student.reader == "llm":
            return LlmStudentKind(recipe, recipe.student.compressor)
        compressor = recipe.student.compressor
        return CompressedStudentKind(recipe, compressor, teacher_width, partial(read_vocabulary, recipe))
    return WhisperStudentKind(recipe, teacher_width, partial(read_vocabulary, recipe))


def _ctc_vocabulary(recipe: Recipe) -> CtcVocabulary:
    """Return the units of a recipe's CTC head: the tokens of its train texts, and all bytes."""
    tokens = Tokens(resolve(recipe.student.init or recipe.teacher.model))
    used = make_batch_loader(recipe, n_mels=80).rows().token_ids
    return CtcVocabulary.of([i for i in used if i < tokens.end])


def student_reader(recipe: Recipe) -> Reader:
    """Return what reads the encoder of a recipe's student, for its objective."""
    if recipe.student.reader in ("whisper", "llm"):
        return DECODER
    tokens, config = Tokens(resolve(recipe.teacher.model)), load_config(recipe.teacher.model)
    segmenter = Segmenter(_ctc_vocabulary(recipe), tokens, config.vocab_size)
    return CtcReader(recipe.objective, segmenter, recipe.student.reader == "hybrid")


def build_loop(
    recipe: Recipe,
    context: Context,
    folder: Path,
    key: str,
    build_sampler: SamplerFactory = length_grouped_sampler,
    build_kind: StudentKindFactory = student_kind,
) -> Loop:
    """Return the training of a recipe's student into ``folder`` on one rank, ready to start or to resume.

    ``key`` identifies the inputs (see runs.py). Raises :class:`AskdError` when the inputs or the checkpoint cannot be
    used.
    """
    use_threads(processes=context.world_size)
    use_tf32(context.device)
    mirror = Run(recipe).mirror
    mirror = mirror.below(folder) if mirror is not None else None
    store = CheckpointStore(mirror, context.rank, context.world_size, LEDGER)
    store.restore()
    train_state = latest_train_state(folder / CHECKPOINTS) or TrainState(key)
    assert train_state.key == key, f"{folder} is of another recipe"
    _check_same_step(train_state.step, context.world_size)
    teacher_model = _online_teacher_model(recipe)
    torch.manual_seed(recipe.seed)  # for the random initial weights of a projection to the teacher's width
    kind = build_kind(recipe, teacher_model.whisper.config.d_model if teacher_model is not None else 0)
    student = kind.build(train_state.shrunk).train()
    teacher = _online_teacher(recipe, context, student, teacher_model)
    loader = make_batch_loader(recipe, student.n_mels, teacher.n_mels if teacher is not None else 0)
    _to_device(recipe, context, student, student.layers())
    sampler = build_sampler(loader.rows(), recipe)
    check_shrinkings(recipe.student, sampler)
    best = BestStudent(folder, kind, train_state, store)
    self_teacher = build_self_teacher(recipe.objective.self_teacher, best.load, folder / SELF_TEACHER)
    objects = TrainObjects(
        student,
        build_optimizer(student, recipe.train.optimizer),
        self_teacher,
        WeightEma(recipe.train.optimizer.ema_decay),
        GradScaler(context.device.type, enabled=recipe.train.precision == "float16"),
    )
    load_checkpoint(folder / CHECKPOINTS, objects, lambda n_shrunk: kind.build(n_shrunk).to(context.device))
    return Loop(
        recipe=recipe,
        context=context,
        folder=folder,
        student_kind=kind,
        loader=loader,
        sampler=sampler,
        dev=read_dev(loader.shards, loader.labels, loader.label_key, rank_part(context)),
        distiller=Distiller(
            recipe.objective, self_teacher, teacher, _adakd_threshold(recipe, sampler.index), student_reader(recipe)
        ),
        objects=objects,
        best=best,
        gap=Gap(**train_state.gap),
        ledger=Ledger(folder / LEDGER, context.rank, train_state.step),
        train_state=train_state,
        store=store,
    )


def _check_same_step(step: int, world_size: int) -> None:
    """Check that all ranks resume from the same step: on a shared folder, a machine may see a new checkpoint late.

    Raises :class:`RuntimeError`, so that Ray Train tries again.
    """
    steps = [step] * world_size
    if world_size > 1:
        dist.all_gather_object(steps, step)
    if len(set(steps)) > 1:
        raise RuntimeError(f"the workers see checkpoints of different steps: {steps}")


def _online_teacher_model(recipe: Recipe) -> WindowedWhisper | None:
    """Return the teacher that runs beside the student, or None unless the recipe sets ``teacher.online``."""
    if not recipe.teacher.online:
        return None
    hidden_states = recipe.objective.hidden_states
    layers = hidden_states.layers if hidden_states.kind != "none" else ()
    model = load_whisper(recipe.teacher.model)[0]
    if recipe.student.vocabulary is not None:  # its distribution is then that over the student's tokens
        model = prune(model, read_vocabulary(recipe))
    states = recipe.objective.decoder_states
    decoder_layers: list[int] = []
    if states.kind != "none":
        decoder_layers = [-1] if states.layers == "last" else list(range(model.config.decoder_layers))
    return WindowedWhisper(model, [teacher_layer for _, teacher_layer in layers], {n: n for n in decoder_layers})


def _online_teacher(
    recipe: Recipe, context: Context, student: StudentModel, model: WindowedWhisper | None
) -> OnlineTeacher | None:
    """Return the online teacher on this rank's device; ``student`` is still on the CPU."""
    if model is None:
        return None
    teacher = OnlineTeacher(model, encoders_agree(recipe, student, model))
    _to_device(recipe, context, model, model.layers())
    return teacher


def _to_device(recipe: Recipe, context: Context, model: nn.Module, layers: list[nn.Module]) -> None:
    """Move a model to this rank's device: the whole model, or with FSDP this rank's part."""
    if recipe.train.workers.parallel == "fsdp" and context.world_size > 1:
        shard(model, layers, context.device, DTYPES[recipe.train.precision])
    else:
        model.to(context.device)


def _adakd_threshold(recipe: Recipe, index: RowIndex) -> float:
    """Return AdaKD's threshold t, computed from the teacher's losses on the train split."""
    settings = recipe.objective.instance_weights
    if settings.kind == "uniform":
        return 0.0
    losses = np.concatenate(list(index.teacher_losses()))
    return float(losses.mean() if settings.threshold == "mean" else np.percentile(losses, settings.threshold))
