"""The looped Transformer in one readable file: prelude / looped core / coda, pre-norm, RoPE, SwiGLU, GQA.

Shapes: B batch, T positions, D width, H query heads, K key-value heads, E head_dim, F MLP width, V vocabulary.
The stream is fp32 also under autocast; the branches run in the autocast dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.nn.chunked_loss import chunked_cross_entropy
from loopscale.nn.config import SCALES, ModelConfig, check_scale
from loopscale.nn.initialise import initialise
from loopscale.nn.layers import Attention, RMSNorm, SwiGLU, rotary, rotary_at
from loopscale.nn.looped_core import LoopedCore, Pace
from loopscale.nn.past import Past, Sight, Slot, slot_of
from loopscale.nn.placement import PLACEMENTS
from loopscale.nn.residual import Scale
from loopscale.parameterization import Depth, Role, Width, get_rule

Paces = tuple[Pace, Pace]  # outside the core, and in it


class Block(nn.Module):
    """One layer: two residual branches, each scaled by the same eps; the config's norm placement says where norms stand."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        placement = PLACEMENTS[config.placement]
        self.place = placement.step
        self.attention_norm, self.attention = RMSNorm(config.width), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.width), SwiGLU(config)
        self.attention_after = RMSNorm(config.width) if placement.after else None
        self.mlp_after = RMSNorm(config.width) if placement.after else None

    def forward(self, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None) -> Tensor:
        """`scale` is eps; `skip` is alpha of the Post-LN rules (1 and unused for pre-norm); `slot` see `Attention`."""

        def attention(y: Tensor) -> Tensor:
            mixed: Tensor = self.attention(y, rotation, slot)
            return mixed

        x = self.place(x, attention, self.attention_norm, self.attention_after, scale, skip)
        return self.place(x, self.mlp, self.mlp_norm, self.mlp_after, scale, skip)


class LoopedTransformer(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]; `loops` is an argument of forward, and eps follows it.

    Prelude and coda layers are visited once: N = 1 in their scale. `scale="freeze"` keeps the eps of the configured N when
    `loops` differs from it, "rescale" follows; `exit_below` ends the visits early (see `LoopedCore`). `seed` fixes the
    initialisation, which does not touch the global generator.

    >>> model = LoopedTransformer(ModelConfig(vocab_size=17, width=32, layers=2, loops=4))
    >>> model(torch.zeros(1, 5, dtype=torch.long), loops=8).shape
    torch.Size([1, 5, 17])
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.rule = config, get_rule(config.rule)
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            self.prelude = nn.ModuleList(Block(config) for _ in range(config.prelude))
            rows = config.visit_embedding
            self.core = LoopedCore(
                (Block(config) for _ in range(config.layers)),
                order=config.order,
                injection=config.injection.build(config.width),
                visit_rows=torch.zeros(rows, config.width) if rows else None,
                gradient_visits=config.gradient_visits,
            )
            self.coda = nn.ModuleList(Block(config) for _ in range(config.coda))
            self.final_norm = RMSNorm(config.width)
            self.readout = None if config.tied_readout else nn.Linear(config.width, config.vocab_size, bias=False)
        initialise(self, config, seed)

    @property
    def depth(self) -> Depth:
        """Loops and layers as configured."""
        return self.config.depth

    @property
    def width_ratio(self) -> Width:
        """Width against the base width."""
        return Width(self.config.width, self.config.base_width)

    def residual_scale(self, loops: int) -> float:
        """eps of the core at this many loops; `loops=1` gives that of prelude and coda."""
        depth = Depth(loops, self.config.layers)
        return self.rule.residual_scale(depth, self.config.strength, self.config.base_layers).value

    def forward(
        self,
        tokens_BT: Tensor,
        loops: int | None = None,
        past: Past | None = None,
        scale: str | None = None,
        exit_below: float | None = None,
        paces: Paces | None = None,
        targets_BT: Tensor | None = None,
        loss_rows: int = 256,
    ) -> Tensor:
        """Logits [B, T, V]; `past` holds what came before these tokens; `scale` and `exit_below` see above.

        `paces`: other numbers than those of `self.paces(loops)`, as tensors where models of a stack differ in them. With
        `targets_BT` the mean cross entropy [] instead, its logits computed for `loss_rows` positions at a time.

        Raises `UserError` when loops < 1, the scale is another word, or an early exit is asked for with a cache.
        """
        x_BTD = self.run(tokens_BT, loops, past=past, scale=scale, exit_below=exit_below, paces=paces)[-1]
        if targets_BT is None:
            return self.read(x_BTD)
        return chunked_cross_entropy(self._final(x_BTD), self._readout, targets_BT, loss_rows)

    def run(self, tokens_BT: Tensor, loops: int | None = None, keep: bool = False, **options: Any) -> list[Tensor]:
        """The stream [B, T, D] at the end; with `keep`, also at entry to the core and after each visit.

        `options` are those of `forward`.
        """
        return self.flow(self.embedding(tokens_BT), loops, keep, **options)

    def flow(
        self,
        x: Tensor,
        loops: int | None = None,
        keep: bool = False,
        past: Past | None = None,
        scale: str | None = None,
        exit_below: float | None = None,
        paces: Paces | None = None,
    ) -> list[Tensor]:
        """As `run`, from embedded tokens [B, T, D]."""
        visits = self.config.loops if loops is None else loops
        outside, pace = self.paces(visits, scale) if paces is None else paces
        if exit_below is not None and past is not None and past.cache is not None:
            raise UserError("an early exit leaves slots of the cache empty: leave out either the cache or exit_below")
        rotation, sight = self._place(x, visits, past)
        for layer, block in enumerate(self.prelude):
            x = self.core.step(block, x, rotation, outside, slot_of(sight, "prelude", 0, layer))
        kept = [x]
        x = self.core(x, rotation, pace, loops=visits, kept=kept if keep else None, sight=sight, exit_below=exit_below)
        for layer, block in enumerate(self.coda):
            x = self.core.step(block, x, rotation, outside, slot_of(sight, "coda", 0, layer))
        return [*kept, x] if keep else [x]

    def _place(self, x_BTD: Tensor, loops: int, past: Past | None) -> tuple[Tensor, Sight | None]:
        """Where the tokens stand, as rotary angles, and what they may look at (None: each other, causally)."""
        B, T, _ = x_BTD.shape
        if past is None:
            return rotary(T, self.config.head_dim, x_BTD.device), None
        if past.cache is not None:
            past.cache.begin(loops)
        past.check(B, T)
        rotation = rotary_at(past.positions(T, x_BTD.device), self.config.head_dim)
        return rotation, Sight(past.cache, past.mask(T, x_BTD.device))

    def paces(self, loops: int, scale: str | None = None) -> Paces:
        """The numbers of prelude and coda, which are visited once, and those of the core, at this many loops."""
        once, core = self._pace(1), self._pace(paced_loops(self.config, loops, scale))
        # Post-LN: the skip scale of the whole network counts outside the core too.
        return Pace(once.scale, core.skip), core

    def _pace(self, loops: int) -> Pace:
        skip = self.rule.skip_scale(Depth(loops, self.config.layers)).value
        return Pace(self._number(self.residual_scale(loops)), self._number(skip), loops)

    def _number(self, value: float) -> Scale:
        """A compiled body gets numbers as tensors, so that another N is no other graph."""
        return torch.tensor(value, device=self.embedding.weight.device) if self.core.compiled else value

    def read(self, x_BTD: Tensor) -> Tensor:
        """Final norm and readout."""
        logits_BTV = F.linear(self.final_norm(x_BTD), self._readout)
        return logits_BTV if self._multiplier == 1 else logits_BTV * self._multiplier

    def _final(self, x_BTD: Tensor) -> Tensor:
        """What the readout's matrix is applied to, the multiplier of the logits in it."""
        normed: Tensor = self.final_norm(x_BTD)
        return normed if self._multiplier == 1 else normed * self._multiplier

    @property
    def _readout(self) -> Tensor:
        return self.embedding.weight if self.readout is None else self.readout.weight

    @property
    def _multiplier(self) -> float:
        return self.rule.output_multiplier(self.width_ratio).value

    @torch.no_grad()
    def visit_rms(self, tokens_BT: Tensor, loops: int | None = None) -> list[float]:
        """RMS of the stream at entry to the core and after each visit: loops + 1 numbers (stack-wise order)."""
        streams = self.run(tokens_BT, loops, keep=True)[:-1]
        return [float(x.float().square().mean().sqrt()) for x in streams]

    def roles(self) -> dict[str, Role]:
        """The role of every parameter, by name."""
        return {name: _role(name, parameter.ndim) for name, parameter in self.named_parameters()}


def paced_loops(config: ModelConfig, loops: int, scale: str | None = None) -> int:
    """The N whose eps is used: the call's under "rescale", the configured one under "freeze" (default: the config's).

    Raises `UserError` when loops < 1 or the scale is another word.
    """
    return SCALES[check_scale(config.scale if scale is None else scale)](config.loops, Depth(loops, 1).loops)


def _role(name: str, ndim: int) -> Role:
    if name.startswith("embedding.") or name == "core.visit_embedding":
        return Role.EMBEDDING
    if name.startswith("readout."):
        return Role.READOUT
    if name.startswith("final_norm."):
        return Role.OUTER_GAIN
    if name.startswith("core.injection."):
        return Role.VISIT if ndim >= 2 else Role.OUTER_GAIN
    if name.split(".")[0] not in ("prelude", "core", "coda"):
        raise UserError(f"parameter {name!r} has no role: add it to LoopedTransformer.roles")
    return Role.HIDDEN if ndim >= 2 else Role.GAIN
