"""Rows of hypotheses for the tests of scores."""

from askd_ray.evaluation.hypotheses import Hypothesis


def make_row(model: str, reference: str, hypothesis: str, **fields: object) -> Hypothesis:
    """A model's hypothesis for one clip of the set ``a``; ``fields`` replace fields of the row."""
    plain = {"set": "a", "in_domain": True, "condition": "clean", "id": reference, "speaker": "", "language": "en"}
    return Hypothesis(
        **{**plain, "model": model, "reference": reference, "hypothesis": hypothesis, "duration_s": 1.0, **fields}
    )


def make_rows(texts: dict[str, dict[str, str]], **fields: object) -> list[Hypothesis]:
    """Rows of texts by reference and model."""
    return [make_row(model, ref, hyp, **fields) for ref, by_model in texts.items() for model, hyp in by_model.items()]
