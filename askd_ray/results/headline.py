"""The numbers that lead every report: WER, runaways, and words where nobody speaks, as served and raw."""

from askd_ray.results.texts import count, wer
from askd_ray.results.wer import DomainScores, PathScores, Scores, by_path

HEAD = ("model", "path", "WER in domain, %", "WER out of domain, %", "runaways", "words without speech")


def headline(scores: Scores) -> list[tuple[str, ...]]:
    """Return a row for each model and decoding path; the columns are :data:`HEAD`.

    WERs are the mean of the domain's sets. The last column: how many of the clips without speech have words, and the
    words a minute.
    """
    return [
        (model, path, *_row(of, model))
        for model in scores["models"]
        for path, of in by_path(scores).items()
        if model in of["models"]
    ]


def count_runaways(scores: PathScores, model: str) -> tuple[int, int]:
    """Return the runaways of a model and the number of clips: all clean clips, those without speech included."""
    runaways = sum(one["models"][model]["runaways"] for one in scores["sets"].values())
    clips = sum(one["utterances"] for one in scores["sets"].values())
    silence = scores["non_speech"]
    if silence is None:
        return runaways, clips
    return runaways + silence["models"][model]["runaways"], clips + silence["clips"]


def _row(scores: PathScores, model: str) -> tuple[str, ...]:
    words = "-"
    silence = scores["non_speech"]
    if silence is not None:
        of_model = silence["models"][model]
        words = f"{of_model['clips_with_words']} of {count(silence['clips'], 'clip')}"
        words += f", {of_model['words_per_minute']:.2f} a minute"
    rates = (_macro_wer(scores[domain], model) for domain in ("in_domain", "out_of_domain"))
    runaways, clips = count_runaways(scores, model)
    return (*rates, f"{runaways} of {clips}", words)


def _macro_wer(domain: DomainScores | None, model: str) -> str:
    return "-" if domain is None else wer(domain["macro"]["models"][model])
