"""An optimiser from the groups (AdamW, SGD, or Muon for matrices with AdamW for the rest), and schedules of its rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from numbers import Integral
from typing import Any, Unpack, cast

import torch
from torch import nn

from loopscale.errors import UserError, expect, nearest, settings
from loopscale.optim.groups import Stated, param_groups, update_of
from loopscale.parameterization import OPTIMIZERS, Role


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the hidden matrices and AdamW on everything else, behind one optimiser.

    `torch.optim.Muon` takes 2-D parameters only. Its lr is in units of spectral norm per update (adjust "original"), so
    it needs no width factor.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], rest: list[dict[str, Any]], *, momentum: float, betas: tuple[float, float]
    ) -> None:
        # Muon reads `eps` as the normaliser of its iteration, not as Adam's epsilon.
        self.muon = torch.optim.Muon([{**group, "eps": 1e-7} for group in matrices], momentum=momentum)
        self.adamw = torch.optim.AdamW(rest, betas=betas) if rest else None
        self._parts: list[torch.optim.Optimizer] = [self.muon, *([self.adamw] if self.adamw else [])]
        super().__init__([{"params": group["params"]} for group in (*matrices, *rest)], {})
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both, in torch's layout: parameters numbered across Muon's groups, then AdamW's."""
        self.state.clear()
        for part in self._parts:
            self.state.update(part.state)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        super().load_state_dict(state_dict)
        left = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = list(islice(left, len(part.param_groups)))
            mine = {p for group in part.param_groups for p in group["params"]}
            part.state.clear()
            part.state.update({p: state for p, state in self.state.items() if p in mine})


class Options(Stated, total=False):
    """What `param_groups` takes, and `betas` of AdamW, `momentum` of Muon and SGD."""

    betas: tuple[float, float]
    momentum: float


TAKES = {"adamw": {"betas"}, "muon": {"betas", "momentum"}, "sgd": {"momentum"}}  # of `Options`


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    **options: Unpack[Options],
) -> torch.optim.Optimizer:
    """Build an optimiser over the groups of `param_groups`, with `betas` (0.9, 0.95) and `momentum` 0.95.

    Under "muon" the factors of low-rank adapters (`lora_A`, `adapter`: by name) stay with AdamW.

    Raises `UserError` for an unknown optimiser, and whatever `param_groups` raises.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> build_optimizer(LoopedTransformer(ModelConfig()), "muon", lr=0.02).__class__.__name__
    'MuonAdamW'
    """
    settings(Options, options, build_optimizer)
    if name not in OPTIMIZERS:
        shown = name if isinstance(name, str) else getattr(name, "__name__", type(name).__name__)
        raise UserError(f"unknown optimizer {shown!r}: {nearest(shown, OPTIMIZERS)}")
    for strange in {"betas", "momentum"} & options.keys() - TAKES[name]:
        raise UserError(f"{name} has no {strange}: leave it out, or name an optimizer that has")
    betas, momentum = options.pop("betas", (0.9, 0.95)), options.pop("momentum", 0.95)
    expect(betas, isinstance(betas, (tuple, list)) and len(betas) == 2, "two betas", "such as betas=(0.9, 0.95)")
    groups = param_groups(model, lr=lr, weight_decay=weight_decay, eps=eps, optimizer=name, **cast(Stated, options))
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas)
    if name == "sgd":
        for group in groups:
            del group["eps"]
        return torch.optim.SGD(groups, momentum=momentum)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    matrices = [group for group in groups if _is_muons(group, names)]
    if not matrices:
        raise UserError("Muon needs hidden matrices and the model has none: use optimizer 'adamw'")
    rest = [group for group in groups if not _is_muons(group, names)]
    return MuonAdamW(matrices, rest, momentum=momentum, betas=betas)


def _is_muons(group: dict[str, Any], names: dict[int, str]) -> bool:
    first = group["params"][0]
    return update_of(Role(group["name"]), names[id(first)], first, "muon") == "muon"


_DECAY_SHARE = 0.2  # of the steps, in warm-up-stable-decay


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "wsd": lambda progress: min(1.0, (1.0 - progress) / _DECAY_SHARE),
}


def schedule(name: str, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """Return the multiplier in (0, 1] at 0-based `step`: linear warm-up over `warmup` steps, then the named decay.

    The multiplier is positive on every step of 0..steps-1: none is wasted at rate 0.

    Raises `UserError` for an unknown name, a number of steps that is not whole, steps < 1, or a warm-up as long as the
    run; the multiplier does for a step below 0.

    >>> rate = schedule("linear", steps=10, warmup=2)
    >>> [rate(0), rate(1), rate(2)]
    [0.5, 1.0, 1.0]
    """
    if name not in SCHEDULES:
        raise UserError(f"unknown schedule {name!r}: {nearest(str(name), SCHEDULES)}")
    for word, count in (("steps", steps), ("warmup", warmup)):
        if isinstance(count, bool) or not isinstance(count, Integral):
            share = f": for a share of the run give warmup={round(count * steps)}" if _is_share(count, steps) else ""
            raise UserError(f"{word} counts steps and is a whole number, got {word}={count!r}{share}")
    if steps < 1 or not 0 <= warmup < steps:
        raise UserError(f"a schedule needs steps >= 1 and 0 <= warmup < steps, got steps={steps}, warmup={warmup}")
    shape = SCHEDULES[name]

    def multiplier(step: int) -> float:
        if step < 0:
            raise UserError(f"steps of a schedule are counted from 0, got {step}")
        if step < warmup:
            return (step + 1) / warmup
        return shape(min(step - warmup, steps - warmup - 1) / (steps - warmup))

    return multiplier


def _is_share(count: object, steps: object) -> bool:
    return isinstance(count, float) and 0 < count < 1 and isinstance(steps, int)
