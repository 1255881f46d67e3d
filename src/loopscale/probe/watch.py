"""`watch(model)`: readings by module *and visit*, from hooks that are always removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.probe.noting import Given, noting
from loopscale.probe.tape import tensors_in
from loopscale.probe.untouched import eager, unwrap


@dataclass(frozen=True)
class Reading:
    """One call of one module.

    `norm`: RMS of its output; `update`: RMS of output - input, where the shapes agree; `ratio`: update / RMS of the
    input. `visit` counts the calls of this module in one forward pass, from 1.
    """

    module: str
    visit: int
    norm: float
    update: float | None
    ratio: float | None
    forward: int = 1


@dataclass
class Watch:
    """What was collected; read it inside or after the `with`."""

    readings: list[Reading] = field(default_factory=list)

    def of(self, module: str) -> list[Reading]:
        """Return the readings of one module, visit by visit; raises `UserError` when it was never called."""
        found = [reading for reading in self.readings if reading.module == module]
        if not found:
            seen = ", ".join(sorted({r.module for r in self.readings})[:8])
            raise UserError(f"module {module!r} was not called while watched: called were {seen}")
        return found

    def visits(self) -> dict[str, int]:
        """Return the most calls of each module in one forward pass."""
        most: dict[str, int] = {}
        for reading in self.readings:
            most[reading.module] = max(most.get(reading.module, 0), reading.visit)
        return most


@contextmanager
def watch(model: nn.Module) -> Iterator[Watch]:
    """Collect a `Reading` for every call of every module inside the `with`.

    A compiled model is unwrapped, since hooks on it would never fire: call the module you passed to `torch.compile`, or
    the compiled one, in which case code runs eagerly while watched. A deepcopy made meanwhile is not watched. The model
    is neither put into evaluation mode nor changed in any other way.

    Raises `UserError` when no module was called inside.

    >>> block = nn.Linear(4, 4)
    >>> with watch(nn.Sequential(block, block)) as seen:
    ...     _ = nn.Sequential(block, block)(torch.ones(1, 4))
    >>> [reading.visit for reading in seen.readings]
    [1, 2]
    """
    inner = unwrap(model)
    seen, counts, forwards = Watch(), Counter[str](), 0

    def enter(name: str) -> None:
        nonlocal forwards
        if not name:
            counts.clear()
            forwards += 1

    def leave(name: str, module: nn.Module, given: Given, out: Any) -> None:
        counts[name] += 1
        seen.readings.append(_read(name or type(module).__name__, counts[name], [*tensors_in(given)], out, forwards))

    with eager(), noting(inner, leave, before=enter):
        yield seen
    if not seen.readings:
        raise UserError("nothing was collected: call the watched model itself inside the with block")


@torch.no_grad()
def _read(name: str, visit: int, given: list[Tensor], out: Any, forward: int) -> Reading:
    made = next((t for t in tensors_in(out) if t.is_floating_point()), None)
    if made is None:
        return Reading(name, visit, float("nan"), None, None, forward)
    before = next((t for t in given if t.shape == made.shape and t.is_floating_point()), None)
    norm = _rms(made)
    if before is None:
        return Reading(name, visit, norm, None, None, forward)
    update, size = _rms(made.float() - before.float()), _rms(before)
    return Reading(name, visit, norm, update, update / size if size else None, forward)


def _rms(value: Tensor) -> float:
    return float(value.detach().float().square().mean().sqrt()) if value.numel() else 0.0
