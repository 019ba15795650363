"""Kullback-Leibler divergences from a teacher to the student, one value a token."""

import torch


def dense_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return ``KL(p_teacher^T || p_student^T)`` of logits ``(n_tokens, n_vocab)``, shape ``(n_tokens,)``, in nats."""
    log_p = torch.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def top_k_kl(
    student_logits: torch.Tensor,
    top_ids: torch.Tensor,
    top_log_probs: torch.Tensor,
    rest_log_prob: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return the KL over the teacher's k kept tokens plus one bucket for the rest, shape ``(n_tokens,)``, in nats.

    A lower bound of the full KL (data processing inequality), equal to it when all tokens are kept.
    ``student_logits`` (n_tokens, n_vocab); ``top_ids`` and ``top_log_probs`` (n_tokens, k) and ``rest_log_prob``
    (n_tokens,) are the teacher's at the same temperature; they are normalised here, since float16 rounds them.
    """
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    # The student's mass outside the top k, summed there and not as 1 - sum: a difference near 0 would be noise.
    rest_q = log_q.scatter(1, top_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    buckets_q = torch.cat([log_q.gather(1, top_ids), rest_q], dim=1)
    buckets_p = torch.cat([top_log_probs.float(), rest_log_prob.float()[:, None]], dim=1).log_softmax(dim=-1)
    p = buckets_p.exp()
    # An empty bucket (k = all) adds nothing: 0 * log 0 = 0, in value and in gradient.
    terms = p * (buckets_p - buckets_q.masked_fill(p == 0, 0.0)).masked_fill(p == 0, 0.0)
    return terms.sum(dim=-1)
