"""One way to run the model: a batch, a number of loops, factors on its additions; and the same at several N."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from loopscale.probe.passes import record
from loopscale.probe.tape import Site, Tape

if TYPE_CHECKING:
    from loopscale.diagnosis.knob import Knob

# A diagnosis makes a hundred passes and more: a longer one would take hours.
MOST_CALLS = 20_000
Factors = Mapping[Site, tuple[int, float]]


@dataclass(frozen=True)
class Setting:
    """The model, what it is called with, and the factor that each addition is run with (the user's code stays as it is).

    `frozen` names the parameters that are not trained; while a model is measured, all of them ask for gradients. `free`:
    what the model's code decides by values may go otherwise under factors than without.
    """

    model: nn.Module
    batch: Any
    extra: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    free: bool = False

    def run(self, **more: Any) -> tuple[Tape, Any]:
        """Record one pass; the arguments are those of `record`.

        Under factors what the model's code decides goes as it went on `like`, unless `free`: a factor would change the
        number of visits too.
        """
        if self.factors and not self.free and "like" in more:
            more = {"decide": more["like"].decided.get, **more}
        return record(self.model, self.batch, self.extra, factors=self.factors, most=MOST_CALLS, **more)

    def changed(self, factors: Factors) -> Setting:
        """Put further factors on additions; of one addition they multiply."""
        joined = dict(self.factors)
        for site, (operand, factor) in factors.items():
            joined[site] = (operand, factor * (joined[site][1] if site in joined else 1.0))
        return replace(self, factors=joined)

    def copied(self) -> Setting:
        """Give the same with a copy of the model; made while a knob is set, which may be an attribute of the model."""
        return replace(self, model=copy.deepcopy(self.model))


def frozen_in(model: nn.Module) -> frozenset[str]:
    """Name the parameters that are not trained, by all their names; none where the whole model is frozen."""
    flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    return frozenset(name for name, flag in flags.items() if not flag) if any(flags.values()) else frozenset()


def at_each(
    setting: Setting,
    knob: Knob | None,
    counts: Sequence[int],
    factors: Callable[[int], Factors] | None = None,
) -> Iterator[tuple[int, Setting]]:
    """Give the setting at each number of loops; without a knob, at the model's own alone.

    Whatever is measured over N is measured in this one loop.
    """
    if knob is None:
        for count in counts[:1]:
            yield count, setting
        return
    for count in sorted({knob.nearest(count) for count in counts}):
        with knob.at(count, setting) as there:
            yield count, there if factors is None else there.changed(factors(count))
