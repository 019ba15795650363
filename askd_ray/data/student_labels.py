"""The teacher's labels in the tokens of a student with a smaller vocabulary. The files keep the teacher's tokens.

A token that the student does not have becomes its pieces: of the prompt, of the targets, and of the soft labels, where
its probability goes to its first piece. That is exact for the first piece of whatever the teacher would write; for the
other pieces of a target, the teacher has no distribution.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askd_ray.data.labels import SoftLabels
from askd_ray.errors import AskdError
from askd_ray.text.tokens import MAX_TOKENS
from askd_ray.text.vocabulary import TokenMap

_MAX_POSITIONS = 2 * MAX_TOKENS  # of a Whisper's decoder


def labels_of_student(label: SoftLabels, utterance: str, token_map: TokenMap) -> SoftLabels:
    """Return the labels of an utterance in the student's tokens.

    A slot of ``top_log_probs`` is -inf if its token is that of another slot, which then has the probability of both.

    Raises :class:`AskdError` when prompt and targets become longer than a decoder is.
    """
    prompt_ids, _ = token_map.split(label.prompt_ids)
    target_ids, places = token_map.split(label.target_ids)
    if len(prompt_ids) + len(target_ids) > _MAX_POSITIONS:
        raise AskdError(
            f"utterance {utterance}: its prompt and targets have {len(prompt_ids) + len(target_ids)} tokens in the "
            f"vocabulary of the student, and its decoder has {_MAX_POSITIONS} positions: raise student.vocabulary.keep"
        )
    continues = np.diff(places, prepend=-1) == 0
    top_ids, top_log_probs = _joined(token_map.first(label.top_ids), label.top_log_probs.astype(np.float32))

    def of_pieces(values: NDArray[Any]) -> NDArray[Any]:
        rows = values[places]
        rows[continues] = 0
        return rows

    return replace(
        label,
        prompt_ids=tuple(prompt_ids.tolist()),
        target_ids=target_ids,
        top_ids=of_pieces(top_ids),
        top_log_probs=of_pieces(top_log_probs),
        rest_log_prob=of_pieces(label.rest_log_prob),
        token_loss=of_pieces(label.token_loss),
        states=of_pieces(label.states),
        continues=continues,
    )


def _joined(ids: NDArray[Any], log_probs: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the slots ``(n_tokens, k)`` with the probabilities of equal tokens in the first slot that has the token.

    The other slots of the token keep its id, with the log-probability -inf.
    """
    same = ids[:, :, None] == ids[:, None, :]
    repeated = same.sum(axis=(1, 2)) > ids.shape[1]
    if not repeated.any():
        return ids, log_probs
    joined, same = log_probs.copy(), same[repeated]
    with np.errstate(divide="ignore"):
        of_token = np.log((same * np.exp(log_probs[repeated].astype(np.float64))[:, None, :]).sum(axis=2))
    is_first = same.argmax(axis=2) == np.arange(ids.shape[1])
    single = same.sum(axis=2) == 1
    joined[repeated] = np.where(single, log_probs[repeated], np.where(is_first, of_token, -np.inf))
    return ids, joined
