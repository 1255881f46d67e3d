"""Watch a looped model: one reading per module *and visit*, where ordinary hooks average the visits or keep the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from loopscale.errors import UserError


@dataclass(frozen=True)
class Reading:
    """One execution of one module. RMS are over all elements, in fp32; `visit` counts from 0.

    `update` is the RMS of output - input where both are tensors of one shape, else None.
    """

    module: str
    visit: int
    rms_in: float | None
    rms_out: float
    update: float | None


@dataclass
class Visits:
    """The readings of one forward pass, in order of execution."""

    readings: list[Reading] = field(default_factory=list)

    def of(self, module: str) -> list[Reading]:
        """The readings of one module, visit by visit."""
        return [reading for reading in self.readings if reading.module == module]

    def counts(self) -> dict[str, int]:
        """How often each module was executed."""
        found: dict[str, int] = {}
        for reading in self.readings:
            found[reading.module] = found.get(reading.module, 0) + 1
        return found


@contextmanager
def watch(model: nn.Module) -> Iterator[Visits]:
    """Collect readings of every module executed inside the `with` block; the hooks are removed whatever happens.

    A model compiled as a whole is watched through its original. Raises `UserError` at the end of the block when nothing
    was collected: a diagnostic that saw nothing must not look like a clean bill of health.

    >>> import torch
    >>> layer = nn.Linear(4, 4)
    >>> with watch(layer) as visits:
    ...     _ = layer(layer(torch.randn(2, 4)))
    >>> visits.counts()
    {'': 2}
    """
    original = getattr(model, "_orig_mod", model)
    visits, counts = Visits(), dict[str, int]()
    handles = []
    try:
        for name, module in original.named_modules():
            handles.append(module.register_forward_hook(_reader(name, visits, counts), with_kwargs=True))
        yield visits
    finally:
        for handle in handles:
            handle.remove()
    if not visits.readings:
        raise UserError(
            "no module of the model was executed while it was watched: call the model inside the `with` block, and pass "
            "the model itself, not a compiled copy of its parts"
        )


def _reader(name: str, visits: Visits, counts: dict[str, int]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        after = first_tensor(output)
        if after is None:
            return
        before = first_tensor(args) if args else first_tensor(kwargs)
        visit = counts.get(name, 0)
        counts[name] = visit + 1
        same = before is not None and before.shape == after.shape
        visits.readings.append(
            Reading(
                name,
                visit,
                None if before is None else rms(before),
                rms(after),
                rms(after.detach() - before.detach()) if same and before is not None else None,
            )
        )

    return hook


def first_tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor in a tensor, tuple, list or dict (model outputs of transformers included)."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def rms(x: Tensor) -> float:
    """Root mean square over all elements, in fp32."""
    return float(x.detach().float().square().mean().sqrt())
