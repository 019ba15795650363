import pytest
import torch

from askd_ray.data.schema import IGNORED
from askd_ray.distill.divergence import dense_kl, top_k_kl
from askd_ray.distill.objective import TensorBatch, loss_sums

N_VOCAB, K = 11, 3


def batch(seed: int = 0, masked: bool = False) -> TensorBatch:
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, N_VOCAB, (2, 4), generator=g)
    targets[0, 0] = targets[1, 3] = IGNORED
    if masked:
        targets[:] = IGNORED
    log_p = torch.log_softmax(torch.randn(2, 4, N_VOCAB, generator=g), -1)
    top = log_p.topk(K, -1)
    rest = log_p.scatter(2, top.indices, -torch.inf).logsumexp(-1)
    return TensorBatch(targets, top.indices, top.values, rest)


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, N_VOCAB, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_the_total_is_the_weighted_sum_of_its_parts_over_valid_tokens():
    b, logits, own = batch(), random_logits(1), random_logits(2).detach()
    sums = loss_sums(logits, b, (0.5, 0.2), 2.0, own)
    valid = b.targets != IGNORED
    ce = torch.nn.functional.cross_entropy(logits[valid], b.targets[valid], reduction="sum")
    log_q = torch.log_softmax(logits[valid] / 2.0, -1)
    kd = 4.0 * top_k_kl(log_q, b.top_ids[valid], b.top_log_probs[valid], b.rest_log_prob[valid]).sum()
    self_kd = 4.0 * dense_kl(log_q, torch.log_softmax(own[valid] / 2.0, -1)).sum()
    assert sums.total.item() == pytest.approx((0.3 * ce + 0.5 * kd + 0.2 * self_kd).item(), rel=1e-5)
    assert sums.parts().tolist() == pytest.approx([sums.total.item(), ce.item(), kd.item(), self_kd.item()], rel=1e-5)


def test_a_batch_without_targets_gives_zero_and_a_zero_gradient():
    logits = random_logits(1)
    sums = loss_sums(logits, batch(masked=True), (0.5, 0.2), 1.0, random_logits(2).detach())
    sums.total.backward()
    assert sums.parts().tolist() == [0.0, 0.0, 0.0, 0.0]
    assert logits.grad is not None and logits.grad.abs().max().item() == 0.0


def test_masked_positions_do_not_matter():
    b = batch()
    logits = random_logits(1).detach()
    other = logits.clone()
    other[b.targets == IGNORED] = 99.0
    sums = [loss_sums(x, b, (0.5, 0.0), 1.0, None).total.item() for x in (logits, other)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
