"""The optimisers of K models as one: every parameter is [K, ...], every rate, decay and epsilon a column [K].

The numbers come from the models' own optimisers (`build_optimizer`), so roles and rules act as always. The updates are
those of torch with a column in the place of each number, in the same order: on a CPU, bitwise the same weights.

Shapes: K models, A rows, B columns of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loopscale.optim.build import MuonAdamW

Group = dict[str, Any]
Column = Callable[[str, Callable[[Group, float], float]], Tensor]


@dataclass
class _Slot:
    """One stacked parameter: which update it gets, the group that each model's optimiser has it in, and its state."""

    parameter: Tensor
    update: Callable[[_Slot, Tensor, Column], None]
    groups: list[Group]
    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def zeros(self, name: str) -> Tensor:
        """Return the state of that name; zeros at first."""
        if name not in self.state:
            self.state[name] = torch.zeros_like(self.parameter)
        return self.state[name]


class StackedOptimizer:
    """Steps K models at once; `parameters` maps each stacked parameter [K, ...] to the K parameters it stands for.

    All models must have the same optimiser with the same betas or momentum; rates, decays and epsilons may differ.

    Raises `TypeError` for an optimiser that `build_optimizer` does not make.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[Tensor, Sequence[Tensor]]
    ) -> None:
        tables = [_groups(optimizer) for optimizer in optimizers]
        self._slots = []
        for stacked, members in parameters.items():
            groups = [table[id(p)][0] for table, p in zip(tables, members, strict=True)]
            self._slots.append(_Slot(stacked, tables[0][id(members[0])][1], groups))

    @torch.no_grad()
    def step(self, multipliers: Sequence[float]) -> None:
        """Take one step of every model, at its own multiplier of its initial rates; parameters without gradient stay."""
        columns: dict[tuple[int, str, torch.dtype], Tensor] = {}
        for slot in self._slots:
            if slot.parameter.grad is not None:
                slot.step += 1
                slot.update(slot, slot.parameter.grad, partial(_column, slot, multipliers, columns))

    def keep(self, index: Tensor, parameters: Sequence[Tensor]) -> None:
        """Go on with the models at `index` alone, whose stacked parameters are `parameters`, in the old order."""
        chosen = index.tolist()
        for slot, parameter in zip(self._slots, parameters, strict=True):
            slot.parameter = parameter
            slot.groups = [slot.groups[k] for k in chosen]
            slot.state = {name: value[index] for name, value in slot.state.items()}


def _column(
    slot: _Slot,
    multipliers: Sequence[float],
    columns: dict[tuple[int, str, torch.dtype], Tensor],
    name: str,
    number: Callable[[Group, float], float],
) -> Tensor:
    """Return `number(group, rate)` of every model as [K, 1, ...]; made once a step for a group, not once a parameter."""
    key = (id(slot.groups[0]), name, slot.parameter.dtype)
    if key not in columns:
        pairs = zip(slot.groups, multipliers, strict=True)
        values = [number(group, group["initial_lr"] * multiplier) for group, multiplier in pairs]
        columns[key] = torch.tensor(values, dtype=slot.parameter.dtype, device=slot.parameter.device)
    return columns[key].view(-1, *[1] * (slot.parameter.ndim - 1))


def _decay(group: Group, rate: float) -> float:
    return float(1 - rate * group["weight_decay"])


def _adamw(slot: _Slot, grad: Tensor, column: Column) -> None:
    beta1, beta2 = slot.groups[0]["betas"]
    average, square = slot.zeros("average"), slot.zeros("square")
    slot.parameter.mul_(column("decay", _decay))
    average.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    correction1, correction2 = 1 - beta1**slot.step, 1 - beta2**slot.step
    root = (square.sqrt() / correction2**0.5).add_(column("eps", lambda group, rate: group["eps"]))
    slot.parameter.addcdiv_(average * column(f"rate {slot.step}", lambda group, rate: -rate / correction1), root)


def _muon(slot: _Slot, grad: Tensor, column: Column) -> None:
    group, (A, B) = slot.groups[0], grad.shape[1:]
    buffer = slot.zeros("buffer")
    buffer.lerp_(grad, 1 - group["momentum"])
    update = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
    direction = _orthogonalized(update, group).to(grad.dtype)
    taller = math.sqrt(max(1, A / B))  # adjust "original": lr is in units of spectral norm
    slot.parameter.mul_(column("decay", _decay))
    slot.parameter.addcmul_(direction, column(f"rate {taller}", lambda group, rate: -rate * taller))


def _sgd(slot: _Slot, grad: Tensor, column: Column) -> None:
    momentum = slot.groups[0]["momentum"]
    grad = torch.addcmul(grad, slot.parameter, column("decay", lambda group, rate: group["weight_decay"]))
    if momentum:
        known = slot.state.get("buffer")
        grad = grad.clone() if known is None else known.mul_(momentum).add_(grad)
        slot.state["buffer"] = grad
    slot.parameter.addcmul_(grad, column("rate", lambda group, rate: -rate))


def _orthogonalized(update_KAB: Tensor, group: Group) -> Tensor:
    one = partial(newton_schulz, group["ns_coefficients"], group["ns_steps"], group["eps"])
    if update_KAB.is_cuda:
        return torch.vmap(one)(update_KAB)
    # On CPUs a batched bf16 product rounds otherwise than a single one: a model would not get the weights it gets alone.
    return torch.stack([one(update_AB) for update_AB in update_KAB])


def newton_schulz(coefficients: tuple[float, float, float], steps: int, eps: float, update_AB: Tensor) -> Tensor:
    """Return the update with its singular values moved towards 1: X <- a X + (b G + c G^2) X, G = X X^T, in bf16.

    Source: Jordan et al., Muon (2024); the order of operations is that of `torch.optim.Muon`.
    """
    a, b, c = coefficients
    tall = update_AB.shape[0] > update_AB.shape[1]
    x = update_AB.bfloat16()
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, tuple[Group, Callable[[_Slot, Tensor, Column], None]]]:
    """Return the group and the update of each parameter, by identity."""
    if isinstance(optimizer, MuonAdamW):
        rest = {} if optimizer.adamw is None else _groups(optimizer.adamw)
        return {**_table(optimizer.muon, _muon), **rest}
    for kind, update in ((torch.optim.AdamW, _adamw), (torch.optim.SGD, _sgd)):
        if isinstance(optimizer, kind):
            return _table(optimizer, update)
    raise TypeError(f"no stacked form of {type(optimizer).__name__}")


def _table(
    optimizer: torch.optim.Optimizer, update: Callable[[_Slot, Tensor, Column], None]
) -> dict[int, tuple[Group, Callable[[_Slot, Tensor, Column], None]]]:
    return {id(p): (group, update) for group in optimizer.param_groups for p in group["params"]}
