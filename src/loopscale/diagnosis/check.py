"""check_parameterization: is a model's forward pass and its first steps of training flat over loops, under a rule?"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.diagnosis.visits import Visits, first_tensor, watch
from loopscale.errors import UserError
from loopscale.optim import build_optimizer
from loopscale.parameterization import Depth, Role, Rule, get_rule, infer_roles

TOLERANCE = 0.2  # |slope| of log RMS over log N; unscaled loops show about 1, 1/sqrt(N) about 0.5
Factory = Callable[[int], nn.Module]


@dataclass(frozen=True)
class ParameterizationCheck:
    """The three slopes over loops and what they were fitted to; `str()` is a table.

    stream: RMS of the stream after the last visit, per N. first_step, later_steps: RMS of the change of the output after
    1 and k optimiser steps at one and the same rate, per N. Flat is a slope of 0; `passed` when all three are flat.
    """

    rule: str
    loops: tuple[int, ...]
    steps: int
    stream: tuple[float, ...]
    first_step: tuple[float, ...]
    later_steps: tuple[float, ...]
    tolerance: float

    @property
    def slopes(self) -> dict[str, float]:
        """Log-log slopes over N."""
        return {name: loglog_slope(self.loops, getattr(self, name)) for name in ("stream", "first_step", "later_steps")}

    @property
    def passed(self) -> bool:
        """Whether every slope lies within the tolerance."""
        return all(abs(slope) <= self.tolerance for slope in self.slopes.values())

    def __str__(self) -> str:
        head = f"{'loops':>12}" + "".join(f"{n:>10}" for n in self.loops) + f"{'slope':>10}"
        names = {"stream": "stream RMS", "first_step": "1 step", "later_steps": f"{self.steps} steps"}
        rows = [
            f"{names[name]:>12}" + "".join(f"{value:>10.4g}" for value in getattr(self, name)) + f"{slope:>+10.2f}"
            for name, slope in self.slopes.items()
        ]
        verdict = "flat over loops" if self.passed else f"NOT flat over loops (|slope| > {self.tolerance})"
        return "\n".join([head, *rows, f"{self.rule}: {verdict}"])


def check_parameterization(
    model: nn.Module | Factory,
    rule: str | Rule = "looped",
    *,
    loops: Sequence[int] = (1, 2, 4, 8, 16),
    batch: Tensor | None = None,
    steps: int = 10,
    lr: float = 1e-3,
    layers: int | None = None,
    tolerance: float = TOLERANCE,
) -> ParameterizationCheck:
    """Measure flatness over N at initialisation and after 1 and `steps` AdamW steps at one rate, on your own model.

    model: a module whose forward takes `loops=`, or a factory `loops -> module` (the same weights at every N: seed it).
    rule: sets the optimiser's groups; the residual scale is the model's own, that is what is being checked.
    batch: the model's input; made up from the embedding's size when the model has one.
    layers: L, for the groups; taken from `model.depth` when it is stated, else 1.
    The objective is cross entropy on shifted tokens, or for other inputs the mean square distance to a fixed random target.
    The given model is left as it was: copies are trained.

    Raises `UserError`: fewer than two loops, a model that takes no loops, no batch where none can be made up, or a model in
    which nothing is executed more than once.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> check_parameterization(LoopedTransformer(ModelConfig(width=32)), loops=(2, 4, 8), steps=2).passed
    True
    """
    numbers = tuple(sorted({Depth(n, 1).loops for n in loops}))
    if len(numbers) < 2:
        raise UserError(f"a slope over loops needs at least two different numbers of loops, got {list(loops)}")
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    chosen = get_rule(rule)
    call, make = _at(model)
    given = batch if batch is not None else _made_up(make(numbers[0]))
    measured = [_measure(make(n), call, n, given, chosen, steps, lr, layers) for n in numbers]
    stream, first, later = zip(*measured, strict=True)
    return ParameterizationCheck(chosen.name, numbers, steps, stream, first, later, tolerance)


def loglog_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of log y over log x; infinite when a value is not finite or not positive."""
    if not all(math.isfinite(value) and value > 0 for value in y):
        return math.inf
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread = sum((v - mean_a) ** 2 for v in a)
    return sum((v - mean_a) * (w - mean_b) for v, w in zip(a, b, strict=True)) / spread


def _at(model: nn.Module | Factory) -> tuple[Callable[..., Any], Factory]:
    """How to call the model at N loops, and how to get a fresh one."""
    if isinstance(model, nn.Module):
        parameters = inspect.signature(model.forward).parameters
        if "loops" not in parameters:
            raise UserError(
                f"{type(model).__name__}.forward takes no loops= argument: pass a factory, loops -> model, instead"
            )
        return (lambda module, x, n: module(x, loops=n)), lambda n: copy.deepcopy(model)
    return (lambda module, x, n: module(x)), model


def _made_up(model: nn.Module) -> Tensor:
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            generator = torch.Generator().manual_seed(0)
            return torch.randint(0, module.num_embeddings, (4, 32), generator=generator)
    raise UserError("the model has no nn.Embedding to make up tokens for: pass batch=, a tensor that it takes")


def _measure(
    model: nn.Module,
    call: Callable[..., Any],
    n: int,
    batch: Tensor,
    rule: Rule,
    steps: int,
    lr: float,
    layers: int | None,
) -> tuple[float, float, float]:
    """(stream RMS, change after 1 step, change after k steps) at N loops."""
    model.eval()
    with watch(model) as visits, torch.no_grad():
        before = _output(call(model, batch, n))
    stream = _stream(visits, n)
    optimizer = _optimizer(model, n, rule, lr, layers)
    target = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    first = later = math.nan
    for step in range(steps):
        optimizer.zero_grad()
        _loss(_output(call(model, batch, n)), batch, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in (0, steps - 1):
            with torch.no_grad():
                later = float((_output(call(model, batch, n)) - before).float().square().mean().sqrt())
            first = later if step == 0 else first
    return stream, first, later


def _output(result: Any) -> Tensor:
    found = first_tensor(result)
    if found is None:
        raise UserError(
            f"the model returned {type(result).__name__} without a floating-point tensor: return one to compare"
        )
    return found


def _stream(visits: Visits, n: int) -> float:
    """RMS of the stream after the last visit: the last output of the outermost module that carries the loop's stream.

    The stream's modules are those whose output has the shape of their input and that ran N times (or a multiple).
    """
    counts = visits.counts()
    looped = [name for name, count in counts.items() if count % n == 0 and count >= n]
    carriers = [r for r in visits.readings if r.module in looped and r.update is not None]
    if not carriers:
        raise UserError(f"no module runs {n} times at loops = {n}: is loops used by the model?")
    shallowest = min(r.module.count(".") for r in carriers if r.module or n == 1)
    return [r for r in carriers if r.module.count(".") == shallowest][-1].rms_out


def _optimizer(model: nn.Module, n: int, rule: Rule, lr: float, layers: int | None) -> torch.optim.Optimizer:
    if callable(getattr(model, "roles", None)) and hasattr(model, "depth"):
        return build_optimizer(model, lr=lr, rule=rule)
    roles: dict[str, Role] = infer_roles({name: p.ndim for name, p in model.named_parameters()})
    return build_optimizer(model, lr=lr, rule=rule, depth=Depth(n, layers or 1), roles=roles)


def _loss(output: Tensor, batch: Tensor, target: Tensor) -> Tensor:
    if batch.is_floating_point() or output.ndim != 3:
        return (output - target).square().mean()
    return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
