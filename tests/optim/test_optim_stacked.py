"""K models stepped as one end where each ends alone: bitwise in fp32, over optimisers, rates, decays and shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loopscale.optim import StackedOptimizer, build_optimizer
from loopscale.parameterization import Depth, Role

ROLES = {"0.weight": Role.EMBEDDING, "1.weight": Role.HIDDEN, "1.bias": Role.GAIN, "2.weight": Role.READOUT}
rates = st.floats(1e-5, 1.0)


def models(count, dtype=torch.float32):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 9), nn.Linear(9, 4, bias=False)).to(dtype))
    return made


def optimizers(made, name, lrs, decays):
    options = {"rule": "looped", "depth": Depth(4, 2), "base_layers": 1, "roles": ROLES}
    return [
        build_optimizer(m, name, lr=lr, weight_decay=wd, **options) for m, lr, wd in zip(made, lrs, decays, strict=True)
    ]


def stacked(made):
    """name -> [K, ...], and what the optimiser is given."""
    columns = list(zip(*(m.parameters() for m in made), strict=True))
    whole = [torch.stack([p.detach() for p in column]).requires_grad_() for column in columns]
    return whole, dict(zip(whole, columns, strict=True))


def run(name, lrs, decays, steps, dtype=torch.float32, drop=None):
    """The stacked weights, and those of the models stepped one by one by torch's optimisers."""
    made = models(len(lrs), dtype)
    alone = optimizers(made, name, lrs, decays)
    whole, table = stacked(made)
    together = StackedOptimizer(alone, table)
    generator = torch.Generator().manual_seed(1)
    live = list(range(len(lrs)))
    for step in range(steps):
        if step == drop:
            live = live[1:]
            index = torch.arange(1, len(lrs))
            whole = [p.detach()[index].requires_grad_() for p in whole]
            together.keep(index, whole)
        multipliers = [(1 + step) / (1 + steps + k) for k in live]
        for place, p in enumerate(whole):
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
            for row, k in enumerate(live):
                list(made[k].parameters())[place].grad = p.grad[row].clone()
        together.step(multipliers)
        for k, multiplier in zip(live, multipliers, strict=True):
            for group in alone[k].param_groups:
                group["lr"] = group["initial_lr"] * multiplier
            alone[k].step()
    return whole, [torch.stack([list(made[k].parameters())[i] for k in live]) for i in range(len(whole))]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
@given(st.lists(st.tuples(rates, st.sampled_from([0.0, 0.1, 0.7])), min_size=1, max_size=5), st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_k_optimisers_as_one_are_bitwise_torchs(name, members, steps):
    lrs, decays = zip(*members, strict=True)
    for together, alone in zip(*run(name, lrs, decays, steps), strict=True):
        assert torch.equal(together, alone)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_in_double_precision_it_is_the_same_maths(name):
    for together, alone in zip(*run(name, (0.1, 0.01), (0.1, 0.0), 20, torch.float64), strict=True):
        assert torch.allclose(together, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_a_model_leaves_and_the_others_go_on(name):
    for together, alone in zip(*run(name, (0.3, 0.1, 0.01), (0.1, 0.1, 0.0), 6, drop=3), strict=True):
        assert torch.equal(together, alone) and together.shape[0] == 2


def test_a_parameter_without_gradient_stays_and_another_optimiser_is_refused():
    made = models(2)
    alone = optimizers(made, "adamw", (0.1, 0.2), (0.1, 0.1))
    whole, table = stacked(made)
    before = [p.detach().clone() for p in whole]
    whole[0].grad = torch.ones_like(whole[0])
    StackedOptimizer(alone, table).step((1.0, 1.0))
    assert not torch.equal(whole[0], before[0])
    assert all(torch.equal(p, q) for p, q in zip(whole[1:], before[1:], strict=True))
    with pytest.raises(TypeError, match="no stacked form of Adagrad"):
        StackedOptimizer([torch.optim.Adagrad(m.parameters()) for m in made], table)
