"""The shape of a looped Transformer, validated where it is stated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar, cast

from loopscale.errors import UserError, nearest, number, spelt
from loopscale.nn.injection import INJECTIONS, Injection, NoInjection
from loopscale.nn.sampler import SAMPLERS, FixedLoops, GrowLoops, Sampler
from loopscale.nn.visits import ORDERS, STACK
from loopscale.parameterization import Depth, Width, get_rule, relative_layers
from loopscale.parameterization.depth import check_strength

NORMS = ("pre", "sandwich", "post")  # a block class each, in transformer.py
SCALES = ("rescale", "freeze")  # eps follows the N of a call, or keeps that of the config


@spelt
@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer: prelude -> core (`layers`, looped `loops` times) -> coda -> readout.

    `width` is the stream's; `head_dim` stays fixed while width grows. `kv_heads` < heads gives grouped-query attention.
    `mlp_ratio` is hidden / width of the SwiGLU. `rule`, `strength`, `base_layers`, `base_width` are the parameterization.

    Options of the loop, each a value (the page "The house model" says when): `norm` "pre", "sandwich" or "post" (None: the
    rule's), `injection`, `order` "stack" or "layer", `sampler` of N in training, `gradient_visits` (the last k of N),
    `visit_embedding` (rows; 0: none), `scale` "rescale" or "freeze" when N differs from `loops`. An injection or sampler
    may be given by name or as a table, `{"kind": "poisson", "mean": 4}`; `to_dict` gives plain values that build it again.

    Raises `UserError` for any value that makes no network.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int = 256
    width: int = 64
    layers: int = 1
    loops: int = 4
    prelude: int = 0
    coda: int = 0
    head_dim: int = 32
    kv_heads: int | None = None
    mlp_ratio: float = 8 / 3
    qk_norm: bool = False
    tied_readout: bool = False
    rule: str = "looped"
    strength: float = 1.0
    base_layers: int | None = None
    base_width: int | None = None
    norm: str | None = None
    injection: Injection = field(default_factory=NoInjection)
    order: str = "stack"
    sampler: Sampler = field(default_factory=FixedLoops)
    gradient_visits: int | None = None
    visit_embedding: int = 0
    scale: str = "rescale"

    def __post_init__(self) -> None:
        Depth(self.loops, self.layers)
        for name, least in {"vocab_size": 1, "width": 1, "head_dim": 1, "prelude": 0, "coda": 0}.items():
            number(name, getattr(self, name), least, whole=True)
        if self.width % self.head_dim:
            raise UserError(f"width {self.width} is not a multiple of head_dim {self.head_dim}: change one of them")
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise UserError(f"kv_heads {self.kv_heads} must divide the {self.heads} heads (width / head_dim)")
        if not math.isfinite(self.mlp_ratio) or self.mlp_ratio <= 0:
            raise UserError(f"mlp_ratio must be a positive number, got {self.mlp_ratio!r}")
        self._check_options()
        check_strength(self.strength)
        relative_layers(self.depth, self.base_layers)
        Width(self.width, self.base_width)

    def _check_options(self) -> None:
        object.__setattr__(self, "injection", choose("injection", INJECTIONS, self.injection))
        object.__setattr__(self, "sampler", choose("sampler", SAMPLERS, self.sampler))
        rule = get_rule(self.rule)
        for name, value, known in (("norm", self.placement, NORMS), ("order", self.order, (STACK, *ORDERS))):
            if value not in known:
                raise UserError(f"{name} has no kind {value!r}: {nearest(str(value), known)}")
        if rule.norm == "post" and self.placement != "post":
            raise UserError(f"rule {self.rule!r} is for Post-LN networks: use norm = 'post' or leave it out")
        check_scale(self.scale)
        if self.gradient_visits is not None:
            number("gradient_visits", self.gradient_visits, 1, whole=True)
        number("visit_embedding", self.visit_embedding, 0, whole=True)
        if isinstance(self.sampler, GrowLoops) and self.sampler.stages[-1][1] != self.loops:
            raise UserError(
                f"sampler.stages end at {self.sampler.stages[-1][1]} loops and loops is {self.loops}: make them equal"
            )

    @property
    def placement(self) -> str:
        """Where norms stand: `norm`, or the rule's own."""
        return get_rule(self.rule).norm if self.norm is None else self.norm

    def paced_loops(self, loops: int, scale: str | None = None) -> int:
        """Give the N whose eps is used: the call's under "rescale", the configured one under "freeze" (default: `scale`).

        Raises `UserError` when loops < 1 or `scale` is unknown.
        """
        frozen = check_scale(self.scale if scale is None else scale) == "freeze"
        return self.loops if frozen else Depth(loops, 1).loops

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; `ModelConfig(**values)` is equal to this.

        >>> ModelConfig(**ModelConfig(injection="diagonal").to_dict()).injection
        DiagonalInjection(kind='diagonal', decay=0.5)
        """
        return asdict(self)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.width // self.head_dim

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU, rounded up to a multiple of 8."""
        return 8 * math.ceil(self.width * self.mlp_ratio / 8)

    @property
    def depth(self) -> Depth:
        """Loops and layers of the core."""
        return Depth(self.loops, self.layers)


T = TypeVar("T")


def choose(option: str, kinds: Iterable[type[T]], given: object) -> T:
    """Turn "poisson", {"kind": "poisson", "mean": 4} or a value into a value; each class states its `kind`.

    Raises `UserError` for an unknown kind or key, naming the nearest, and whatever the value's own check raises.
    """
    by_kind = {cast(Any, cls).kind: cls for cls in kinds}
    if isinstance(given, tuple(by_kind.values())):
        return cast(T, given)
    table: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"kind": given}
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in by_kind:
        raise UserError(f"{option} has no kind {kind!r}: {nearest(str(kind), by_kind)}")
    cls = by_kind[kind]
    known = [one.name for one in fields(cast(Any, cls)) if one.name != "kind"]
    for key in table:
        if key not in known:
            hint = nearest(str(key), known) if known else "it takes none"
            raise UserError(f"{option} of kind {kind!r} has no key {key!r}: {hint}")
    return cls(**table)


def check_scale(scale: str) -> str:
    """Return the word; raise `UserError` unless it is "rescale" or "freeze"."""
    if scale not in SCALES:
        raise UserError(f"scale has no kind {scale!r}: {nearest(str(scale), SCALES)}")
    return scale
