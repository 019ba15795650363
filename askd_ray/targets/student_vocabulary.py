"""The vocabulary of a recipe's student with ``student.vocabulary``: what its train targets decide."""

from askd_ray.config.schema import Recipe
from askd_ray.data.row_index import RowIndex
from askd_ray.data.token_counts import token_counts
from askd_ray.location import Location
from askd_ray.models.load import load_config
from askd_ray.models.reference import resolve
from askd_ray.models.vocabulary import suppressed_tokens, vocabulary_of_init
from askd_ray.text.frequent_words import frequent_tokens
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import PrunedVocabulary, TokenMap, choose_tokens


def student_vocabulary(recipe: Recipe, index: RowIndex, labels: Location) -> PrunedVocabulary:
    """Return the tokens that the student keeps: those of ``student.init``, if it has fewer than the teacher, or those
    of the labelled train utterances and of frequent words.

    Raises :class:`AskdError` as :func:`~askd_ray.models.vocabulary.vocabulary_of_init`,
    :func:`~askd_ray.text.vocabulary.choose_tokens` and :func:`~askd_ray.text.frequent_words.frequent_tokens` do.
    """
    settings, teacher = recipe.student.vocabulary, recipe.teacher.model
    assert settings is not None
    vocabulary = vocabulary_of_init(recipe)
    if vocabulary is not None:
        return vocabulary
    tokens, counts = Tokens(resolve(teacher)), token_counts(index, labels)
    in_targets = sorted(counts, key=lambda token: (-counts[token], token))
    ranked = (*in_targets, *frequent_tokens(tokens, settings.languages))
    return choose_tokens(tokens, ranked, suppressed_tokens(teacher), settings.keep)


def vocabulary_line(recipe: Recipe, index: RowIndex, labels: Location) -> str:
    """Return what the student's vocabulary means for its train targets, in one line."""
    vocabulary, counts = student_vocabulary(recipe, index, labels), token_counts(index, labels)
    in_pieces = sum(n for token, n in counts.items() if vocabulary.student_id(token) is None)
    return (
        f"vocabulary: {len(vocabulary.token_ids):,} of {vocabulary.tokens.end:,} text tokens; "
        f"{in_pieces / sum(counts.values()):.2%} of the target tokens are written in pieces"
    )


def student_token_map(recipe: Recipe, index: RowIndex, labels: Location) -> TokenMap:
    """Return the teacher's tokens as pieces of the student; raises as :func:`student_vocabulary` does."""
    return student_vocabulary(recipe, index, labels).token_map(load_config(recipe.teacher.model).vocab_size)
