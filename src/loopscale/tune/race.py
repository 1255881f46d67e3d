"""Candidates raced over seeds: the noise of their paired differences, and which of them the seeds tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from loopscale.transfer.estimate import student95

Table = dict[int, float]  # seed -> loss, inf when diverged


@dataclass(frozen=True)
class PairedNoise:
    """Standard deviation in nats of the difference of two trials of one seed; `freedom` is how well it is known."""

    size: float
    freedom: int

    def error(self, count: int) -> float:
        """Return half of the 95 % interval of a mean difference over `count` seeds."""
        return student95(self.freedom) * self.size / math.sqrt(count)


def paired_noise(tables: Sequence[Table]) -> PairedNoise | None:
    """Return the noise of candidates that share seeds: sqrt(2 sum r^2 / freedom).

    r = loss - candidate's mean - seed's mean + mean of all, freedom = (candidates - 1)(seeds - 1): what all candidates owe
    to a seed cancels. Candidates that diverged take no part. None when fewer than two candidates share two seeds.

    >>> round(paired_noise([{0: 2.0, 1: 2.1}, {0: 2.0, 1: 2.3}]).size, 4)
    0.1414
    """
    best: PairedNoise | None = None
    whole = [table for table in tables if table and all(map(math.isfinite, table.values()))]
    for count in sorted({len(table) for table in whole if len(table) > 1}):
        rows = [[table[seed] for seed in sorted(table)[:count]] for table in whole if len(table) >= count]
        freedom = (len(rows) - 1) * (count - 1)
        if freedom > (best.freedom if best else 0):
            best = PairedNoise(math.sqrt(2 * _residuals(rows) / freedom), freedom)
    return best


def _residuals(rows: list[list[float]]) -> float:
    columns = [fmean(column) for column in zip(*rows, strict=True)]
    whole = fmean(columns)
    return sum((x - fmean(row) - column + whole) ** 2 for row in rows for x, column in zip(row, columns, strict=True))


def beaten(table: Table, leader: Table, noise: PairedNoise | None) -> bool:
    """Say whether the leader is better for certain: paired over the seeds both have, at 95 %, or this one diverged."""
    if not all(map(math.isfinite, table.values())):
        return True
    shared = [seed for seed in table if math.isfinite(leader.get(seed, math.inf))]
    if noise is None or len(shared) < 2:
        return False
    gap = fmean(table[seed] - leader[seed] for seed in shared)
    return gap > max(noise.error(len(shared)), 1e-9)


def leader(tables: Sequence[Table]) -> Table:
    """Return the table with the smallest mean among those with the most seeds; one that diverged only if all did."""
    whole = [table for table in tables if all(map(math.isfinite, table.values()))] or tables
    most = max(len(table) for table in whole)
    return min((table for table in whole if len(table) == most), key=lambda table: fmean(table.values()))
