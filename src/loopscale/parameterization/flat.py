"""Does a network stay the same as loops are added? What such a check measures, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loopscale.errors import UserError

# A slope within this of 0 passes: 1/N gives 0.06 where 1/sqrt(N) gives 0.4 and no scale 0.55 or more.
FLAT = 0.25


@dataclass(frozen=True)
class CheckRow:
    """One number of loops: RMS of the stream at initialisation, RMS of its change after 1 and after k steps."""

    loops: int
    stream: float
    change_first: float
    change_last: float


def counts_to_check(loops: Sequence[int], steps: int) -> list[int]:
    """Return the numbers of loops in order; raises `UserError` for fewer than two, and for no steps."""
    if isinstance(loops, int):
        raise UserError(f"loops={loops} is one number, and a slope needs several: try loops=(1, 2, 4, 8)")
    counts = sorted(set(loops))
    if len(counts) < 2 or counts[0] < 1:
        raise UserError(
            f"loops must be at least two different numbers of at least 1, got {list(loops)}: try (1, 2, 4, 8)"
        )
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    return counts


@dataclass(frozen=True)
class ParameterizationCheck:
    """`slopes` over log N of stream, change after 1 step, change after `steps`; passed when all are within 0.25 of 0."""

    rule: str
    steps: int
    rows: tuple[CheckRow, ...]
    slopes: dict[str, float]
    passed: bool

    @classmethod
    def of(cls, rule: str, steps: int, rows: Sequence[CheckRow]) -> ParameterizationCheck:
        """Fit the slopes and give the verdict."""
        slopes = {name: _slope(rows, name) for name in ("stream", "change_first", "change_last")}
        passed = all(abs(slope) <= FLAT for slope in slopes.values())
        return cls(rule, steps, tuple(rows), slopes, passed)

    def __str__(self) -> str:
        """Give the table, for `print`."""
        return self.table()

    def table(self) -> str:
        """Format for a terminal; with `steps` = 1 the last column, which would repeat the one before, is left out."""
        columns = {"stream": "stream RMS", "change_first": "change, 1 step", "change_last": f"{self.steps} steps"}
        if self.steps == 1:
            del columns["change_last"]
        wide = {name: max(14, len(title) + 4) for name, title in columns.items()}
        lines = [f"{'loops':>6}" + "".join(f"{title:>{wide[name]}}" for name, title in columns.items())]
        lines += [f"{r.loops:>6}" + "".join(f"{getattr(r, n):>{wide[n]}.4g}" for n in columns) for r in self.rows]
        lines.append(f"{'slope':>6}" + "".join(f"{round(self.slopes[n], 2) + 0.0:>{wide[n]}.2f}" for n in columns))
        said = "passes: the slopes over N are flat" if self.passed else f"fails: a slope over N is beyond {FLAT} of 0"
        return "\n".join([*lines, f"{self.rule} {said}"])


def _slope(rows: Sequence[CheckRow], name: str) -> float:
    """Fit log of the column over log N; NaN for fewer than two usable rows."""
    pairs = [(row.loops, getattr(row, name)) for row in rows if 0 < getattr(row, name) < math.inf]
    if len(pairs) < 2:
        return math.nan
    x, y = ([math.log(value) for value in column] for column in zip(*pairs, strict=True))
    centre = sum(x) / len(x)
    spread = sum((a - centre) ** 2 for a in x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / spread
