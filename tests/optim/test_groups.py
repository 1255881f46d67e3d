"""Groups partition the parameters; optimisers keep torch's meaning; schedules keep their laws."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from loopscale import (
    Depth,
    LoopedTransformer,
    ModelConfig,
    Role,
    UserError,
    Width,
    build_optimizer,
    param_groups,
    schedule,
)
from loopscale.optim import SCHEDULES, check_partition

CONFIG = ModelConfig(vocab_size=31, width=32, head_dim=16, layers=4, prelude=1, base_layers=1)
TOKENS = torch.randint(0, 31, (2, 8), generator=torch.Generator().manual_seed(0))


def step(model, optimizer):
    model(TOKENS).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("tied", [False, True])
def test_groups_partition_the_parameters(name, tied):
    model = LoopedTransformer(ModelConfig(layers=2, tied_readout=tied))
    optimizer = build_optimizer(model, name, lr=0.01)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    check_partition(model, optimizer.param_groups)


def test_multipliers_reach_the_groups():
    groups = {g["name"]: g for g in param_groups(LoopedTransformer(CONFIG), lr=0.01, weight_decay=0.2, eps=1e-8)}
    assert groups["hidden"]["lr"] == 0.005 and groups["gain"]["lr"] == 0.005
    assert groups["hidden"]["weight_decay"] == pytest.approx(0.4) and groups["hidden"]["eps"] == pytest.approx(5e-9)
    assert groups["embedding"]["lr"] == groups["readout"]["lr"] == groups["outer_gain"]["lr"] == 0.01
    assert groups["gain"]["weight_decay"] == groups["outer_gain"]["weight_decay"] == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_outer_rate_is_a_factor_on_what_is_visited_once(optimizer):
    model = LoopedTransformer(CONFIG)
    plain, faster = (
        {g["name"]: g for g in param_groups(model, lr=0.01, optimizer=optimizer, outer_lr=factor)}
        for factor in (1.0, 4.0)
    )
    for name, group in faster.items():
        factor = 4.0 if name in ("embedding", "readout", "outer_gain") else 1.0
        assert group["lr"] == group["initial_lr"] == factor * plain[name]["lr"]
        assert group["lr"] * group["weight_decay"] == pytest.approx(plain[name]["lr"] * plain[name]["weight_decay"])
    with pytest.raises(UserError, match="outer_lr must be a positive number, got 0"):
        param_groups(model, lr=0.01, outer_lr=0)


class Experts(nn.Module):
    """A layer with experts in one three-axis tensor, and a matrix."""

    def __init__(self):
        super().__init__()
        self.experts, self.mix = nn.Parameter(torch.ones(3, 4, 4)), nn.Parameter(torch.ones(4, 4))
        self.gain, self.head = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2, 4))


def test_under_muon_what_adamw_gets_has_adamws_multipliers_and_a_rate_of_its_own():
    roles = {"experts": Role.HIDDEN, "mix": Role.HIDDEN, "gain": Role.GAIN, "head": Role.READOUT}
    model, size = Experts(), {"rule": "looped", "depth": Depth(2, 1), "roles": roles}
    with pytest.warns(UserWarning, match="not multiplied by 0.25"):
        groups = param_groups(model, lr=0.02, optimizer="muon", width=Width(32, 8), outer_lr=0.5, **size)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model.mix)] == 0.02  # in units of spectral norm: no width factor
    assert rates[id(model.experts)] == 0.02 / 4 * 0.5  # AdamW's 1/m_d
    assert rates[id(model.gain)] == 0.02 * 0.5
    assert rates[id(model.head)] == 0.02 * 0.5 / 4  # nothing multiplies its logits


def test_adamw_without_a_depth_is_plain_adamw():
    config = ModelConfig(vocab_size=31, width=32, head_dim=16, layers=1)
    ours, plain = LoopedTransformer(config), LoopedTransformer(config)
    decayed = [p for p in plain.parameters() if p.ndim >= 2]
    rest = [p for p in plain.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01, betas=(0.9, 0.95)
    )
    optimizer = build_optimizer(ours, lr=0.01)
    for _ in range(3):
        step(ours, optimizer)
        step(plain, reference)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_state_round_trip_continues_exactly(name):
    model = LoopedTransformer(CONFIG)
    optimizer = build_optimizer(model, name, lr=0.01)
    step(model, optimizer)
    twin = copy.deepcopy(model)
    resumed = build_optimizer(twin, name, lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(model, optimizer)
        step(twin, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_low_rank_factors_of_a_visit_stay_with_adamw_under_muon():
    model = nn.ModuleDict({"core": nn.Linear(8, 8), "lora_A": nn.Linear(8, 2), "adapter_1": nn.Linear(2, 8)})
    roles = {name: Role.HIDDEN if p.ndim == 2 else Role.GAIN for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, "muon", lr=0.01, roles=roles, rule="looped", depth=Depth(4, 1))
    muon = [id(p) for group in optimizer.muon.param_groups for p in group["params"]]
    assert muon == [id(model["core"].weight)]
    check_partition(model, optimizer.param_groups)


def test_a_tied_readout_is_one_parameter_with_one_role():
    model = nn.ModuleDict({"tok": nn.Embedding(9, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["tok"].weight
    more = dict(lr=0.1, rule="looped", depth=Depth(2, 1))
    told = {"tok": "embedding", "body": "hidden"}
    for roles, names in (
        (told, {"embedding", "hidden", "gain"}),
        ({**told, "head": "readout"}, {"readout", "hidden", "gain"}),
    ):
        assert {group["name"] for group in param_groups(model, roles=roles, **more)} == names


def test_muon_follows_a_schedule_set_on_its_groups():
    model = LoopedTransformer(CONFIG)
    optimizer = build_optimizer(model, "muon", lr=0.01)
    before = copy.deepcopy(list(model.parameters()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_foreign_models_state_their_roles():
    model = nn.Linear(4, 4)
    groups = param_groups(
        model, lr=0.1, rule="looped", depth=Depth(8, 4), roles={"weight": Role.HIDDEN, "bias": Role.GAIN}
    )
    assert [group["lr"] for group in groups] == [0.05, 0.05]


@pytest.mark.parametrize(
    "change,words",
    [
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"roles": {"weight": Role.HIDDEN}}, "no role for parameter 'bias'"),
        ({"roles": {"wieght": Role.HIDDEN}}, "roles= names 'wieght', which the model does not have"),
        ({"weightdecay": 0.1}, "param_groups has no keyword 'weightdecay': did you mean 'weight_decay'?"),
        ({"roles": None}, "does not state its roles: pass roles="),
        ({"depth": None}, "does not state its depth: pass depth="),
    ],
)
def test_mistakes_name_the_parameter(change, words):
    given_ = {
        "lr": 0.1,
        "rule": "looped",
        "depth": Depth(1, 1),
        "roles": {"weight": Role.HIDDEN, "bias": Role.GAIN},
        **change,
    }
    with pytest.raises(UserError) as caught:
        param_groups(nn.Linear(4, 4), **given_)
    assert words in str(caught.value)


def test_a_plain_model_is_shown_the_format_of_roles_in_its_own_names():
    model = nn.ModuleDict({"tok": nn.Embedding(9, 4), "layers": nn.Linear(4, 4), "head": nn.Linear(4, 9)})
    with pytest.raises(
        UserError, match=r"roles=\{'tok': 'embedding', 'layers': 'hidden', 'head': 'readout'\}"
    ) as caught:
        param_groups(model, lr=0.1)
    assert "attach(model, loops=N)" in str(caught.value) and len(str(caught.value)) < 300


def test_a_parameter_twice_or_never_is_named():
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match="'weight' is listed twice"):
        check_partition(model, [{"params": [model.weight, model.weight]}])
    with pytest.raises(UserError, match="'bias' is in no group"):
        check_partition(model, [{"params": [model.weight]}])
    with pytest.raises(UserError, match="unknown optimizer 'adam': did you mean 'adamw'"):
        build_optimizer(model, "adam", lr=0.1)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.data())
def test_schedules_warm_up_then_never_rise_and_waste_no_step(name, steps, data):
    warmup = data.draw(st.integers(0, steps - 1))
    values = [schedule(name, steps, warmup)(step) for step in range(steps)]
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[warmup] == 1


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("cos", 10), "did you mean 'cosine'"),
        (("linear", 5, 5), "0 <= warmup < steps"),
        (("cosine", 100, 0.1), "got warmup=0.1: for a share of the run give warmup=10"),
        (("cosine", 1e3), "steps counts steps and is a whole number, got steps=1000.0"),
    ],
)
def test_schedule_mistakes(arguments, words):
    with pytest.raises(UserError, match=words):
        schedule(*arguments)


def test_a_schedule_has_no_step_below_zero():
    for name in SCHEDULES:
        with pytest.raises(UserError, match="counted from 0, got -1"):
            schedule(name, 10)(-1)


class Foreign(nn.Module):
    """Entry, a hidden matrix, a readout; with `multiplier` on the logits, or the readout itself that much smaller."""

    def __init__(self, multiplier):
        super().__init__()
        torch.manual_seed(0)
        self.entry, self.hidden, self.head = (nn.Linear(a, b, bias=False) for a, b in ((5, 32), (32, 32), (32, 7)))
        self.multiplier = multiplier
        if multiplier == 1:
            self.head.weight.data /= 4

    def forward(self, x):
        return self.multiplier * self.head(torch.tanh(self.hidden(torch.tanh(self.entry(x)))))


def trained(model, optimizer, **stated):
    roles = {"entry.weight": Role.EMBEDDING, "hidden.weight": Role.HIDDEN, "head.weight": Role.READOUT}
    size = {"rule": "looped", "depth": Depth(1, 1), "width": Width(32, 8), "roles": roles}
    built = build_optimizer(model, optimizer, lr=0.01, weight_decay=0.1, eps=1e-3, **size, **stated)
    x, y = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 7
    for _ in range(5):
        nn.functional.cross_entropy(model(x), y).backward()
        built.step()
        built.zero_grad()
    return model(x)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_readout_without_the_multiplier_trains_as_one_with_it(optimizer):
    """1/m_d on the logits, and a readout of 1/m_d the size with the rates that `param_groups` gives it, are one network."""
    mine = trained(Foreign(0.25), optimizer, multiplied=True)
    with pytest.warns(UserWarning, match=r"its readout gets 0.25 of the rate: start it at 0.25 of its std"):
        theirs = trained(Foreign(1), optimizer)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(mine, trained(Foreign(1), optimizer, multiplied=True), atol=1e-3), "today's silent turn"


def test_groups_of_another_rule_than_the_models_are_warned_of():
    model = LoopedTransformer(ModelConfig(width=32, layers=4))
    with pytest.warns(UserWarning, match="the groups follow rule 'sqrt' and the model's branches 'looped'"):
        param_groups(model, lr=0.1, rule="sqrt")
