"""Put a factor into the weights with which a branch ends, whatever they are: a linear layer, experts, a norm's gain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loopscale.adapt.present_rules import OUTPUTS
from loopscale.adapt.verify import stream_of
from loopscale.errors import UserError
from loopscale.probe.batch import call_model
from loopscale.probe.noting import Given, noting

EXPERTS = (*OUTPUTS, "output_linear", "w2_weight", "down_proj_weight")


class Kept(NamedTuple):
    """A weight as it was before `factor` went into it: p became (p + shift) * factor - shift."""

    value: Tensor
    factor: float
    shift: float = 0.0

    def now(self) -> Tensor:
        """Return the weight with the factor in it."""
        return ((self.value + self.shift) * self.factor - self.shift).to(self.value.dtype)


def absorb(model: nn.Module, branches: Sequence[str], factor: float, batch: Any, kept: dict[str, Kept]) -> None:
    """Multiply the end of each branch by `factor`; `kept` gets the weights as they were.

    Every way of doing so is tried out on the branch alone, on the arguments it gets in a pass over `batch`.

    Raises `UserError` naming a branch for which none gives factor times its output.
    """
    done: set[int] = set()
    calls = _arguments(model, branches, batch)
    # All before any: a weight shared by two branches is scaled once, and then both have what they should.
    wants = {name: _run(model.get_submodule(name), *call) * factor for name, call in calls.items()}
    for name, (args, kwargs) in calls.items():
        module, wanted = model.get_submodule(name), wants[name]
        if done and _close(_run(module, args, kwargs), wanted) and factor != 1:
            continue
        for ends, shift in _candidates(module):
            fresh = {f"{name}.{end}": p for end, p in ends.items() if id(p) not in done}
            saved = {full: Kept(p.detach().clone(), factor, shift) for full, p in fresh.items()}
            kept.update(saved)  # before the trial: whoever catches an error has what to put back
            with torch.no_grad():
                for full, parameter in fresh.items():
                    parameter.copy_(saved[full].now())
            if fresh and _close(_run(module, args, kwargs), wanted):
                done |= {id(p) for p in fresh.values()}
                break
            with torch.no_grad():
                for full, parameter in fresh.items():
                    parameter.copy_(kept.pop(full).value)
        else:
            raise UserError(
                f"the branch {name!r} ends in no weight of its own that could hold the scale: it cannot be folded"
            )


def check_same(folded: Tensor, reference: Tensor) -> str:
    """Say how equal the outputs are. Raises `UserError` when they are not, up to rounding."""
    if torch.equal(folded, reference):
        return "the same output bit by bit"
    gap = float((folded.double() - reference.double()).norm() / reference.double().norm().clamp_min(1e-30))
    if not gap < 1e4 * torch.finfo(reference.dtype).eps:
        raise UserError(
            f"folding would change the output {tuple(reference.shape)} by {gap:.2g} of its size: not folded"
        )
    return f"the same output up to {gap:.1g} of its size"


def _candidates(module: nn.Module) -> Iterator[tuple[dict[str, nn.Parameter], float]]:
    """Yield sets of parameters that may end the branch, and what to add before scaling (a gain stored as 1 + w)."""
    own = _own(module)
    if own:
        yield own, 0.0
        if "weight" in own and own["weight"].ndim == 1:
            yield {"weight": own["weight"]}, 1.0
    named = {name: p for name, p in module.named_parameters() if _ends(name)}
    depths = sorted({name.count(".") for name in named})
    for depth in depths:  # the outermost first: an attention's own projection before one inside it
        yield {name: p for name, p in named.items() if name.count(".") <= depth}, 0.0
    for name, part in reversed([*module.named_modules()]):
        if name and _own(part):
            yield {f"{name}.{key}": p for key, p in _own(part).items()}, 0.0


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the module itself; those of which its weight is made (`parametrizations`) are its own."""
    return {k: p for k, p in module.named_parameters() if "." not in k or k.startswith("parametrizations.")}


def _ends(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in EXPERTS or (len(parts) > 1 and parts[-2] in EXPERTS and parts[-1] in ("weight", "bias"))


def take_out(model: nn.Module, kept: Mapping[str, Kept]) -> None:
    """Take the factors out of the weights: bit by bit where nothing changed them since, by division where something did.

    Raises `UserError`, the model untouched, when a weight is gone or was changed while its factor is 0.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    back: list[tuple[Tensor, Tensor]] = []
    for name, one in kept.items():
        now = parameters.get(name)
        if now is None or now.shape != one.value.shape:
            raise UserError(f"{name!r}, which holds a folded scale, was replaced after fold: load the unfolded weights")
        if torch.equal(now, one.now().to(now)):
            back.append((now, one.value))
        elif one.factor == 0:
            raise UserError(f"{name!r} was changed after a fold at scale 0, by which nothing can be divided")
        else:
            back.append((now, (now.detach() + one.shift) / one.factor - one.shift))
    with torch.no_grad():
        for parameter, value in back:
            parameter.copy_(value)


def _run(module: nn.Module, args: Any, kwargs: Any) -> Tensor:
    with torch.no_grad():
        out = stream_of(module(*args, **kwargs))
    assert out is not None
    return out


def _close(ours: Tensor, wanted: Tensor) -> bool:
    gap = float((ours.double() - wanted.double()).norm())
    return gap <= 1e3 * torch.finfo(wanted.dtype).eps * float(wanted.double().norm())


def _arguments(model: nn.Module, branches: Sequence[str], batch: Any) -> dict[str, Given]:
    """Return what each branch is called with, the first time, in one pass over the batch."""
    calls: dict[str, Given] = {}

    def note(name: str, module: nn.Module, given: Given, out: Any) -> None:
        calls.setdefault(name, given)

    with torch.no_grad(), noting(model, note, branches):
        call_model(model, batch)
    return calls
