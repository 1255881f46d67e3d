"""The looped Transformer in one readable file: prelude / looped core / coda, pre-norm, RoPE, SwiGLU, GQA.

What this project is about are two places below: `x = x + scale * branch(norm(x))` in `PreNormBlock`, and the two `for`s of
`LoopedCore.forward`. What a branch computes is in layers.py, the ways to save memory or to end early are in visits.py.

Shapes: B batch, T positions, D width, E head_dim, V vocabulary. The stream is fp32 also under autocast; the branches run in
the autocast dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loopscale.errors import UserError, expect, settings
from loopscale.nn.config import ModelConfig
from loopscale.nn.initialise import initialise, role_of
from loopscale.nn.layers import Attention, RMSNorm, SwiGLU, checked_tokens, chunked_cross_entropy, rotary
from loopscale.nn.past import Past, Place, Slot
from loopscale.nn.residual import Scale, add_scaled
from loopscale.nn.visits import ORDERS, Recompute, check_options, visit_by_options
from loopscale.parameterization import Depth, Role, Width, get_rule


class Pace(NamedTuple):
    """The numbers that follow N: eps, the skip scale, and how many visits make unit time (an injection's step is 1/that).

    Tensors, when the body is compiled: a float would be part of the graph, and another N another graph.
    """

    scale: Scale
    skip: Scale = 1.0
    loops: int = 1


Paces = tuple[Pace, Pace]  # outside the core, and in it


class Options(TypedDict, total=False):
    """How a pass goes, besides N.

    `past`: what came before these tokens. `scale`: "freeze" keeps the eps of the configured N when `loops` differs from
    it, "rescale" follows. `exit_below`: end the visits early, once a visit changes the stream of every sequence by less
    than this fraction of its RMS. `paces`: other numbers than those of `LoopedTransformer.paces(loops, scale)`, as tensors
    where models that are trained together differ in them.
    """

    past: Past | None
    scale: str | None
    exit_below: float | None
    paces: Paces | None


class Block(nn.Module):
    """One layer: two residual branches, each scaled by the same eps. Its subclasses say where the norms stand."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(config.width), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.width), SwiGLU(config)


class PreNormBlock(Block):
    """The stream is never normed: the paper's setting."""

    def forward(self, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None) -> Tensor:
        """Run the layer; `scale` is eps, `skip` is 1 and unused."""
        # x = x + scale * branch(norm(x)), in one pass over memory
        x = add_scaled(x, scale, self.attention(self.attention_norm(x), rotation, slot))
        return add_scaled(x, scale, self.mlp(self.mlp_norm(x)))


class SandwichBlock(Block):
    """Every update has RMS 1 before its scale, whatever the weights grow to."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention_after, self.mlp_after = RMSNorm(config.width), RMSNorm(config.width)

    def forward(self, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None) -> Tensor:
        """Run the layer; `scale` is eps, `skip` is 1 and unused."""
        # x = x + scale * norm'(branch(norm(x))), in one pass over memory
        x = add_scaled(x, scale, self.attention_after(self.attention(self.attention_norm(x), rotation, slot)))
        return add_scaled(x, scale, self.mlp_after(self.mlp(self.mlp_norm(x))))


class PostNormBlock(Block):
    """The stream is normed at every step, so eps governs the size of updates only."""

    def forward(self, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None) -> Tensor:
        """Run the layer; `scale` is eps, `skip` is alpha of the Post-LN rules."""
        x = self.attention_norm(skip * x + scale * self.attention(x, rotation, slot))
        normed: Tensor = self.mlp_norm(skip * x + scale * self.mlp(x))
        return normed


BLOCKS: dict[str, type[Block]] = {"pre": PreNormBlock, "sandwich": SandwichBlock, "post": PostNormBlock}


class LoopedCore(nn.Module):
    """L blocks, visited N times; the module to shard, gathered once a step whatever N.

    N and its `pace` are arguments of forward, so N is a run-time knob. Blocks are children "0", "1", ...: a parameter of
    the second is "core.1.mlp.down.weight" in a model that calls this "core". `order` is "stack" (the stack, N times) or
    "layer" (each layer N times, then the next). `injection` is a module with `source(entry)` and `forward(x, source,
    step)`. `visit_rows` vectors, zero at first, are spread over unit time and added in steps. `gradient_visits` = k lets
    the gradient through the last k visits only (None: all); the stream's entry is then reached along the skip path.
    `recompute` may be changed between steps; it changes memory and time, not values.

    Raises `UserError` for an unknown order, or gradient_visits below 1.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        order: str = "stack",
        injection: nn.Module | None = None,
        visit_rows: Tensor | None = None,
        gradient_visits: int | None = None,
    ) -> None:
        super().__init__()
        check_options(order, gradient_visits)
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
        self.order, self.gradient_visits = order, gradient_visits
        self.injection: Any = injection
        self.visit_embedding = None if visit_rows is None else nn.Parameter(visit_rows)
        self.recompute = Recompute()
        self.body: Callable[..., Tensor] = run_block

    def __iter__(self) -> Iterator[Any]:
        return iter([module for name, module in self._modules.items() if name.isdigit()])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]

    def forward(
        self,
        x_BTD: Tensor,
        place: Place,
        pace: Pace,
        loops: int,
        kept: list[Tensor] | None = None,
        exit_below: float | None = None,
    ) -> Tensor:
        """Visit the blocks `loops` times; `kept` gets the stream after each visit (and nothing is recomputed then)."""
        if self.order in ORDERS or self.gradient_visits or self.recompute.every or exit_below is not None:
            return visit_by_options(self, x_BTD, (place, pace), loops, kept, exit_below)
        x, source = x_BTD, self.source(x_BTD)
        for visit in range(loops):
            x = self.enter(x, source, visit, pace.loops)
            for layer, block in enumerate(self):
                x = self.step(block, x, place, pace, ("core", visit, layer))
            if kept is not None:
                kept.append(x)
        return x

    def source(self, entry: Tensor) -> Tensor | None:
        """Compute what an injection adds at every visit, once."""
        return None if self.injection is None else self.injection.source(entry)

    def enter(self, x: Tensor, source: Tensor | None, visit: int, steps: int) -> Tensor:
        """Add what comes before the layers in a visit: the injection and the visit's own vector, in steps of unit time."""
        if self.injection is not None:
            x = self.injection(x, source, 1 / steps)
        if self.visit_embedding is not None:
            rows = self.visit_embedding.shape[0]
            x = add_scaled(x, 1 / steps, self.visit_embedding[min(visit * rows // steps, rows - 1)].to(x.dtype))
        return x

    def step(self, block: nn.Module, x: Tensor, place: Place, pace: Pace, at: tuple[str, int, int]) -> Tensor:
        """Run one block at one visit. With a slot it is not compiled: a cache grows at every call."""
        slot = place.slot(*at)
        return (self.body if slot is None else run_block)(block, x, place.rotation, pace.scale, pace.skip, slot)

    def compile_body(self, **options: Any) -> None:
        """Compile one block, which then serves all layers and every number of loops; `options` go to `torch.compile`."""
        self.body = torch.compile(run_block, **{"dynamic": False, **options})

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Run without compilation inside: hooks on modules fire only then."""
        body, self.body = self.body, run_block
        try:
            yield
        finally:
            self.body = body

    @property
    def compiled(self) -> bool:
        """Whether `compile_body` was called."""
        return self.body is not run_block


def run_block(
    block: nn.Module, x: Tensor, rotation: Tensor, scale: Scale, skip: Scale, slot: Slot | None = None
) -> Tensor:
    """Run the body of the loop: one block, one visit. A function of the block, so that one graph serves all layers."""
    out: Tensor = block(x, rotation, scale, skip, slot)
    return out


class LoopedTransformer(nn.Module):
    """Tokens [B, T] -> logits [B, T, V]; `loops` is an argument of forward, and eps follows it.

    Prelude and coda layers are visited once: N = 1 in their scale. Further options of a call are `Options`. `seed` fixes
    the initialisation, which does not touch the global generator.

    >>> model = LoopedTransformer(ModelConfig(vocab_size=17, width=32, layers=2, loops=4))
    >>> model(torch.zeros(1, 5, dtype=torch.long), loops=8).shape
    torch.Size([1, 5, 17])
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        expect(config, isinstance(config, ModelConfig), "a ModelConfig", "LoopedTransformer(ModelConfig(width=64))")
        self.config, self.rule = config, get_rule(config.rule)
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            block = BLOCKS[config.placement]
            self.prelude = nn.ModuleList(block(config) for _ in range(config.prelude))
            rows = config.visit_embedding
            self.core = LoopedCore(
                (block(config) for _ in range(config.layers)),
                order=config.order,
                injection=config.injection.build(config.width),
                visit_rows=torch.zeros(rows, config.width) if rows else None,
                gradient_visits=config.gradient_visits,
            )
            self.coda = nn.ModuleList(block(config) for _ in range(config.coda))
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
        """Give eps of the core at this many loops; `loops=1` gives eps of prelude and coda."""
        depth = Depth(loops, self.config.layers)
        return self.rule.residual_scale(depth, self.config.strength, self.config.base_layers).value

    def forward(
        self,
        tokens_BT: Tensor,
        loops: int | None = None,
        targets_BT: Tensor | None = None,
        loss_rows: int = 256,
        **options: Unpack[Options],
    ) -> Tensor:
        """Compute logits [B, T, V]; with `targets_BT` [B, T] the mean cross entropy [], `loss_rows` positions at a time.

        Raises `UserError` for other tokens, loops < 1, another word for the scale, or an early exit with a cache.
        """
        if options.keys() - Options.__annotations__.keys():
            settings(Options, options, LoopedTransformer.forward)
        x_BTD = self.run(tokens_BT, loops, **options)[-1]
        if targets_BT is None:
            return self.read(x_BTD)
        x_BTD = self.final_norm(x_BTD)
        x_BTD = x_BTD if self._multiplier == 1 else x_BTD * self._multiplier
        return chunked_cross_entropy(x_BTD, self._readout, targets_BT, loss_rows)

    def run(
        self, tokens_BT: Tensor, loops: int | None = None, keep: bool = False, **options: Unpack[Options]
    ) -> list[Tensor]:
        """Give the stream [B, T, D] at the end; with `keep`, also at entry to the core and after each visit."""
        return self.flow(self.embedding(checked_tokens(tokens_BT)), loops, keep, **options)

    def flow(self, x: Tensor, loops: int | None = None, keep: bool = False, **options: Unpack[Options]) -> list[Tensor]:
        """Do what `run` does, from embedded tokens [B, T, D]."""
        if self.readout is None:  # the rows of a shared table have RMS 1/sqrt(base width), and the stream enters with 1
            x = x * (self.config.base_width or self.config.width) ** 0.5
        visits = self.config.loops if loops is None else loops
        past, exit_below = options.get("past"), options.get("exit_below")
        outside, pace = options.get("paces") or self.paces(visits, options.get("scale"))
        if exit_below is not None and past is not None and past.cache is not None:
            raise UserError("an early exit leaves slots of the cache empty: leave out either the cache or exit_below")
        place = self._place(x, visits, past)
        for layer, block in enumerate(self.prelude):
            x = self.core.step(block, x, place, outside, ("prelude", 0, layer))
        kept = [x]
        x = self.core(x, place, pace, loops=visits, kept=kept if keep else None, exit_below=exit_below)
        for layer, block in enumerate(self.coda):
            x = self.core.step(block, x, place, outside, ("coda", 0, layer))
        return [*kept, x] if keep else [x]

    def _place(self, x_BTD: Tensor, loops: int, past: Past | None) -> Place:
        B, T, _ = x_BTD.shape
        if past is None:
            return Place(rotary(torch.arange(T, device=x_BTD.device), self.config.head_dim))
        if past.cache is not None:
            past.cache.begin(loops)
        past.check(B, T)
        rotation = rotary(past.positions(T, x_BTD.device), self.config.head_dim)
        return Place(rotation, past.cache, past.mask(T, x_BTD.device))

    def paces(self, loops: int, scale: str | None = None) -> Paces:
        """Give the numbers of prelude and coda, which are visited once, and of the core, at this many loops."""
        once, core = self._pace(1), self._pace(self.config.paced_loops(loops, scale))
        # Post-LN: the skip scale of the whole network counts outside the core too.
        return Pace(once.scale, core.skip), core

    def _pace(self, loops: int) -> Pace:
        skip = self.rule.skip_scale(Depth(loops, self.config.layers)).value
        return Pace(self._number(self.residual_scale(loops)), self._number(skip), loops)

    def _number(self, value: float) -> Scale:
        """Give a compiled body its numbers as tensors, so that one graph serves every N."""
        return torch.tensor(value, device=self.embedding.weight.device) if self.core.compiled else value

    def read(self, x_BTD: Tensor) -> Tensor:
        """Apply final norm and readout."""
        logits_BTV = F.linear(self.final_norm(x_BTD), self._readout)
        return logits_BTV if self._multiplier == 1 else logits_BTV * self._multiplier

    @property
    def _readout(self) -> Tensor:
        return self.embedding.weight if self.readout is None else self.readout.weight

    @property
    def _multiplier(self) -> float:
        return self.rule.output_multiplier(self.width_ratio).value

    @torch.no_grad()
    def visit_rms(self, tokens_BT: Tensor, loops: int | None = None) -> list[float]:
        """Measure the RMS of the stream at entry to the core and after each visit: loops + 1 numbers (stack-wise order)."""
        streams = self.run(tokens_BT, loops, keep=True)[:-1]
        return [float(x.float().square().mean().sqrt()) for x in streams]

    def roles(self) -> dict[str, Role]:
        """Give the role of every parameter by name."""
        return {name: role_of(name, parameter.ndim) for name, parameter in self.named_parameters()}
