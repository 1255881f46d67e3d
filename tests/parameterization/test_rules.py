"""Laws of the conformance table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscale import RULES, Depth, Role, UserError, Width, residual_scale
from loopscale.parameterization import check_roles, get_rule, prescription, role_by_name

PRE_NORM = [rule for rule in RULES.values() if rule.keeps_start]
counts = st.integers(1, 512)


def test_the_paper_rule():
    assert residual_scale(Depth(loops=8, layers=4)) == 0.0625
    assert residual_scale(Depth(loops=8, layers=4), base_layers=4) == 0.125
    assert residual_scale(Depth(loops=8, layers=4), strength=0.5) == 0.03125


@given(counts, counts, counts)
def test_looped_factorises_over_loops_and_layers(loops, layers, more):
    scale = residual_scale(Depth(loops, layers))
    assert math.isclose(residual_scale(Depth(loops * more, layers)) * more, scale)
    assert math.isclose(residual_scale(Depth(loops, layers * more)) * math.sqrt(more), scale)


@pytest.mark.parametrize(
    "name,slopes",
    [
        ("looped", (-1, -0.5)),
        ("looped-complete", (-1, -1)),
        ("sqrt", (-0.5, -0.5)),
        ("none", (0, 0)),
        ("depth-mup", (-0.5, -0.5)),
    ],
)
def test_slopes_of_the_scale_over_loops_and_layers(name, slopes):
    def scale(n, layers):
        return math.log(residual_scale(Depth(n, layers), rule=name))

    assert math.isclose((scale(64, 4) - scale(4, 4)) / math.log(16), slopes[0], abs_tol=1e-12)
    assert math.isclose((scale(4, 64) - scale(4, 4)) / math.log(16), slopes[1], abs_tol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("layers", [1, 4])
def test_at_one_loop_and_the_base_layers_all_pre_norm_rules_prescribe_the_same(layers, optimizer):
    tables = [
        [
            row["value"]
            for row in prescription(
                Depth(1, layers), Width(512, 128), rule=rule, base_layers=layers, strength=0.7, optimizer=optimizer
            )
        ]
        for rule in PRE_NORM
    ]
    assert all(table == tables[0] for table in tables)


@given(counts, counts, st.sampled_from(["looped", "looped-complete"]), st.sampled_from(["adamw", "muon", "sgd"]))
def test_no_loops_in_the_rates_of_rules_that_claim_transfer(loops, layers, name, optimizer):
    rule = get_rule(name)
    for role in Role:
        ours = rule.for_role(role, Depth(loops, layers), None, None, optimizer)
        base = rule.for_role(role, Depth(1, layers), None, None, optimizer)
        assert (ours.lr.value, ours.adam_eps.value, ours.weight_decay.value) == (
            base.lr.value,
            base.adam_eps.value,
            base.weight_decay.value,
        )


@given(counts, st.sampled_from(["looped", "looped-complete", "sqrt"]))
def test_rate_times_scale_falls_as_one_over_layers(layers, name):
    """L layers move the output coherently: L * eps * eta must not depend on L (Adam-like)."""
    rule = get_rule(name)
    product = [
        n * rule.residual_scale(Depth(1, n)).value * rule.for_role(Role.HIDDEN, Depth(1, n)).lr.value
        for n in (1, layers)
    ]
    assert math.isclose(*product)


@given(counts, counts)
def test_decay_per_step_of_hidden_weights_is_constant(layers, ratio):
    values = get_rule("looped").for_role(Role.HIDDEN, Depth(2, layers), Width(ratio * 8, 8))
    assert math.isclose(values.lr.value * values.weight_decay.value, 1.0)


@given(st.sampled_from(PRE_NORM), counts, counts, st.sampled_from([1, 2, 4]))
def test_adams_epsilon_follows_the_gradient_eps_times_n(rule, loops, layers, ratio):
    """The gradient of a shared weight sums N visits of size eps: N^(1-a) m_L^-b, and 1/m_d."""
    depth, width = Depth(loops, layers), Width(8 * ratio, 8)
    eps = rule.for_role(Role.HIDDEN, depth, width).adam_eps
    assert math.isclose(eps.value, rule.residual_scale(depth).value * loops / ratio)
    assert ("no N" in eps.why) == (rule.loops_exponent == 1)


@given(counts, st.sampled_from([1, 2, 4]), st.sampled_from([Role.GAIN, Role.OUTER_GAIN]))
def test_under_sgd_vectors_learn_as_fast_as_the_width_ratio(layers, ratio, role):
    rule, depth = get_rule("looped"), Depth(2, layers)
    wide, narrow = (rule.for_role(role, depth, Width(8 * m, 8), 1, "sgd").lr.value for m in (ratio, 1))
    assert math.isclose(wide, ratio * narrow)


@given(st.sampled_from(PRE_NORM), st.sampled_from([1, 2, 4]), st.sampled_from(["adamw", "muon", "sgd"]))
def test_decay_per_step_does_not_depend_on_the_width(rule, ratio, optimizer):
    for role in (Role.EMBEDDING, Role.HIDDEN, Role.VISIT, Role.READOUT):
        values = rule.for_role(role, Depth(4, 2), Width(8 * ratio, 8), 1, optimizer)
        assert math.isclose(values.lr.value * values.weight_decay.value, 1.0)


def test_depth_mup_has_its_own_exponent_under_sgd():
    """Tensor Programs VI: with branches / sqrt(depth) the rate falls as 1/sqrt(depth) under Adam and stays under SGD."""
    rule = get_rule("depth-mup")
    adam, sgd = (rule.for_role(Role.HIDDEN, Depth(16, 4), None, 1, name).lr.value for name in ("adamw", "sgd"))
    assert math.isclose(adam, 1 / 8) and math.isclose(sgd, 1.0)


@pytest.mark.parametrize(("name", "power"), [("tied-lr-sqrt", 0.5), ("tied-lr", 1.0)])
def test_the_rule_in_the_optimiser_scales_the_rate_of_looped_weights_alone(name, power):
    rule, depth = get_rule(name), Depth(16, 4)
    assert rule.residual_scale(depth).value == 1
    rates = {role: rule.for_role(role, depth).lr.value for role in Role}
    assert math.isclose(rates[Role.HIDDEN], 16**-power) and rates[Role.EMBEDDING] == rates[Role.READOUT] == 1


def test_the_common_initialisation_has_no_scale_and_is_another_network_at_one_loop_too():
    rule, depth = get_rule("gpt2-init"), Depth(16, 2)
    assert rule.residual_scale(depth).value == 1 and not rule.keeps_start and not rule.claims_transfer
    assert math.isclose(rule.branch_gain(depth).value, 1 / 8)
    plain, other = (
        {row["name"]: row["value"] for row in prescription(Depth(1, 1), rule=name)} for name in ("none", "gpt2-init")
    )
    assert {name for name in plain if plain[name] != other[name]} == {"branch_gain"}
    assert math.isclose(other["branch_gain"], 0.5**0.5)


def test_post_norm_rules_follow_their_papers():
    depth = Depth(loops=8, layers=4)
    assert math.isclose(get_rule("deepnorm").skip_scale(depth).value, 64**0.25)
    assert math.isclose(get_rule("deepnorm").branch_gain(depth).value, 256**-0.25)
    assert math.isclose(get_rule("deeploop").skip_scale(depth).value, 8.0)
    assert math.isclose(get_rule("deeploop").branch_gain(depth).value, 1 / 16)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_every_value_says_why_and_whence(rule):
    for row in prescription(Depth(3, 5), Width(64, 32), rule=rule):
        assert row["why"] and row["source"] and math.isfinite(row["value"])


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: Depth(0, 1), "loops must be a whole number of at least 1, got 0"),
        (lambda: Depth(1, -2), "layers must be a whole number of at least 1, got -2"),
        (lambda: Depth(1, 2.5), "layers must be a whole number of at least 1, got 2.5"),
        (lambda: Depth(True, 1), "loops must be a whole number"),
        (lambda: Width(8, 0), "base_width must be a whole number of at least 1, got 0"),
        (lambda: residual_scale(Depth(1, 1), float("nan")), "strength must be a number of at least 0, got nan"),
        (lambda: residual_scale(Depth(1, 1), -1.0), "strength must be a number of at least 0, got -1.0"),
        (lambda: residual_scale(Depth(1, 1), rule="loped"), "unknown rule 'loped': did you mean 'looped'?"),
        (
            lambda: get_rule("looped").for_role(Role.HIDDEN, Depth(1, 1), optimizer="adam"),
            "no rule for optimizer 'adam'",
        ),
        (lambda: check_roles(["a", "b"], {"a": Role.HIDDEN}), "no role for parameter 'b'"),
        (lambda: check_roles(["a"], {"a": Role.HIDDEN, "c": Role.GAIN}), "roles= names 'c'"),
        (lambda: check_roles(["a"], {"a": "embeding"}), "'embeding' is no role: did you mean 'embedding'? known: "),
        (lambda: Depth(8), "Depth needs layers: Depth(loops=..., layers=...)"),
        (lambda: Depth(loop=8, layers=4), "Depth has no value 'loop': did you mean 'loops'?"),
        (lambda: residual_scale(8, 4), "got 8: such as residual_scale(Depth(loops=8, layers=4))"),
        (lambda: prescription(8), "depth must be a Depth, got 8"),
    ],
)
def test_mistakes_get_a_sentence(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


def test_roles_are_told_by_names():
    names = {
        "transformer.wte.weight": (False, False),
        "transformer.h.0.attn.c_attn.weight": (False, True),
        "transformer.h.0.attn.c_attn.bias": (True, True),
        "transformer.h.0.mixer.a_log": (False, True),
        "transformer.ln_f.weight": (True, False),
        "lm_head.weight": (False, False),
        "memory.weight": (False, False),
    }
    roles = [role_by_name(name, vector, inside) for name, (vector, inside) in names.items()]
    assert [role and role.value for role in roles] == [
        "embedding", "hidden", "gain", "gain", "outer_gain", "readout", None,
    ]  # fmt: skip
