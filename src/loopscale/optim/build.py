"""An optimiser from the groups: AdamW, SGD, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError, nearest
from loopscale.optim.groups import check_partition, param_groups
from loopscale.parameterization import OPTIMIZERS, Role

# Factors of adapters, by the words that PEFT, torchtune and models with adapters per visit use.
_LOW_RANK = re.compile(r"(^|[._])(lora|dora|adapters?|low_?rank)([._]|$|\d)", re.IGNORECASE)


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
        super().__init__([{"params": group["params"]} for group in (*matrices, *rest)], {})
        self.param_groups = [*self.muon.param_groups, *(self.adamw.param_groups if self.adamw else [])]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()  # type: ignore[no-untyped-call]
        if self.adamw is not None:
            self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both, in torch's layout: parameters numbered across Muon's groups, then AdamW's."""
        self.state.clear()
        self.state.update({**self.muon.state, **(self.adamw.state if self.adamw else {})})
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Return the reverse of `state_dict`."""
        super().load_state_dict(state_dict)
        count = len(self.muon.param_groups)
        self.muon.param_groups, muon_parameters = self.param_groups[:count], _members(self.param_groups[:count])
        self.muon.state.clear()
        self.muon.state.update({p: s for p, s in self.state.items() if id(p) in muon_parameters})
        if self.adamw is not None:
            self.adamw.param_groups = self.param_groups[count:]
            self.adamw.state.clear()
            self.adamw.state.update({p: s for p, s in self.state.items() if id(p) not in muon_parameters})


def _members(groups: list[dict[str, Any]]) -> set[int]:
    return {id(p) for group in groups for p in group["params"]}


def build_optimizer(
    model: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    momentum: float = 0.95,
    **parameterization: Any,
) -> torch.optim.Optimizer:
    """Build an optimiser over the groups of `param_groups` (which takes `**parameterization`).

    Under "muon" the factors of low-rank adapters (`lora_A`, `adapter`: by name) stay with AdamW: an orthogonal update of a
    factor is none of their product.

    Raises `UserError` for an unknown optimiser, and whatever `param_groups` raises.

    >>> from loopscale.nn import LoopedTransformer, ModelConfig
    >>> build_optimizer(LoopedTransformer(ModelConfig()), "muon", lr=0.02).__class__.__name__
    'MuonAdamW'
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}: {nearest(str(name), OPTIMIZERS)}")
    groups = param_groups(model, lr=lr, weight_decay=weight_decay, eps=eps, optimizer=name, **parameterization)
    check_partition(model, groups)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas)
    if name == "sgd":
        return torch.optim.SGD([_without(group, "eps") for group in groups], momentum=momentum)
    factors = {id(p) for key, p in model.named_parameters() if _LOW_RANK.search(key)}
    return _muon(groups, factors, betas, momentum)


def _muon(groups: list[dict[str, Any]], factors: set[int], betas: tuple[float, float], momentum: float) -> MuonAdamW:
    matrices, rest = [], []
    for group in groups:
        hidden = group["name"] in (Role.HIDDEN.value, Role.VISIT.value)
        square: list[Tensor] = [p for p in group["params"] if hidden and p.ndim == 2 and id(p) not in factors]
        mine = {id(p) for p in square}
        others = [p for p in group["params"] if id(p) not in mine]
        if square:
            matrices.append({**group, "params": square})
        if others:
            rest.append({**group, "params": others})
    if not matrices:
        raise UserError("Muon needs hidden matrices and the model has none: use optimizer 'adamw'")
    return MuonAdamW(matrices, rest, momentum=momentum, betas=betas)


def _without(group: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != key}
