"""Name the trials of an exponent study: cells of (loops, strength, rates, seed), and the config of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from loopscale.errors import UserError, between, nearest
from loopscale.parameterization import RULES, Depth, Rule, get_rule
from loopscale.records import ExponentStudyRecord
from loopscale.study import MOST_SEEDS, Design, UserCode, job_of
from loopscale.train import TrainConfig, equal_steps

RULE = "looped"  # one grid over its strength holds the eps of every pre-norm rule
CARRIED = ("looped", "0.75", "sqrt", "none", "depth-mup")
MOST_POWER = 3  # of N to carry by
PILOT_SEEDS = 2  # of the search for the outer rate


@dataclass(frozen=True, order=True)
class Cell:
    """One training: N, strength, hidden rate, outer rate, seed, how many times the usual steps; of rule `looped` mostly."""

    loops: int
    strength: float
    lr: float
    outer_rate: float
    seed: int
    longer: float = 1.0
    rule: str = RULE

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a trial's record keeps it."""
        values = {"lr": self.lr, "strength": self.strength, "outer_rate": self.outer_rate, "longer": self.longer}
        return {"rule": self.rule, "loops": self.loops, "lr": self.lr, "strength": self.strength, "seed": self.seed,
                "values": values}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """The values of one axis of the grid by index; beyond its ends it goes on by the ratio of the last two values.

    >>> Axis((1.0, 2.0, 4.0)).value(3)
    8.0
    """

    start: tuple[float, ...]

    def value(self, index: int) -> float:
        """Return the value at an index, which may be negative or beyond the start."""
        values, last = self.start, len(self.start) - 1
        if index < 0:
            return float(f"{values[0] * (values[0] / values[1]) ** -index:.6g}")
        if index > last:
            return float(f"{values[last] * (values[last] / values[last - 1]) ** (index - last):.6g}")
        return values[index]


@dataclass(frozen=True)
class ExponentPlan(Design):
    """The identity of an exponent study: loops, the grid that it starts from, seeds, fresh seeds, what is carried.

    `strengths` and `lrs` are where the grid begins (default: five octaves of strength, three rates 0.75 octaves apart); it
    is widened until its optimum lies inside. `outer_rate` is the rate of embedding and readout; None: it is found first, at
    the smallest N. `fresh` seeds compare, at the largest N, the ways to `carry` the optimum of the smallest: rules of the
    table, or the power of N as a number. `target`: the N that eps is wanted for.

    Raises `UserError` for an axis that no exponent follows from.
    """

    RECORD, FILE = ExponentStudyRecord, "exponent.json"

    base: TrainConfig
    loops: tuple[int, ...] = (2, 4, 8)
    strengths: tuple[float, ...] | None = None
    lrs: tuple[float, ...] | None = None
    outer_rate: float | None = None
    seeds: int = 4
    fresh: int = 8
    carry: tuple[str, ...] = CARRIED
    target: int | None = None
    user_code: UserCode | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base.for_study())
        _check_loops(self.loops, self.target)
        _check_axis("strengths", self.strengths)
        _check_axis("lrs", self.lrs)
        if self.outer_rate is not None and not (math.isfinite(self.outer_rate) and self.outer_rate > 0):
            raise UserError(f"an outer rate is a positive number, got {self.outer_rate!r}")
        if self.outer_rate is not None and self.outer_rate > 1 and self.base.optim.optimizer != "sgd":
            raise UserError(
                f"an outer rate is the rate of embedding and readout, no factor on the hidden one, and {self.outer_rate:g} "
                "is above 1: write one such as 2^-5"
            )
        between("seeds", self.seeds, 1, MOST_SEEDS)
        between("fresh seeds", self.fresh, 1, MOST_SEEDS)
        if len(set(self.carry)) != len(self.carry):
            raise UserError(f"--carry lists each way once, got {','.join(self.carry)}")
        for way in self.carry:
            check_way(way, self.user_code)

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """The strengths and the hidden rates of the grid."""
        strength, lr = self.base.model.strength, self.base.optim.lr
        strengths = self.strengths or tuple(strength * 2.0**k for k in range(-2, 3))
        lrs = self.lrs or tuple(float(f"{lr * 2.0 ** (0.75 * k):.6g}") for k in (-1, 0, 1))
        return Axis(tuple(sorted(strengths))), Axis(tuple(sorted(lrs)))

    @property
    def fresh_seeds(self) -> range:
        """The seeds of the comparison at the largest N: none of them is in the grid, however large that grows."""
        return range(MOST_SEEDS, MOST_SEEDS + self.fresh)

    def eps(self, loops: int, strength: float, rule: str = RULE) -> float:
        """Return the eps that a strength means at N = `loops`."""
        model = self.base.model
        value = get_rule(rule).residual_scale(Depth(loops, model.layers), strength, self.base_layers).value
        return float(value)

    @property
    def base_layers(self) -> int:
        """The L that the strength counts from: the config's, else its own L."""
        return self.base.model.base_layers or self.base.model.layers

    @cached_property
    def longer(self) -> float:
        """How many times the steps N = 1 trains with the compute of the largest N."""
        here, one = (self.config(self.sample(loops)) for loops in (max(self.loops), 1))
        user, stated = self.user_code is not None, self.base.model.vocab_size
        steps = equal_steps(here, one, 256 if user else stated or self.base.load_data().vocab_size, user)
        return steps / self.base.train.steps

    def sample(self, loops: int, longer: float = 1.0) -> Cell:
        """Return a cell at N = `loops` in the middle of the grid."""
        strengths, lrs = self.axes
        strength, lr = strengths.start[len(strengths.start) // 2], lrs.start[len(lrs.start) // 2]
        return Cell(loops, strength, lr, self.outer_rate or lr, 0, longer)

    def expected(self) -> list[Cell]:
        """Return as many cells, at their N and length, as a study trains whose optima lie in the middle of its grid.

        The outer rate is taken to be 2 to 4 times the hidden one.
        """
        low, high = min(self.loops), max(self.loops)
        grid = len(self.axes[0].start) * len(self.axes[1].start) + 9 * (self.seeds - 1)
        counts = [(loops, grid) for loops in self.loops] + [(high, self.fresh * (1 + len(self.carry))), (1, self.fresh)]
        counts += [] if self.outer_rate is not None else [(low, 6 * PILOT_SEEDS)]
        cells = [self.sample(loops) for loops, count in counts for _ in range(count)]
        return cells + [self.sample(1, self.longer)] * self.fresh

    def config(self, cell: Cell) -> TrainConfig:
        """Return the full config of one trial: the outer rate stays where it is while the hidden rate moves."""
        return self.base.updated(
            model={
                "rule": cell.rule,
                "strength": cell.strength,
                "loops": cell.loops,
                "base_layers": self.base_layers,
            },
            optim={"lr": cell.lr, "outer_lr": cell.outer_rate / cell.lr},
            train={"seed": cell.seed, "steps": round(cell.longer * self.base.train.steps)},
        )

    def job_config(self, cell: Cell) -> dict[str, Any]:
        """Return the trial as plain JSON: the config, and the user's model when there is one."""
        return job_of(self.config(cell), self.user_code)

    def typical_job(self) -> dict[str, Any]:
        """Return the job of a trial at the largest N."""
        return self.job_config(self.sample(max(self.loops)))

    def meaning(self) -> dict[str, Any]:
        """Return what decides the result of a cell besides the cell: if it changes, the trials mean something else."""
        config = self.job_config(Cell(1, 1.0, 1.0, 1.0, 0))
        for section, name in (("model", "loops"), ("model", "strength"), ("optim", "lr"), ("train", "seed")):
            del config[section][name]
        return config

    def by_strength(self) -> tuple[TrainConfig, TrainConfig]:
        """Return the largest N at strengths 1 and 1/8."""
        cell = self.sample(max(self.loops))
        return self.config(replace(cell, strength=1.0)), self.config(replace(cell, strength=0.125))

    def ends(self) -> tuple[TrainConfig, TrainConfig]:
        """Return the smallest and the largest N."""
        lr = self.base.optim.lr
        near, far = (self.config(Cell(loops, 1.0, lr, lr, 0)) for loops in (min(self.loops), max(self.loops)))
        return near, far


def powers(way: str) -> tuple[float, float]:
    """Return (a, g) of a way to carry: eps ~ N^-a and rate ~ N^-g. A way is a rule of the table, or a as a number.

    Raises `UserError` for a rule that is no line through the grid (a Post-LN one), or an unknown word.

    >>> powers("sqrt"), powers("0.75"), powers("depth-mup")
    ((0.5, 0.0), (0.75, 0.0), (0.5, 0.5))
    """
    try:
        number = float(way)
    except ValueError:
        number = None
    if number is not None:
        if not 0 <= number <= MOST_POWER:
            raise UserError(f"eps falls as N^-a, and a to carry by is from 0 to {MOST_POWER}, got {way}: 0.5 is N^-0.5")
        return number, 0.0
    lines = [name for name, rule in RULES.items() if rule.keeps_start]
    if way not in lines:
        known = [*lines, *(name for name in RULES if starts_anew(name))]
        raise UserError(f"cannot carry by {way!r}: {nearest(way, known)}, or a power of N such as 0.75")
    rule = get_rule(way)
    return rule.loops_exponent, rule.rate_loops_exponent


def starts_anew(way: str) -> bool:
    """Tell whether a way is a pre-norm rule with initial weights of its own: no line through the grid, but a baseline.

    It is trained at strength 1, with the hidden rate of the smallest N.
    """
    rule: Rule | None = RULES.get(way)
    return rule is not None and rule.norm == "pre" and not rule.keeps_start


def check_way(way: str, user_code: UserCode | None) -> None:
    """Raise `UserError` for a way that `powers` does not know, or initial weights that only the house model has."""
    if not starts_anew(way):
        powers(way)
    elif user_code is not None:
        user_code.refuse_start(way)


def _check_loops(loops: Sequence[int], target: int | None) -> None:
    for count in (*loops, *(() if target is None else (target,))):
        Depth(count, 1)
    if len(set(loops)) < 2:
        said = ",".join(map(str, loops))
        raise UserError(f"an exponent compares numbers of loops, and --loops {said or 'nothing'} is one: --loops 2,4,8")
    if len(set(loops)) != len(loops):
        raise UserError(f"loops must list each number once, got {list(loops)}")
    low, high = min(loops), max(loops)
    if target is not None and target < low:
        listed = ",".join(map(str, sorted({*loops, target})))
        raise UserError(
            f"the target {target} lies below the smallest N of the study, {low}: --loops {listed} measures it"
        )
    if target is not None and target > high and 2 * math.log2(high / low) < math.log2(target / low):
        least = 2 ** math.ceil(math.log2(low) + math.log2(target / low) / 2)
        listed = ",".join(map(str, sorted({*loops, least})))
        raise UserError(
            f"loops {low} to {high} span less than half of the way to {target} (counted in doublings), so the interval "
            f"there would be a guess: --loops {listed}"
        )


def _check_axis(noun: str, values: tuple[float, ...] | None) -> None:
    if values is None:
        return
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"--{noun} lists positive numbers, got {value!r}")
    if len(set(values)) < 3 or len(set(values)) != len(values):
        raise UserError(f"--{noun} needs at least 3 different values, got {len(set(values))}: a minimum has two sides")
    ratios = [high / low for low, high in pairwise(sorted(values))]
    if min(ratios) < 1.05:
        raise UserError(f"--{noun} has two values closer than 5 %: leave one out")
