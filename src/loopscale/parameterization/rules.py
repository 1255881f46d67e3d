"""A rule: every factor that depth and width put on a network, each with its reason and source.

Symbols: N = loops, L = layers, m_L = L / L_base, m_d = width / base width, lambda = strength, eps = residual scale,
E = N * L executed layers. The pre-norm family is

    h <- h + eps * f(h),   eps = lambda * N^-a * m_L^-b,   eta = eta_base * m_L^(b-1)   (Adam-like, a = 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loopscale.errors import UserError, nearest
from loopscale.parameterization.depth import Depth, Width, check_strength, relative_layers
from loopscale.parameterization.roles import Role

Optimizer = Literal["adamw", "muon", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "muon", "sgd")

PAPER = "arXiv:2606.18524"
MUP = "arXiv:2203.03466"
COMPLETEP = "arXiv:2505.01618"
DERIVED = "documentation, The parameterization"


@dataclass(frozen=True)
class Value:
    """A number a rule prescribes, why, and where the reason comes from."""

    value: float
    why: str
    source: str


@dataclass(frozen=True)
class RoleValues:
    """Multipliers for one role, on what the model or user would have without any depth or width rule."""

    init_std: Value
    lr: Value
    adam_eps: Value
    weight_decay: Value


@dataclass(frozen=True)
class Rule:
    """A named parameterization. Frozen: make a variant with `dataclasses.replace`.

    `loops_exponent` (a) and `layers_exponent` (b) are the exponents of eps; `rate_loops_exponent` is the power of N in
    the hidden learning rate. A Post-LN rule has `skip` and `gain` exponents instead: norm(alpha x + f(x)) with
    alpha = (2E)^skip and the initial gain of value, output and MLP weights (8E)^-gain. A pre-norm rule with `gain`
    shrinks the initial output projections alone, by (2E)^-gain.
    """

    name: str
    summary: str
    source: str
    loops_exponent: float = 0.0
    layers_exponent: float = 0.0
    rate_loops_exponent: float = 0.0
    rate_layers_exponent: float | None = None
    norm: Literal["pre", "post"] = "pre"
    skip_exponent: float = 0.0
    gain_exponent: float = 0.0
    claims_transfer: bool = False

    def residual_scale(self, depth: Depth, strength: float = 1.0, base_layers: int | None = None) -> Value:
        """Return eps, the factor on every residual branch: lambda * N^-a * m_L^-b (1 * lambda for Post-LN rules)."""
        lam = check_strength(strength)
        layers = relative_layers(depth, base_layers)
        eps = lam / (depth.loops**self.loops_exponent * layers**self.layers_exponent)
        return Value(eps, self._scale_reason(), self.source)

    def skip_scale(self, depth: Depth) -> Value:
        """Return alpha, the factor on the stream itself: (2 N L)^skip for Post-LN rules, 1 for pre-norm."""
        if self.norm == "pre":
            return Value(1.0, "a pre-norm stream passes unchanged", self.source)
        alpha = (2 * depth.executed) ** self.skip_exponent
        return Value(alpha, "the skip outweighs the branch as depth grows", self.source)

    @property
    def keeps_start(self) -> bool:
        """Whether it scales branches and rates alone: at any one N and L such rules are one network, at other values."""
        return self.norm == "pre" and self.gain_exponent == 0

    def branch_gain(self, depth: Depth) -> Value:
        """Return beta, on the initial std of value, output and MLP weights: (8 N L)^-gain for Post-LN rules.

        For pre-norm rules it is on the output projections alone, (2 N L)^-gain: 1 but for `gpt2-init`.
        """
        if self.keeps_start:
            return Value(1.0, "no second depth rule on top of eps", DERIVED)
        if self.norm == "pre":
            said = "output projections start smaller, so that the stream does at initialisation"
            return Value((2 * depth.executed) ** -self.gain_exponent, said, self.source)
        beta = (8 * depth.executed) ** -self.gain_exponent
        return Value(beta, "bounds the size of one update of the model", self.source)

    def output_multiplier(self, width: Width) -> Value:
        """Return the factor on the logits: 1 / m_d, so that they neither grow nor vanish with width (muP)."""
        return Value(1.0 / width.ratio, "logits stay O(1) as width grows", MUP)

    def for_role(
        self,
        role: Role,
        depth: Depth,
        width: Width | None = None,
        base_layers: int | None = None,
        optimizer: Optimizer = "adamw",
    ) -> RoleValues:
        """Return the multipliers for one role; raises `UserError` for an optimizer without a rule."""
        if optimizer not in OPTIMIZERS:
            raise UserError(f"no rule for optimizer {optimizer!r}: {nearest(str(optimizer), OPTIMIZERS)}")
        ratio = 1.0 if width is None else width.ratio
        layers = relative_layers(depth, base_layers)
        rate = self._rate(role, depth, layers, ratio, optimizer)
        return RoleValues(_init_std(role), rate, self._adam_eps(role, depth, layers, ratio), _decay(role, rate))

    def _scale_reason(self) -> str:
        if self.norm == "post":
            return "Post-LN: depth is carried by the skip scale and the initial gain"
        loops = {
            1.0: "visits of a shared layer add up coherently: 1/N",
            0.5: "treats visits as independent: 1/sqrt(N)",
            0.0: "no factor for loops",
        }.get(self.loops_exponent, f"N^-{self.loops_exponent:g}")
        layers = {
            1.0: "layers treated as coherent: 1/m_L",
            0.5: "layers are orthogonal at initialisation: 1/sqrt(m_L)",
            0.0: "no factor for layers",
        }.get(self.layers_exponent, f"m_L^-{self.layers_exponent:g}")
        return f"{loops}; {layers}"

    def _rate(self, role: Role, depth: Depth, layers: float, ratio: float, optimizer: Optimizer) -> Value:
        if role is Role.VISIT:
            by_width = 1.0 / ratio if optimizer == "adamw" else 1.0
            return Value(by_width, "one a visit, not one a layer: no L; its step 1/N cancels the N visits", MUP)
        if role not in (Role.HIDDEN, Role.GAIN):
            return self._outer_rate(role, ratio, optimizer)
        by_depth = layers ** self._layer_power(optimizer) * depth.loops ** self._loop_power(optimizer)
        why = "updates of all layers move the output together; " + (
            "no N: eps = 1/N cancels the N visits"
            if self.loops_exponent == 1
            else f"falls as N^-{self.rate_loops_exponent:g}"
            if self.rate_loops_exponent
            else "no N factor: must be re-tuned at every N"
        )
        if role is Role.HIDDEN and optimizer == "adamw":
            return Value(by_depth / ratio, why + "; 1/m_d (muP)", f"{self.source}, {MUP}")
        if role is Role.GAIN and optimizer == "sgd":
            return Value(by_depth * ratio, why + "; m_d under SGD (muP)", f"{self.source}, {MUP}")
        return Value(by_depth, why, self.source)

    def _loop_power(self, optimizer: Optimizer) -> float:
        # A rule that lowers the rate under Adam owes its gradient one factor N^a more under SGD.
        owed = self.loops_exponent if optimizer == "sgd" and self.rate_loops_exponent else 0.0
        return owed - self.rate_loops_exponent

    def _layer_power(self, optimizer: Optimizer) -> float:
        if self.rate_layers_exponent is not None:
            return self.rate_layers_exponent
        if self.norm == "post" or self.loops_exponent == self.layers_exponent == 0:  # no scale on its branches
            return 0.0
        # Under SGD the gradient itself carries one more factor eps * N ~ m_L^-b.
        return (2 if optimizer == "sgd" else 1) * self.layers_exponent - 1

    def _outer_rate(self, role: Role, ratio: float, optimizer: Optimizer) -> Value:
        if optimizer == "sgd":
            # muP for SGD: vector-like parameters (and the readout under a 1/m_d multiplier) learn m_d times faster.
            return Value(ratio, "visited once: no N, no L; m_d under SGD (muP)", MUP)
        return Value(1.0, "visited once: no N, no L, and no width factor under Adam", MUP)

    def _adam_eps(self, role: Role, depth: Depth, layers: float, ratio: float) -> Value:
        inside = role in (Role.HIDDEN, Role.GAIN)
        if not inside or self.norm == "post":
            return Value(1 / ratio, "follows the gradient per weight: no N, no L; 1/m_d", COMPLETEP)
        size = depth.loops ** (1 - self.loops_exponent) * layers**-self.layers_exponent
        power = {1.0: "m_L^-b, so no N", 0.0: "N m_L^-b"}.get(self.loops_exponent, "N^(1-a) m_L^-b")
        return Value(size / ratio, f"follows the gradient per weight: eps*N = {power}; 1/m_d", COMPLETEP)


def _init_std(role: Role) -> Value:
    if role in (Role.HIDDEN, Role.VISIT):
        return Value(1.0, "1/sqrt(fan_in), whatever the depth: eps carries the depth", MUP)
    if role is Role.READOUT:
        return Value(1.0, "keeps its std over width: the 1/m_d multiplier carries the width", MUP)
    if role is Role.EMBEDDING:
        return Value(1.0, "keeps the stream O(1) at entry", MUP)
    return Value(1.0, "a gain starts at 1, a bias at 0", "convention")


def _decay(role: Role, rate: Value) -> Value:
    if role in (Role.GAIN, Role.OUTER_GAIN):
        return Value(0.0, "gains and biases are not decayed", "convention")
    return Value(1.0 / rate.value, "decoupled decay is lr * wd: the product stays constant", COMPLETEP)
