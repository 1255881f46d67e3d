"""What verification trains: the plan, and its neighbours an octave away, at sizes between proxy and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopscale.errors import UserError
from loopscale.train import trial_flops
from loopscale.tune.settings import Size, TuneSettings

Values = dict[str, float]
NEIGHBOURS = (-1.0, 0.0, 1.0)  # octaves
LAYER_RULES = ("looped", "looped-complete")


@dataclass(frozen=True)
class Probe:
    """One local sweep: along one value (`along`), at one size, under one rule."""

    axis: str
    size: Size
    rule: str
    along: str

    @property
    def label(self) -> str:
        """The size on the axis that moved, in words."""
        axes = {
            "loops": f"N = {self.size.loops}",
            "layers": f"L = {self.size.layers}",
            "width": f"d = {self.size.width}",
        }
        where = axes.get(self.axis, ", ".join(axes.values()))
        return f"{where} ({self.along}{', b = 1' if self.axis == 'layers' and self.rule == LAYER_RULES[1] else ''})"

    def values(self, center: Values) -> list[Values]:
        """Return the plan's values and their neighbours along one of them."""
        return [{**center, self.along: center[self.along] * 2.0**octaves} for octaves in NEIGHBOURS]


def probes(
    settings: TuneSettings, loops: Sequence[int], layers: Sequence[int], widths: Sequence[int], joint: bool
) -> list[Probe]:
    """Return the local sweeps asked for, those along the rate before those along the strength, cheap before dear.

    The proxy comes first: where its own optimum lies is the anchor of every trend. On the layer axis both exponents b are
    swept. `joint` adds the largest asked for on every axis at once.

    Raises `UserError` for no size, and for one outside proxy..target.
    """
    proxy, found = settings.proxy, []
    for axis, counts in (("loops", loops), ("layers", layers), ("width", widths)):
        for count in sorted(set(counts)):
            low, high = getattr(proxy, axis), getattr(settings.target, axis)
            if not low < count <= high:
                raise UserError(f"--{axis} {count} is not above the proxy's {low} and at most the target's {high}")
            rules = LAYER_RULES if axis == "layers" and settings.rule in LAYER_RULES else (settings.rule,)
            found += [(axis, proxy.replace(**{axis: count}), rule) for rule in rules]
    if joint:
        largest = {"loops": max(loops, default=proxy.loops), "layers": max(layers, default=proxy.layers)}
        found.append(("joint", proxy.replace(**largest, width=max(widths, default=proxy.width)), settings.rule))
    if not found:
        raise UserError("nothing to verify: name sizes between proxy and target, such as --loops 4,8")
    found.insert(0, ("proxy", proxy, settings.rule))
    along = [name for name in ("lr", "strength") if name in settings.tuned]
    return [Probe(axis, size, rule, name) for name in along for axis, size, rule in found]


def jobs_of(settings: TuneSettings, probe: Probe, center: Values, seeds: int) -> dict[str, tuple[Any, Any]]:
    """Return key -> (cell, job config) of the trials that a probe needs."""
    jobs = (
        settings.job(settings.config(probe.size, values, seed, probe.rule), values)
        for values in probe.values(center)
        for seed in range(seeds)
    )
    return {key: (cell, record) for key, cell, record in jobs}


def flops_of(settings: TuneSettings, probe: Probe, center: Values, vocab_size: int) -> float:
    """Return FLOPs of one trial of the probe."""
    config = settings.config(probe.size, center, 0, probe.rule)
    return trial_flops(config, vocab_size, settings.user_code is not None)
