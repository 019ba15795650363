"""Kullback-Leibler divergences from a teacher to the student, one value a token.

They take the student's log-probabilities and not its logits: one log-softmax over the vocabulary then serves all terms.
"""

import torch


def dense_kl(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor) -> torch.Tensor:
    """Return ``KL(p_teacher || p_student)`` of log-probabilities ``(n_tokens, n_vocab)``: ``(n_tokens,)``, in nats."""
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=-1)


def top_k_kl(
    student_log_probs: torch.Tensor, top_ids: torch.Tensor, top_log_probs: torch.Tensor, rest_log_prob: torch.Tensor
) -> torch.Tensor:
    """Return the KL over the teacher's k kept tokens plus one bucket for the rest, shape ``(n_tokens,)``, in nats.

    A lower bound of the full KL (data processing inequality), equal to it when all tokens are kept.
    ``student_log_probs`` (n_tokens, n_vocab); ``top_ids`` and ``top_log_probs`` (n_tokens, k) and ``rest_log_prob``
    (n_tokens,) are the teacher's at the same temperature; they are normalised here, since float16 rounds them.
    """
    # The student's mass outside the top k, summed there and not as 1 - sum: a difference near 0 would be noise.
    rest = student_log_probs.scatter(1, top_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    buckets_q = torch.cat([student_log_probs.gather(1, top_ids), rest], dim=1)
    buckets_p = torch.cat([top_log_probs.float(), rest_log_prob.float()[:, None]], dim=1).log_softmax(dim=-1)
    p = buckets_p.exp()
    # An empty bucket (k = all) adds nothing: 0 * log 0 = 0, in value and in gradient.
    terms = p * (buckets_p - buckets_q.masked_fill(p == 0, 0.0)).masked_fill(p == 0, 0.0)
    return terms.sum(dim=-1)
