"""The conformance table: every named rule is one row. A rule of your own joins by adding a row."""

from __future__ import annotations

from loopscale.errors import UserError, nearest
from loopscale.parameterization.depth import Depth
from loopscale.parameterization.rules import COMPLETEP, PAPER, Rule
from loopscale.parameterization.spelled import parse

_ROWS = (
    Rule(
        "looped",
        "lambda / (N sqrt(m_L)): visits add coherently, layers in quadrature (default)",
        PAPER,
        loops_exponent=1.0,
        layers_exponent=0.5,
        claims_transfer=True,
    ),
    Rule(
        "looped-complete",
        "lambda / (N m_L): the CompleteP exponent on the layer axis too",
        f"{PAPER}, {COMPLETEP}",
        loops_exponent=1.0,
        layers_exponent=1.0,
        claims_transfer=True,
    ),
    Rule(
        "sqrt",
        "lambda / sqrt(N m_L): the untied-depth rule applied to the unrolled depth",
        "arXiv:2310.02244",
        loops_exponent=0.5,
        layers_exponent=0.5,
    ),
    Rule("none", "lambda: no depth factor at all", "common practice"),
    Rule(
        "depth-mup",
        "Depth-muP on the unrolled depth: branch and rate / sqrt(N m_L)",
        "arXiv:2310.02244",
        loops_exponent=0.5,
        layers_exponent=0.5,
        rate_loops_exponent=0.5,
    ),
    Rule(
        "tied-lr-sqrt",
        "the rule in the optimiser: no scale, the rate of looped weights / sqrt(N)",
        "arXiv:2606.16825",
        rate_loops_exponent=0.5,
    ),
    Rule(
        "tied-lr",
        "the rule in the optimiser: no scale, the rate of looped weights / N",
        "arXiv:2606.16825",
        rate_loops_exponent=1.0,
    ),
    Rule(
        "gpt2-init",
        "no scale, output projections start at 1/sqrt(2 N L) of their std: what most code does",
        "GPT-2 (Radford et al. 2019)",
        gain_exponent=0.5,
    ),
    Rule(
        "deepnorm",
        "Post-LN, skip (2E)^1/4, initial gain (8E)^-1/4, E = N L",
        "arXiv:2203.00555",
        norm="post",
        skip_exponent=0.25,
        gain_exponent=0.25,
    ),
    Rule(
        "deeploop",
        "Post-LN, skip (2E)^1/2, initial gain (8E)^-1/2, E = N L",
        "arXiv:2607.13491",
        norm="post",
        skip_exponent=0.5,
        gain_exponent=0.5,
        # It does not claim transfer here: with trained norm gains the first step of a Post-LN network grows over N (the
        # house model's slope is near +0.7, +0.5 in docs/blocks.md's example), and only without gains and biases it is flat.
    ),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _ROWS}


def get_rule(rule: str | Rule) -> Rule:
    """Look a rule up by name; a `Rule` passes through, and a user's rule is read from its numbers (`spell`).

    Raises `UserError` for an unknown name, with the nearest known one.

    >>> get_rule("looped").loops_exponent
    1.0
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        if (spelled := parse(rule)) is not None:
            return spelled
        if ":" in rule:
            raise UserError(
                f"rule {rule!r} names a file, which runs only where the command line names it: --rule {rule}"
            )
        raise UserError(f"unknown rule {rule!r}: {nearest(str(rule), RULES)}")
    return RULES[rule]


def residual_scale(
    depth: Depth, strength: float = 1.0, *, rule: str | Rule = "looped", base_layers: int | None = None
) -> float:
    """Return eps = lambda / (N sqrt(L)), the factor on every residual branch (attention and MLP separately).

    `strength` is lambda, tuned once at the base. With `base_layers`, L counts relative to it; N is always absolute.

    Raises `UserError` for a bad depth, strength, base or rule. Source: arXiv:2606.18524.

    >>> residual_scale(Depth(loops=8, layers=4))
    0.0625
    >>> residual_scale(Depth(loops=8, layers=4), base_layers=4)
    0.125
    """
    return get_rule(rule).residual_scale(depth, strength, base_layers).value
