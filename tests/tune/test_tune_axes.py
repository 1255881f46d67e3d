"""Carrying over every axis: loops, layers with both exponents, width, steps and batch; alone, composed, and as built."""

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from loopscale.nn import LoopedTransformer
from loopscale.optim import param_groups
from loopscale.parameterization import Depth, Width, prescription
from loopscale.records import Cell, Trial
from loopscale.train import fit, make_config, with_tuned
from loopscale.tune import Size, TuneSettings, transfer_plan
from loopscale.tune.plan import at_target

SMALL = Size(1, 1, 32, 10, 4)
VALUES = {"lr": 0.01, "strength": 0.7}
VOCABULARY = 64
RULES = ("looped", "looped-complete")  # b = 1/2 and b = 1
# The proxy times these is the target; `layers` for both exponents, all of them at once at the end.
AXES = {
    "loops": {"loops": 8},
    "layers": {"layers": 4},
    "width": {"width": 128},
    "steps": {"steps": 80},
    "batch": {"batch": 16},
}
AXES["all"] = {axis: count for only in list(AXES.values()) for axis, count in only.items()}


def settings(rule="looped", optimizer="adamw", proxy=SMALL, **target):
    base = make_config(
        {
            "model": {"width": proxy.width, "head_dim": 16, "layers": proxy.layers, "rule": rule},
            "data": {"path": "synthetic:copy", "context": 16},
            "optim": {"optimizer": optimizer},
            "train": {"eval_batches": 2, "device": "cpu"},
        }
    )
    return TuneSettings(base, proxy, proxy.replace(**target), ("lr", "strength"), trials=3, seeds=1)


def plan(chosen):
    """The plan of a tuning in which `VALUES` won."""
    points = [VALUES, {**VALUES, "lr": 0.04}, {**VALUES, "strength": 2.8}]
    cells = [Cell(rule="looped", loops=1, lr=one["lr"], values=one, seed=0, explored=True) for one in points]
    trials = [Trial(key=str(n), cell=cell, loss=2.0 + n / 10, diverged=False) for n, cell in enumerate(cells)]
    return transfer_plan(chosen, trials)


def rows_of(chosen):
    return {row["name"]: row["value"] for row in plan(chosen)["rows"]}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("axis", AXES)
def test_the_plan_says_what_a_model_built_at_the_target_gets(axis, rule, optimizer):
    chosen = settings(rule, optimizer, **AXES[axis])
    found, target = plan(chosen), chosen.target
    config = chosen.config(target, found["target"]["values"])
    assert config.model_dump(mode="json") == found["target"]["config"]
    rows = {row["name"]: row for row in found["rows"]}
    depth, width = Depth(target.loops, target.layers), Width(target.width, SMALL.width)
    for said in prescription(
        depth, width, rule=rule, strength=VALUES["strength"], base_layers=SMALL.layers, optimizer=optimizer
    ):
        assert said.items() <= rows[said["name"]].items()

    model = LoopedTransformer(config.network(VOCABULARY))
    assert model.residual_scale(target.loops) == rows["residual_scale"]["value"]
    assert model.rule.output_multiplier(model.width_ratio).value == rows["output_multiplier"]["value"]
    optim = config.optim
    groups = param_groups(model, lr=optim.lr, weight_decay=optim.weight_decay, eps=optim.eps, optimizer=optimizer)
    assert {group["name"] for group in groups} >= {"embedding", "hidden", "gain", "outer_gain", "readout"}
    for group in groups:
        name = group["name"]
        assert group["lr"] == pytest.approx(rows[f"{name}.lr"]["rate"], rel=1e-12)
        assert group["weight_decay"] == optim.weight_decay * rows[f"{name}.weight_decay"]["value"]
        assert group["eps"] == optim.eps * rows[f"{name}.adam_eps"]["value"]


def test_over_loops_only_the_scale_moves_and_by_their_number():
    near, far = rows_of(settings()), rows_of(settings(loops=8))
    assert {name for name in near if near[name] != far[name]} == {"residual_scale"}
    assert far["residual_scale"] == near["residual_scale"] / 8 == VALUES["strength"] / 8


@pytest.mark.parametrize("rule,b", zip(RULES, (0.5, 1.0), strict=True))
def test_over_layers_scale_and_hidden_rate_move_by_the_exponent(rule, b):
    near, far = rows_of(settings(rule)), rows_of(settings(rule, layers=4))
    assert far["residual_scale"] == pytest.approx(near["residual_scale"] * 4**-b)
    assert far["hidden.lr"] == pytest.approx(4 ** (b - 1))
    assert far["hidden.weight_decay"] == pytest.approx(4 ** (1 - b)), "lr times decay stays"
    assert far["hidden.adam_eps"] == pytest.approx(4**-b)
    untouched = ("embedding.lr", "readout.lr", "outer_gain.lr", "output_multiplier", "lr", "strength")
    assert all(far[name] == near[name] for name in untouched)


def test_over_width_hidden_rate_epsilon_and_logits_move_by_the_ratio():
    near, far = rows_of(settings()), rows_of(settings(width=128))
    quarter = ("hidden.lr", "hidden.adam_eps", "embedding.adam_eps", "readout.adam_eps", "output_multiplier")
    assert all(far[name] == near[name] / 4 for name in quarter)
    assert far["residual_scale"] == near["residual_scale"] and far["embedding.lr"] == far["readout.lr"] == 1
    assert far["hidden.init_std"] == 1, "1/sqrt(fan_in) holds the width already"


def test_steps_and_batch_move_the_values_as_documented():
    decay = settings().base.optim.weight_decay
    assert at_target(settings(loops=8, layers=4, width=128), VALUES) == (VALUES, [])
    longer, _ = at_target(settings(steps=80), VALUES)
    assert longer["lr"] == pytest.approx(VALUES["lr"] * 8**-0.32, rel=1e-3)
    assert longer["lr"] * longer["weight_decay"] * 8 == pytest.approx(VALUES["lr"] * decay, rel=1e-3)
    wider, _ = at_target(settings(batch=16), VALUES)
    assert wider["lr"] == pytest.approx(VALUES["lr"] * 2 * 4**-0.32, rel=1e-3)
    assert at_target(settings(optimizer="sgd", batch=16), VALUES)[0]["lr"] == pytest.approx(
        VALUES["lr"] * 4 * 4**-0.32, rel=1e-3
    )
    assert longer["strength"] == wider["strength"] == VALUES["strength"]


counts = st.sampled_from((1, 2, 3, 5, 8, 16))
many = st.fixed_dictionaries({"loops": counts, "layers": counts, "width": counts, "steps": counts, "batch": counts})


def grown(size, factors, axes=AXES):
    """The size with these axes multiplied."""
    return size.replace(**{axis: getattr(size, axis) * factors[axis] for axis in axes if axis in factors})


def moved(start, end, rule, optimizer, values):
    """What reaches the network when values tuned at `start` are carried to `end`: every number, as a factor on `start`."""

    def rows(target):
        chosen = settings(rule, optimizer, proxy=start, **asdict(target))
        carried, _ = at_target(chosen, values)
        config = chosen.config(target, carried)
        said = prescription(
            Depth(target.loops, target.layers),
            Width(target.width, start.width),
            rule=rule,
            strength=carried["strength"],
            base_layers=start.layers,
            optimizer=optimizer,
        )
        reached = {row["name"]: row["value"] for row in said}
        for name in [name for name in reached if name.endswith(".lr")]:
            reached[name] *= config.optim.lr
            reached[name.replace(".lr", ".weight_decay")] *= config.optim.weight_decay
        return reached

    near, far = rows(start), rows(end)
    return {name: far[name] / near[name] for name in near if near[name]}


@limits(max_examples=40, deadline=None)
@given(many, st.sampled_from(RULES), st.sampled_from(("adamw", "sgd", "muon")))
def test_the_axes_compose_in_any_order_to_the_plan_of_all_at_once(factors, rule, optimizer):
    whole = moved(SMALL, grown(SMALL, factors), rule, optimizer, VALUES)
    alone = [moved(SMALL, grown(SMALL, {axis: count}), rule, optimizer, VALUES) for axis, count in factors.items()]
    for name, factor in whole.items():
        # A carried rate or decay is rounded to four digits, as a config file says it; a handful of roundings.
        assert factor == pytest.approx(math.prod(each[name] for each in alone), rel=5e-3), name


@limits(max_examples=15, deadline=None)
@given(many, st.permutations(list(SMALL.__dataclass_fields__)), st.integers(1, 4))
def test_a_tuning_carried_in_two_legs_arrives_where_one_leg_does(factors, order, cut):
    """The target of the first leg is the proxy of the second, whose base it becomes."""
    halfway = grown(SMALL, factors, order[:cut])
    first, _ = at_target(settings(proxy=SMALL, **asdict(halfway)), VALUES)
    second, _ = at_target(settings(proxy=halfway, **asdict(grown(SMALL, factors))), first)
    once, _ = at_target(settings(proxy=SMALL, **asdict(grown(SMALL, factors))), VALUES)
    assert second == pytest.approx(once, rel=5e-3)


@pytest.mark.parametrize("size", [SMALL, Size(2, 2, 64, 6, 2)], ids=str)
def test_a_target_equal_to_the_proxy_changes_nothing(size):
    chosen = settings(proxy=size)
    found = plan(chosen)
    assert found["target"]["values"] == VALUES and found["moved"] == []
    factors = {row["name"]: row["value"] for row in found["rows"] if "." in row["name"]}
    assert set(factors.values()) == {0.0, 1.0} and {name for name, x in factors.items() if not x} == {
        "gain.weight_decay",
        "outer_gain.weight_decay",
    }
    mine = make_config(found["target"]["config"])
    assert mine.model_dump(exclude={"model"}) == chosen.config(size, VALUES).model_dump(exclude={"model"})
    told = make_config({**found["target"]["config"]}, ["model.base_layers=7", "model.base_width=7"])
    assert fit(mine).curve == fit(chosen.config(size, VALUES)).curve != fit(told).curve
    plain = LoopedTransformer(mine.network(VOCABULARY))
    without = mine.model.model_copy(update={"base_width": None})
    other = LoopedTransformer(mine.model_copy(update={"model": without}).network(VOCABULARY))
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(plain(tokens), other(tokens)), "a base of its own size is no base at all"


def test_the_file_carries_it_all_onto_a_config_of_the_target(tmp_path):
    """`train --from tuned.toml` on a config that states nothing but its size is the plan's own config."""
    chosen = settings(**AXES["all"])
    found = plan(chosen)
    wanted = make_config(found["target"]["config"])
    (tmp_path / "tuned.toml").write_text(wanted.to_toml())
    keys = ("model.loops", "model.layers", "model.width", "train.steps", "data.batch_size")
    size = [f"{key}={count}" for key, count in zip(keys, asdict(chosen.target).values(), strict=True)]
    sized = make_config(chosen.base.model_dump(mode="json"), size)
    carried, cautions = with_tuned(sized, tmp_path / "tuned.toml")
    assert carried == wanted and cautions == []
