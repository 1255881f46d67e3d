"""`Monitor(model).step()`: the stream over visits while a model trains, sampled so that it costs next to nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopscale.errors import UserError
from loopscale.probe.watch import Watch, watch


@dataclass(frozen=True)
class Sample:
    """One sampled step: for each module visited more than once, the RMS of its output at every visit."""

    step: int
    norms: dict[str, tuple[float, ...]]

    @property
    def gain(self) -> float | None:
        """The largest ratio of a module's last visit to its first; None when nothing was looped."""
        return max((n[-1] / n[0] for n in self.norms.values() if n[0]), default=None)


class Monitor:
    """Call `step()` once a training step, after the forward pass; every `every`-th step is watched.

    Hooks are in place during watched steps only. `close()` removes them, as leaving `with Monitor(model)` does.

    Raises `UserError` for `every` < 1, and at `step` when a watched step never called the model.

    >>> monitor = Monitor(nn.Linear(2, 2), every=10)
    >>> monitor.close()
    """

    def __init__(self, model: nn.Module, every: int = 50) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1, got {every}: 50 watches one step in 50")
        self.model, self.every = model, every
        self.samples: list[Sample] = []
        self._step = 0
        self._open: AbstractContextManager[Watch] | None = None
        self._seen: Watch | None = None
        self._begin()

    def step(self) -> Sample | None:
        """Count a step; give the sample when this one was watched."""
        sample = None
        if self._open is not None and self._seen is not None:
            seen = self._seen
            self._end()
            sample = Sample(self._step, _norms(seen))
            self.samples.append(sample)
        self._step += 1
        if self._step % self.every == 0:
            self._begin()
        return sample

    def close(self) -> None:
        """Remove the hooks; later steps only count."""
        if self._open is not None:
            opened, self._open = self._open, None
            try:
                opened.__exit__(None, None, None)
            except UserError:
                pass
        self.every = 2**62

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _begin(self) -> None:
        self._open = watch(self.model)
        self._seen = self._open.__enter__()

    def _end(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.__exit__(None, None, None)


def _norms(seen: Watch) -> dict[str, tuple[float, ...]]:
    first = min((r.forward for r in seen.readings), default=1)
    norms: dict[str, list[float]] = {}
    for reading in seen.readings:
        if reading.forward == first:
            norms.setdefault(reading.module, []).append(reading.norm)
    return {name: tuple(values) for name, values in norms.items() if len(values) > 1}
