"""What to do after a verdict of a study: one line with the command that does it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loopscale.parameterization import get_rule
from loopscale.records import Estimate
from loopscale.study import UserCode, command_of
from loopscale.transfer.estimate import WINDOW, Losses, Optimum, best_rate, student95
from loopscale.transfer.verdict import REGRET_TOLERANCE, SLOPE_TOLERANCE, Verdict

MOST_SEEDS = 32  # more than these are not advised: longer training or a larger N decides sooner


@dataclass(frozen=True)
class Commands:
    """The command lines that a verdict may advise, for the study in `folder`; `sets`: what makes its config of a demo's."""

    folder: Path = Path("FOLDER")
    loops: tuple[int, ...] = (1, 4)
    rules: tuple[str, ...] = ("looped",)
    layers: int = 1
    user_code: UserCode | None = None
    sets: tuple[str, ...] = ()

    def again(self, *options: object) -> str:
        """Go on with the folder."""
        return command_of("transfer", self.user_code, "--out", self.folder, *options)

    def wider(self) -> str:
        """Go on to a larger N."""
        return self.again("--loops", ",".join(map(str, sorted({*self.loops, 2 * max(self.loops)}))))

    def other_rule(self, rule: str) -> str:
        """Say what to use in the place of a rule that drifts."""
        last = max(self.loops)
        if get_rule(rule).claims_transfer and (self.user_code is None or self.user_code.kind == "model"):
            where = self.folder.with_name(f"{self.folder.name}-exponent")
            loops = ",".join(map(str, sorted(self.loops)))
            measured = command_of("exponent", self.user_code, "--loops", loops, *self.sets, "--out", where)
            return f"Measure how eps has to fall in this model: {measured}"
        if "looped" in self.rules:
            numbers = command_of("scale", None, "--rule", "looped", "--loops", last, "--layers", self.layers)
            return f"Tune its rate at the N that you train at, or use looped, whose numbers are: {numbers}"
        return f"Compare it with looped: {self.again('--rules', ','.join((*self.rules, 'looped')))}"


def next_step(
    rule: str, verdict: Verdict, slope: Estimate | None, regret: Estimate | None, rates: Sequence[float], do: Commands
) -> str:
    """Say in one line what to do now, as a command; empty where nothing is left. `rates`: what `missing_rates` gives."""
    if slope is None:
        listed = ",".join(map(_power, rates))
        return f"Train these rates in the same folder: {do.again('--lrs', listed)}" if rates else _more_seeds(do, 3)
    if verdict == "drifts":
        return do.other_rule(rule)
    if verdict == "transfers":
        return ""
    seeds = len(slope.by_seed)
    if slope.interval is None:
        return _more_seeds(do, 3)
    moves = abs(slope.value) > SLOPE_TOLERANCE
    room = abs(slope.value) if moves else SLOPE_TOLERANCE - abs(slope.value)
    narrower = slope.error / max(1e-9, room), _narrower(regret)
    beyond = moves, regret is not None and regret.value > REGRET_TOLERANCE
    decisive = [ratio for ratio, out in zip(narrower, beyond, strict=True) if out]
    more = needed_seeds(seeds, min(decisive) if decisive else max(narrower))
    if more is None:
        longer = "more seeds alone would not decide, nor would this if the curves are flat: then train longer"
        return f"Train a larger N, in the same folder ({longer}): {do.wider()}"
    return _more_seeds(do, more)


def _more_seeds(do: Commands, seeds: int) -> str:
    return f"Repeat it with more seeds, the trials that ran are kept: {do.again('--seeds', seeds)}"


def _narrower(regret: Estimate | None) -> float:
    return 0.0 if regret is None else regret.error / max(1e-9, abs(REGRET_TOLERANCE - regret.value))


def needed_seeds(seeds: int, ratio: float) -> int | None:
    """Return how many seeds make an interval `ratio` times narrower; None for more than `MOST_SEEDS`.

    >>> needed_seeds(3, 2.0)
    5
    """
    width = student95(seeds - 1) / math.sqrt(seeds)
    counts = range(seeds + 1, MOST_SEEDS + 1)
    return next((n for n in counts if student95(n - 1) / math.sqrt(n) <= width / ratio), None)


def missing_rates(losses: Mapping[int, Losses], optima: Mapping[int, Optimum]) -> list[float]:
    """Return the rates of one grid that brackets every N: those near the optima, and more where one lies at an end."""
    found: set[float] = set()
    for loops in sorted(losses):
        tried = sorted({rate for rate, _ in losses[loops]})
        trained = sorted({rate for (rate, _), loss in losses[loops].items() if math.isfinite(loss)})
        optimum = optima.get(loops)
        at = best_rate(losses[loops])
        found.update(rate for rate in trained if abs(math.log2(rate / at)) <= WINDOW)
        if optimum is not None and not optimum.edge:
            continue
        if not trained or at == min(trained):
            found.update(min(tried) * 2.0 ** (-k / 2) for k in (1, 2, 3))
        elif at == max(tried):
            found.update(at * 2.0 ** (k / 2) for k in (1, 2, 3))
        else:
            found.update(at * 2.0 ** (k / 4) for k in (-2, -1, 1, 2))
    by_place = {round(64 * math.log2(rate)): rate for rate in sorted(found)}
    return list(by_place.values()) if len(by_place) > 2 else []


def _power(rate: float) -> str:
    """Write a rate so that it reads back as the same number: those of the grid as powers of two."""
    at = math.log2(rate)
    return f"2^{at:g}" if 2.0 ** float(f"{at:g}") == rate else repr(rate)
