"""The numbers behind every figure of a study page: pure Python, no drawing."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from loopscale.records import Journal, Optimum, Point, Result, RuleRecord, Trial, read_result


class Curve(NamedTuple):
    """Loss over learning rate at one number of loops, by ascending rate, and the fitted optimum if there is one."""

    loops: int
    points: tuple[Point, ...]
    optimum: Optimum | None


class Window(NamedTuple):
    """Axes shared by all panels: log2 of the rate, and the loss."""

    rate_low: float
    rate_high: float
    loss_low: float
    loss_high: float


class Stream(NamedTuple):
    """RMS of the residual stream after each visit (index 0: on entry), in the trial nearest to the optimum."""

    rule: str
    loops: int
    lr: float
    initial: tuple[float | None, ...]
    final: tuple[float | None, ...]


class StrengthCurve(NamedTuple):
    """Best loss over the swept rates at each strength, for one rule and one number of loops."""

    rule: str
    loops: int
    strengths: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class StudyInfo:
    """A study as read: the result and every trial."""

    result: Result
    trials: tuple[Trial, ...]

    @property
    def rules(self) -> dict[str, RuleRecord]:
        """The rules by name, in the order of the result."""
        return self.result.rules

    @property
    def loops(self) -> tuple[int, ...]:
        """The loops of the study, ascending."""
        return tuple(sorted(set(self.result.loops)))

    @cached_property
    def any_diverged(self) -> bool:
        """Say whether any trial behind the result diverged."""
        return any(point.lost[0] for rule in self.rules.values() for row in rule.points.values() for point in row)

    @cached_property
    def window(self) -> Window:
        """Return the axes that all panels share: every rate, and the losses near the optima.

        A rate much too large gives a loss far above the rest; showing it would flatten the basins that decide. The window
        ends at most 2.5 times the spread of the optima above the worst of them.
        """
        found = [curve for rule in self.rules.values() for curve in curves(rule)]
        rates = [math.log2(p.lr) for curve in found for p in curve.points]
        rates += [math.log2(c.optimum.lr) for c in found if c.optimum]
        losses = [loss for c in found for p in c.points for loss in (p.loss, *(p.ends or ())) if loss is not None]
        optima = [c.optimum.loss for c in found if c.optimum]
        if not rates or not losses + optima:
            return Window(-8.0, -4.0, 0.0, 1.0)
        low, high = min(losses + optima), max(losses + optima)
        if optima:
            spread = max(max(optima) - min(optima), 0.05 * abs(min(optima)), 1e-6)
            high = min(high, max(optima) + 2.5 * spread)
        pad = 0.06 * (high - low) or 0.05
        return Window(min(rates) - 0.4, max(rates) + 0.4, low - pad, high + pad)

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """Return for each rule, at the largest loops, the stream of the finished trial nearest to the fitted optimum."""
        loops, found = max(self.loops), []
        for name, rule in self.rules.items():
            optimum = rule.optima.get(loops)
            mine = [t for t in self.trials if t.cell.rule == name and t.cell.loops == loops and not t.diverged]
            mine = [t for t in mine if rule.strength is None or t.cell.strength in (None, rule.strength)] or mine
            mine = [t for t in mine if t.stream_rms.get("initial") or t.stream_rms.get("final")]
            if optimum is None or not mine:
                continue
            target = math.log2(optimum.lr)
            best = min(mine, key=lambda t: (abs(math.log2(t.cell.lr) - target), t.cell.seed))
            initial, final = (tuple(map(_positive, best.stream_rms.get(w) or ())) for w in ("initial", "final"))
            found.append(Stream(name, loops, best.cell.lr, initial, final))
        return tuple(found)

    @cached_property
    def strength_curves(self) -> tuple[StrengthCurve, ...]:
        """Return the loss at each swept strength, where there are several: at its fitted optimum, else the best mean."""
        table = self._fitted_strengths() if self.result.by_strength else self._tried_strengths()
        found = []
        for rule, loops in product(self.rules, self.loops):
            if len(row := sorted(table.get((rule, loops), {}).items())) > 1:
                strengths, losses = zip(*row, strict=True)
                found.append(StrengthCurve(rule, loops, strengths, losses))
        return tuple(found)

    def _fitted_strengths(self) -> dict[tuple[str, int], dict[float, float]]:
        return {
            (rule, loops): {strength: optimum.loss for strength, optimum in row.items()}
            for rule, by_loops in self.result.by_strength.items()
            for loops, row in by_loops.items()
        }

    def _tried_strengths(self) -> dict[tuple[str, int], dict[float, float]]:
        """Read them from the trials; a cell of which a seed diverged is left out."""
        cells: dict[tuple[str, int, float, float], list[float | None]] = defaultdict(list)
        for trial in self.trials:
            cell = trial.cell
            if cell.strength is not None and cell.swept == "lr" and not cell.steps:
                cells[cell.rule, cell.loops, cell.strength, cell.lr].append(None if trial.diverged else trial.loss)
        best: dict[tuple[str, int], dict[float, float]] = defaultdict(dict)
        for (rule, loops, strength, _), losses in cells.items():
            finished = [loss for loss in losses if loss is not None]
            if len(finished) == len(losses):
                row = best[rule, loops]
                row[strength] = min(row.get(strength, math.inf), fmean(finished))
        return best


def study_info(study_dir: Path) -> StudyInfo:
    """Read a study folder; raises `UserError` when it is missing, unfinished, damaged or of another schema."""
    result, journal = read_result(study_dir), Journal(study_dir)
    if journal.trials:  # a folder without any is drawn without the figures of single trials, and says so
        journal.check_count(result.provenance.get("trials"), Result.FIX)
    return StudyInfo(result, journal.by_key())


def curves(rule: RuleRecord) -> tuple[Curve, ...]:
    """Return loss over rate, one curve per number of loops, ascending."""
    return tuple(
        Curve(loops, tuple(sorted(rule.points.get(loops, ()), key=lambda point: point.lr)), rule.optima.get(loops))
        for loops in sorted(set(rule.points) | set(rule.optima))
    )


def log_bounds(pair: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return an interval of rates in log2; None where there is none, or where it reaches zero.

    >>> log_bounds((0.25, 0.5))
    (-2.0, -1.0)
    """
    return (math.log2(pair[0]), math.log2(pair[1])) if pair and min(pair) > 0 else None


def drift_line(rule: RuleRecord) -> tuple[tuple[float, float], ...]:
    """Return the ends of the fitted line through the centre of the optima, in log2; without a slope the optima, joined."""
    if rule.slope is None or len(rule.optima) < 2:
        return tuple((math.log2(loops), math.log2(optimum.lr)) for loops, optimum in sorted(rule.optima.items()))
    xs = [math.log2(loops) for loops in rule.optima]
    centre_x, centre_y = fmean(xs), fmean(math.log2(optimum.lr) for optimum in rule.optima.values())
    low, high = min(xs), max(xs)
    return (low, centre_y + rule.slope * (low - centre_x)), (high, centre_y + rule.slope * (high - centre_x))


def _positive(rms: float | None) -> float | None:
    return rms if rms is not None and math.isfinite(rms) and rms > 0 else None
