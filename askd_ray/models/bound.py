"""How long a decoder may write: what CTC wrote for the same window bounds it.

A decoder can run away or write a text where nobody speaks. CTC can do neither: it has no more units than positions.
"""

import math

from askd_ray.models.draft import Draft
from askd_ray.text.tokens import max_tokens

MARGIN = 1.5  # a decoder writes punctuation, and words that CTC has missed
MIN_SLACK = 8  # tokens, for short texts


def token_limit(draft: Draft, window_s: float, margin: float = MARGIN, slack: int = MIN_SLACK) -> int:
    """Return the largest number of tokens that a decoder may write in a window, given the draft of its CTC head.

    It is ``margin`` times the length of the draft and ``slack``, at most :func:`~askd_ray.text.tokens.max_tokens`. It
    is 0 where CTC wrote nothing: the text is then empty, and the decoder is not asked.
    """
    if not draft.token_ids:
        return 0
    return min(math.ceil(margin * len(draft.token_ids)) + slack, max_tokens(window_s))
