"""What a study is made of: cells of (rule, strength, loops, rate, seed), each with the config that trains it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from loopscale.errors import UserError, between
from loopscale.parameterization import Depth, get_rule
from loopscale.records import StudyRecord
from loopscale.study.design import Design
from loopscale.study.trial import MOST_SEEDS, job_of, trial_key
from loopscale.study.user_code import UserCode
from loopscale.train import TrainConfig, equal_steps

STEPS_PER_OCTAVE = 2  # the rate grid is 2^(k/2), k whole: factor-2 grids hide a drift of half an octave
LOWEST, HIGHEST = -40, 8  # 2^-20 .. 2^4: where the search for an optimum gives up


@dataclass(frozen=True, order=True)
class Arm:
    """One curve of loss over rate: a rule at a strength and a number of loops.

    `steps`: trained for so many instead of the study's. `swept`: which rate is on the axis, "lr" or "outer_lr".
    """

    rule: str
    strength: float
    loops: int
    steps: int = 0
    swept: str = "lr"


@dataclass(frozen=True, order=True)
class Cell:
    """One training run: an arm, a rate and a seed."""

    arm: Arm
    lr: float
    seed: int


@dataclass(frozen=True)
class StudyPlan(Design):
    """The identity of a study: rules x strengths x loops x rates x seeds over one base config.

    `lrs` fixes the rate grid; without it the rates are searched on a sqrt(2) grid around `center_lr` until the minimum of
    every arm lies inside with two points on either side. `spacing`: grid steps between the rates that all seeds get, 1
    for five rates and 2 for three, over the same two octaves.

    `outer_pilot`: embedding, readout and final norm keep one rate while the others are swept, found at the smallest N
    first. `early_end`: on a fixed grid, trials of further seeds that the better half of the first seed's has left behind
    end early. `beside_one`: one loop is trained beside the first rule, for as long and with the largest N's compute.

    Raises `UserError` for an empty or invalid axis.
    """

    RECORD, FILE = StudyRecord, "study.json"

    base: TrainConfig
    rules: tuple[str, ...] = ("looped", "sqrt", "none")
    loops: tuple[int, ...] = (1, 2, 4, 8)
    lrs: tuple[float, ...] | None = None
    seeds: int = 1
    strengths: tuple[float, ...] = (1.0,)
    center_lr: float = 2.0**-6
    preset: str = "custom"
    user_code: UserCode | None = None
    outer_pilot: bool = False
    beside_one: bool = False
    spacing: int = 1
    early_end: bool = False
    _canonical: dict[tuple[str, int], str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", self.base.for_study())
        for name in ("rules", "loops", "strengths"):
            axis = getattr(self, name)
            if not axis or len(set(axis)) != len(axis):
                raise UserError(f"{name} must list at least one value, each once, got {list(axis)}")
        between("seeds", self.seeds, 1, MOST_SEEDS)
        for rule in self.rules:
            get_rule(rule)
            if self.user_code is not None:
                self.user_code.refuse_start(rule)
        for loops in self.loops:
            Depth(loops, 1)
        rates = (self.center_lr, *(self.lrs or ()))
        for noun, values in (("learning rate", rates), ("strength", self.strengths)):
            for value in values:
                if not (math.isfinite(value) and value > 0):
                    raise UserError(f"a {noun} must be a positive number, got {value!r}")
        if self.lrs is not None and len(set(self.lrs)) < 3:
            raise UserError(f"a parabola needs at least 3 different rates, got {len(set(self.lrs))}: add to --lrs")

    @property
    def arms(self) -> list[Arm]:
        """Every (rule, strength, loops), the most expensive first so that the cores end together."""
        grid = [Arm(rule, strength, n) for rule in self.rules for strength in self.strengths for n in self.loops]
        return sorted(grid, key=lambda arm: -arm.loops)

    def same_network(self, arm: Arm) -> Arm:
        """Return the first arm of the plan that is the same network: at N = 1 and the base L most pre-norm rules are."""
        key = (arm.rule, arm.loops)
        if self.user_code is not None and self.user_code.hears_rule:
            return arm
        if key not in self._canonical:
            mine = self._prescribed(arm)
            self._canonical[key] = next(
                r for r in self.rules if self._prescribed(Arm(r, arm.strength, arm.loops)) == mine
            )
        return replace(arm, rule=self._canonical[key])

    def prescription(self, arm: Arm) -> list[dict[str, Any]]:
        """Return the table of everything the arm's rule applies to this model."""
        return self.config(Cell(arm, self.center_lr, 0)).prescription()

    def _prescribed(self, arm: Arm) -> list[Any]:
        return [get_rule(arm.rule).norm, *(row["value"] for row in self.prescription(arm))]

    @property
    def pilot(self) -> Arm | None:
        """The arm over the outer rate, the others at `center_lr`; None without a pilot."""
        return Arm(self.rules[0], self.strengths[0], min(self.loops), swept="outer_lr") if self.outer_pilot else None

    @property
    def is_objective(self) -> bool:
        """Whether the user's code trains, so that nothing is known of its compute and of its parameters."""
        return self.user_code is not None and self.user_code.kind == "objective"

    def one_loop(self, strength: float) -> tuple[Arm, Arm | None]:
        """Return the arms of one loop that stand beside the largest N: as many steps, as much compute (None: unknown)."""
        one = Arm(self.rules[0], strength, 1)
        if self.is_objective:
            return one, None
        dear, cheap = (self.config(Cell(replace(one, loops=n), self.center_lr, 0)) for n in (max(self.loops), 1))
        return one, replace(one, steps=equal_steps(dear, cheap, user_model=self.user_code is not None))

    def config(self, cell: Cell, outer: float | None = None) -> TrainConfig:
        """Return the full config of one trial.

        `outer` is the rate that the outer parameters keep, None: it moves with the cell's.

        `base_layers` defaults to the model's layers: L is fixed in a study.
        """
        size, optim = self.base.model, self.base.optim
        if cell.arm.swept == "outer_lr":
            rates = {"lr": self.center_lr, "outer_lr": cell.lr / self.center_lr}
        else:
            rates = {"lr": cell.lr, "outer_lr": optim.outer_lr * (1.0 if outer is None else outer / cell.lr)}
        return self.base.updated(
            model={
                "rule": cell.arm.rule,
                "strength": cell.arm.strength,
                "loops": cell.arm.loops,
                "base_layers": size.base_layers or size.layers,
            },
            optim=rates,
            train={"seed": cell.seed, "steps": cell.arm.steps or self.base.train.steps},
        )

    def key(self, cell: Cell) -> str:
        """Return the content hash of the trial's config: equal configs are one trial, whatever study asks for them."""
        shared = Cell(self.same_network(cell.arm), cell.lr, cell.seed)
        return trial_key(self.job_config(shared))

    def job_config(self, cell: Cell, outer: float | None = None) -> dict[str, Any]:
        """Return the trial as plain JSON: the config, and the user's model or objective when there is one."""
        return job_of(self.config(cell, outer), self.user_code)

    def typical_job(self) -> dict[str, Any]:
        """Return the job of a trial at the largest N."""
        return self.job_config(Cell(self.arms[0], self.center_lr, 0))

    def meaning(self) -> dict[str, Any]:
        """Return what decides the result of a cell besides the cell: change it, and all trials are others."""
        config = self.job_config(Cell(Arm(self.rules[0], 1.0, self.loops[0]), 1.0, 0))
        if self.outer_pilot:
            config["optim"]["outer_lr"] = "the study's pilot"
        for section, names in (("model", ("rule", "strength", "loops")), ("optim", ("lr",)), ("train", ("seed",))):
            for name in names:
                del config[section][name]
        return config

    def ends(self) -> tuple[TrainConfig, TrainConfig]:
        """Return the base's own size, and the largest N."""
        size = self.base.model
        near = Cell(Arm(size.rule, size.strength, size.loops), self.center_lr, self.base.train.seed)
        far = Cell(Arm(size.rule, size.strength, max(self.loops)), self.center_lr, 0)
        return self.config(near), self.config(far)

    def by_strength(self) -> tuple[TrainConfig, TrainConfig] | None:
        """Return the largest N at strengths 1 and 1/8, where a rule or a sweep of the strength scales the branches."""
        size = self.base.model
        if not any(get_rule(rule).loops_exponent for rule in self.rules) and len(self.strengths) < 2:
            return None
        arms = (Arm(size.rule, strength, max(self.loops)) for strength in (1.0, 0.125))
        strong, weak = (self.config(Cell(arm, self.center_lr, 0)) for arm in arms)
        return strong, weak


def grid_rate(index: int) -> float:
    """Return rate number `index` of the sqrt(2) grid: 2^(index/2)."""
    return float(2.0 ** (index / STEPS_PER_OCTAVE))


def grid_index(rate: float) -> int:
    """Return the nearest grid index of a rate."""
    return round(math.log2(rate) * STEPS_PER_OCTAVE)


def stream_growth(plan: StudyPlan) -> dict[tuple[str, int], float]:
    """Return the RMS of the stream after the last visit over its RMS at the entry, by (rule, N), in untrained house models.

    Looped residual scaling keeps it level over N; a rule under which it climbs lets the best rate fall.
    """
    import torch

    from loopscale.nn import LoopedTransformer

    found = {}
    for rule in plan.rules:
        for loops in sorted(plan.loops):
            config = plan.config(Cell(Arm(rule, plan.strengths[0], loops), plan.center_lr, 0))
            vocabulary = config.model.vocab_size or 256
            generator = torch.Generator().manual_seed(0)
            tokens_BT = torch.randint(vocabulary, (1, min(64, config.data.context)), generator=generator)
            with torch.no_grad():
                rms = LoopedTransformer(config.network(vocabulary), seed=0).visit_rms(tokens_BT)
            found[rule, loops] = rms[-1] / rms[0]
    return found
