import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.objective import AdaKd, HardGate, NoGate, SoftGate
from askd_ray.objective.instance_weights import instance_weights, trust_gate

ADAKD = AdaKd()


PUBLISHED = {
    (15.0, 0.0): 0.3679,
    (-10.0, 0.0): 0.3679,
    (15.0, 0.2): 0.0113,
    (15.0, -0.2): 0.8000,
    (-10.0, 0.2): 0.6922,
    (-10.0, -0.2): 0.0660,
}


@pytest.mark.parametrize(("k", "distance"), PUBLISHED)
def test_adakd_weighs_as_published(k: float, distance: float):
    found = instance_weights(ADAKD, torch.tensor([0.5 + distance]), 0.5, k)
    assert found.item() == pytest.approx(PUBLISHED[k, distance], abs=5e-5)


@given(st.floats(0, 20), st.floats(0, 20), st.floats(-50, 50))
def test_adakd_is_the_published_formula_and_never_overflows(loss: float, threshold: float, k: float):
    found = instance_weights(ADAKD, torch.tensor([loss], dtype=torch.float64), threshold, k).item()
    exponent = -k * (loss - threshold)
    if abs(exponent) < 60.0:
        assert found == pytest.approx(math.exp(-1.0 / math.sqrt(math.exp(exponent))), abs=1e-9)
    assert 0.0 <= found <= 1.0


def test_easy_samples_come_first_and_hard_ones_later():
    easy, hard = (torch.tensor([x]) for x in (0.1, 0.9))
    early = [instance_weights(ADAKD, x, 0.5, ADAKD.k_start).item() for x in (easy, hard)]
    late = [instance_weights(ADAKD, x, 0.5, ADAKD.k_end).item() for x in (easy, hard)]
    assert early[0] > early[1] and late[0] < late[1]


def test_gates():
    loss = -torch.log(torch.tensor([0.9, 0.25, 0.001]))
    assert trust_gate(NoGate(), loss).tolist() == [1.0, 1.0, 1.0]
    assert trust_gate(HardGate(threshold=0.2), loss).tolist() == [1.0, 1.0, 0.0]
    soft = trust_gate(SoftGate(power=0.5), loss)
    torch.testing.assert_close(soft, torch.tensor([0.9, 0.25, 0.001]).sqrt())
