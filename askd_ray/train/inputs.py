"""What a training reads besides dev: the batches of shards and labels."""

from dataclasses import replace

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import StatesShape
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import kept_states, label_key
from askd_ray.targets.student_vocabulary import student_token_map, student_vocabulary, vocabulary_line
from askd_ray.text.vocabulary import PrunedVocabulary


def make_batch_loader(recipe: Recipe, n_mels: int, teacher_n_mels: int = 0) -> BatchLoader:
    """Return the loader of a recipe's train shards and labels, in the tokens of its student.

    Raises :class:`AskdError` as :func:`read_vocabulary` does, for a recipe with ``student.vocabulary``.
    """
    loader = _loader_of_labels(recipe, n_mels, teacher_n_mels)
    if recipe.student.vocabulary is None:
        return loader
    return replace(loader, token_map=student_token_map(recipe, loader.rows(), loader.labels))


def read_vocabulary(recipe: Recipe) -> PrunedVocabulary:
    """Return the tokens that the student of a recipe with ``student.vocabulary`` keeps; its labels decide them.

    Raises :class:`AskdError` as :meth:`~askd_ray.data.collate.BatchLoader.rows` and
    :func:`~askd_ray.text.vocabulary.choose_tokens` do.
    """
    loader = _loader_of_labels(recipe, n_mels=80)
    return student_vocabulary(recipe, loader.rows(), loader.labels)


def vocabulary_lines(recipe: Recipe) -> list[str]:
    """Return what to say of the vocabulary of a recipe's student; nothing if it is the teacher's."""
    if recipe.student.vocabulary is None:
        return []
    loader = _loader_of_labels(recipe, n_mels=80)
    return [vocabulary_line(recipe, loader.rows(), loader.labels)]


def _loader_of_labels(recipe: Recipe, n_mels: int, teacher_n_mels: int = 0) -> BatchLoader:
    """Return the loader in the teacher's tokens."""
    run = Run(recipe)
    return BatchLoader(
        shards=run.shards,
        labels=run.labels,
        label_key=label_key(recipe),
        n_mels=n_mels,
        teacher_n_mels=teacher_n_mels,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=recipe.seed,
        states_shape=_states_read(recipe),
        log_mel_on_device=recipe.train.workers.gpu,
    )


def _states_read(recipe: Recipe) -> StatesShape:
    """Return the shape of the cached decoder states that the objective reads per token."""
    settings = recipe.objective.decoder_states
    if settings.kind == "none" or recipe.teacher.online:
        return 0, 0
    n_layers, width = kept_states(recipe)
    return 1 if settings.layers == "last" else n_layers, width
