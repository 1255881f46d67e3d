"""Each option of the loop obeys its law; all sensible combinations are causal, flat over N, and the identity at eps = 0."""

import itertools
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from loopscale import LoopedTransformer, ModelConfig, Role, UserError, check_parameterization, param_groups
from loopscale.nn.injection import DiagonalInjection
from loopscale.nn.sampler import GrowLoops, PoissonLoops, UniformLoops

TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
COMBINATIONS = st.fixed_dictionaries(
    {
        "norm": st.sampled_from(["pre", "sandwich", "post"]),
        "injection": st.sampled_from(["none", "additive", "linear", "diagonal"]),
        "order": st.sampled_from(["stack", "layer"]),
        "visit_embedding": st.sampled_from([0, 3]),
        "gradient_visits": st.sampled_from([None, 2]),
        "scale": st.sampled_from(["rescale", "freeze"]),
        "prelude": st.sampled_from([0, 1]),
    }
)


def make(**changes):
    return LoopedTransformer(ModelConfig(**{"vocab_size": 50, "width": 32, "head_dim": 16, "layers": 2, **changes}))


@given(COMBINATIONS)
@settings(max_examples=25, deadline=None)
def test_every_combination_is_causal(options):
    model = make(loops=3, **{**options, "gradient_visits": None})
    embedded = model.embedding(TOKENS).detach().requires_grad_()
    model.embedding.forward = lambda tokens: embedded
    model(TOKENS)[:, 5].sum().backward()
    seen = embedded.grad.abs().sum(-1)
    assert (seen[:, 6:] == 0).all() and (seen[:, :6] > 0).all()


@given(COMBINATIONS)
@settings(max_examples=25, deadline=None)
def test_every_parameter_of_every_combination_has_a_role_and_learns(options):
    model = make(loops=4, **options)
    assert set(model.roles()) == {name for name, _ in model.named_parameters()}
    model(TOKENS).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert {p for g in param_groups(model, lr=0.1) for p in g["params"]} == set(model.parameters())


@given(COMBINATIONS)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_every_combination_is_flat_over_loops(options):
    # Frozen, eps does not follow a tested N; and a gradient through 2 of N visits has another direction at another N.
    # From N = 2 on: at N = 1 the check cannot tell an injection without parameters from what follows the loop.
    flat = {**options, "scale": "rescale", "gradient_visits": None}
    check = check_parameterization(make(width=64, **flat), loops=(2, 4, 8), steps=4)
    assert check.passed, (options, check.table())


@given(COMBINATIONS, st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_no_strength_leaves_what_injection_alone_does(options, loops):
    model = make(strength=0.0, **options)
    streams = model.run(TOKENS, loops, keep=True, scale="rescale")[:-1]
    entry, core = streams[0], model.core
    steps = loops * (1 if options["order"] == "stack" else 2)
    if options["norm"] == "post":
        return  # the norm of the sum acts without a branch, so that the core is no identity
    x = entry
    for _ in range(steps):
        if options["injection"] == "additive":
            x = x + entry / steps
        elif options["injection"] == "linear":
            weight = torch.cat((core.injection.stream.weight, core.injection.entry.weight), dim=1)
            x = x + torch.cat((x, entry), -1) @ weight.T / steps
        elif options["injection"] == "diagonal":
            x = torch.exp(-core.injection.decay() / steps) * x + core.injection.drive * entry / steps
    if options["injection"] == "none":
        assert torch.equal(streams[-1], entry)
    torch.testing.assert_close(streams[-1], x)


@given(COMBINATIONS)
@settings(max_examples=20, deadline=None)
def test_at_one_loop_what_only_concerns_several_is_the_plain_network_bitwise(options):
    plain = make(loops=1, norm=options["norm"], prelude=options["prelude"])
    several = {key: options[key] for key in ("norm", "order", "visit_embedding", "gradient_visits", "scale", "prelude")}
    assert torch.equal(make(loops=1, sampler="uniform", **several)(TOKENS), plain(TOKENS))


def test_additive_injection_adds_the_same_whatever_the_loops():
    for loops in (1, 3, 16):
        streams = make(strength=0.0, injection={"kind": "additive", "amount": 0.5}).run(TOKENS, loops, keep=True)
        torch.testing.assert_close(streams[-1], 1.5 * streams[0])


@pytest.mark.parametrize("raw", [-200.0, -20.0, 0.0, 50.0])
def test_the_diagonal_contracts_whatever_it_learns(raw):
    injection = DiagonalInjection(decay=0.5).build(4)
    with torch.no_grad():
        injection.raw_decay.fill_(raw)
    for loops in (1, 64, 10_000):
        factor = torch.exp(-injection.decay() / loops)
        assert (factor < 1).all() and (factor >= 0).all()
    x, source = torch.randn(3, 4), torch.zeros(3, 4)
    assert (injection(x, source, 0.1).abs() < x.abs()).all()


def test_the_diagonal_starts_at_its_decay():
    torch.testing.assert_close(DiagonalInjection(decay=2.0).build(4).decay(), torch.full((4,), 2.0))


def test_orders_differ_and_visit_in_their_order():
    def visited(order):
        model, names = make(order=order), []
        for index, block in enumerate(model.core):
            block.attention_norm.register_forward_hook(lambda *_, i=index: names.append(i))
        model(TOKENS, loops=3)
        return names

    assert visited("stack") == [0, 1, 0, 1, 0, 1]
    assert visited("layer") == [0, 0, 0, 1, 1, 1]


def test_a_visit_reads_the_row_of_its_time():
    model = make(visit_embedding=4, strength=0.0)
    with torch.no_grad():
        model.core.visit_embedding.copy_(torch.arange(1.0, 5.0)[:, None].expand(4, 32))
    for loops, rows in {4: [1, 2, 3, 4], 2: [1, 3], 8: [1, 1, 2, 2, 3, 3, 4, 4], 1: [1]}.items():
        streams = model.run(TOKENS, loops, keep=True)[:-1]
        added = [float((b - a).detach().mean()) * loops for a, b in itertools.pairwise(streams)]
        assert added == pytest.approx(rows, rel=1e-4)


def test_frozen_eps_is_that_of_training_and_rescaled_eps_follows():
    model = make(loops=4)
    assert torch.equal(model(TOKENS, loops=4, scale="freeze"), model(TOKENS, loops=4))
    frozen, followed = (model.run(TOKENS, 8, keep=True, scale=scale) for scale in ("freeze", "rescale"))
    first = model.run(TOKENS, 4, keep=True)
    assert torch.equal(frozen[1], first[1]) and torch.equal(frozen[4], first[4])
    assert not torch.equal(followed[1], first[1])
    assert torch.equal(make(loops=4, scale="freeze")(TOKENS, loops=8), model(TOKENS, loops=8, scale="freeze"))


def test_early_exit_stops_where_the_updates_are_small():
    model = make(loops=8)
    visits = [len(model.run(TOKENS, 8, keep=True, exit_below=below)) - 2 for below in (0.0, 0.05, 0.2, 10.0)]
    assert visits[0] == 8 and visits[-1] == 1 and visits == sorted(visits, reverse=True)
    assert torch.equal(model(TOKENS, exit_below=0.0), model(TOKENS))
    streams = model.run(TOKENS, 8, keep=True)[:-1]
    with torch.no_grad():
        changes = [((b - a)[0].norm() / a[0].norm()).item() for a, b in itertools.pairwise(streams)]
    below = 1.0001 * min(changes[:5])
    expected = next(visit for visit, change in enumerate(changes, 1) if change < below)
    assert len(model.run(TOKENS[:1], 8, keep=True, exit_below=below)) - 2 == expected


@pytest.mark.parametrize("scale", ["rescale", "freeze"])
def test_gradient_of_the_last_visits_equals_a_loop_by_hand(scale):
    for options in ({"order": "layer"}, {"injection": "linear"}):
        cut, full = make(gradient_visits=9, scale=scale, **options), make(scale=scale, **options)
        for model in (cut, full):
            model(TOKENS, loops=3).square().mean().backward()
        for (name, a), b in zip(cut.named_parameters(), full.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad), name
        shorter = make(gradient_visits=1, scale=scale, **options)
        assert torch.equal(shorter(TOKENS, loops=3), full(TOKENS, loops=3))


class TestSampler:
    def draws(self, sampler, steps=4000):
        return np.array([sampler.draw(step, steps, 0, 4) for step in range(steps)])

    def test_uniform_is_uniform(self):
        counts = np.bincount(self.draws(UniformLoops(least=2, most=6)), minlength=7)
        assert counts[:2].sum() == 0 and (np.abs(counts[2:] / 4000 - 0.2) < 0.03).all()

    def test_poisson_has_its_mean_its_tail_and_its_limit(self):
        drawn = self.draws(PoissonLoops(mean=4.0, sigma=0.5, most=32))
        # Variance of a log-normal Poisson: r + r^2 (exp(sigma^2) - 1), with r = mean - 1.
        assert abs(drawn.mean() - 4) < 0.15 and abs(drawn.var() - (3 + 9 * math.expm1(0.25))) < 0.8
        assert self.draws(PoissonLoops(mean=4.0, most=5)).max() == 5 and drawn.min() == 1

    def test_it_is_a_function_of_seed_and_step(self):
        sampler = PoissonLoops()
        assert [sampler.draw(7, 10, 3, 4) for _ in range(3)] == [sampler.draw(7, 999, 3, 8)] * 3
        assert (self.draws(sampler, 50) != [sampler.draw(step, 50, 1, 4) for step in range(50)]).any()

    def test_growing_follows_its_stages(self):
        sampler = GrowLoops(stages=((0.0, 2), (0.5, 4), (0.9, 8)))
        assert [sampler.draw(step, 10, 0, 8) for step in range(10)] == [2] * 5 + [4] * 4 + [8]


@given(COMBINATIONS, st.sampled_from(["fixed", "uniform", {"kind": "poisson", "mean": 3.5}, {"kind": "grow"}]))
@settings(max_examples=25, deadline=None)
def test_a_config_survives_json(options, sampler):
    config = ModelConfig(loops=8, sampler=sampler, **options)
    assert ModelConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == asdict(config)


def test_depth_factors_of_the_new_parameters():
    model = make(layers=4, injection="linear", visit_embedding=2, base_layers=1, base_width=16)
    roles = model.roles()
    assert roles["core.injection.stream.weight"] is Role.VISIT and roles["core.visit_embedding"] is Role.EMBEDDING
    rate = {group["name"]: group["lr"] for group in param_groups(model, lr=1.0)}
    # A layer's matrix: m_L^-1/2 / m_d. One matrix a visit: no L. A vector a visit: neither.
    assert rate["hidden"] == pytest.approx(0.25) and rate["visit"] == 0.5 and rate["embedding"] == 1.0
    diagonal = make(injection="diagonal").roles()
    assert diagonal["core.injection.raw_decay"] is diagonal["core.injection.drive"] is Role.OUTER_GAIN


@pytest.mark.parametrize("rule", ["deepnorm", "deeploop"])
def test_post_ln_rules_bring_their_norm(rule):
    assert make(rule=rule).config.placement == "post"
    assert torch.equal(make(rule=rule)(TOKENS), make(rule=rule, norm="post")(TOKENS))


@pytest.mark.parametrize(
    "change,words",
    [
        ({"norm": "sandwhich"}, "norm has no kind 'sandwhich': did you mean 'sandwich'?"),
        ({"rule": "deepnorm", "norm": "pre"}, "rule 'deepnorm' is for Post-LN networks"),
        ({"injection": "diag"}, "injection has no kind 'diag': did you mean 'diagonal'?"),
        ({"injection": {"kind": "additive", "ammount": 1}}, "has no key 'ammount': did you mean 'amount'?"),
        ({"injection": {"kind": "linear", "x": 1}}, "has no key 'x': it takes none"),
        ({"injection": {"kind": "diagonal", "decay": 0}}, "injection.decay must be a number from 0.02 to 10, got 0"),
        ({"order": "layers"}, "order has no kind 'layers': did you mean 'layer'?"),
        ({"sampler": {"kind": "uniform", "least": 5, "most": 2}}, "sampler.most must be a whole number of at least 5"),
        ({"sampler": {"kind": "poisson", "mean": float("nan")}}, "sampler.mean must be a number of at least 1"),
        ({"sampler": {"kind": "poisson", "mean": 1}}, "use sampler = 'fixed' with loops = 1"),
        ({"sampler": {"kind": "poisson", "mean": 40}}, "sampler.most must be a whole number of at least 40"),
        ({"sampler": {"kind": "grow", "stages": [[0.5, 2]]}}, "sampler.stages must start at fraction 0"),
        ({"sampler": {"kind": "grow", "stages": [3]}}, "sampler.stages must be pairs [fraction, loops]"),
        ({"sampler": {"kind": "grow"}, "loops": 4}, "sampler.stages end at 8 loops and loops is 4"),
        ({"sampler": 7}, "sampler has no kind 7"),
        ({"visit_embedding": -1}, "visit_embedding must be a whole number of at least 0"),
        ({"gradient_visits": 1.5}, "gradient_visits must be a whole number of at least 1"),
        ({"scale": "freez"}, "scale has no kind 'freez': did you mean 'freeze'?"),
    ],
)
def test_an_option_that_makes_no_sense_gets_a_sentence(change, words):
    with pytest.raises(UserError) as caught:
        ModelConfig(**change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_a_model_with_options_folds(norm):
    from loopscale import fold, unfold

    model = make(norm=norm, injection="linear", order="layer", loops=8, sampler="grow", visit_embedding=2)
    expected = model(TOKENS)
    fold(model)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=1e-5)
    unfold(model)
    assert torch.equal(model(TOKENS), expected)
    with pytest.raises(UserError, match="freezes eps at N = 4"):
        fold(make(scale="freeze", loops=4), loops=8)


@pytest.mark.parametrize("order", ["stack", "layer"])
def test_a_cache_knows_every_visit_of_every_order(order):
    from loopscale.nn.past import KeyValueCache, Past

    model = make(order=order, injection="diagonal", visit_embedding=3, loops=3)
    past = Past(KeyValueCache())
    parts = [model(part, past=past) for part in (TOKENS[:, :7], TOKENS[:, 7:8], TOKENS[:, 8:])]
    torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="leave out either the cache or exit_below"):
        model(TOKENS, past=Past(KeyValueCache()), exit_below=0.1)
