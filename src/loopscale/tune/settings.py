"""What a tuning is: a base config, a small proxy, a large target, the values to tune. The identity of its folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from loopscale.errors import UserError, between, nearest
from loopscale.parameterization import Depth, Width, get_rule
from loopscale.records import Size, TuneRecord, checked
from loopscale.study import MOST_SEEDS, Design, Job, UserCode, job_of, trial_key
from loopscale.train import TrainConfig

TUNABLE = ("lr", "strength", "outer_lr", "weight_decay", "warmup", "batch")
IN_OPTIM = ("lr", "outer_lr", "weight_decay", "warmup")
MOST_TRIALS = 1000  # of the exploration: its model of the losses takes time with their cube


@dataclass(frozen=True)
class TuneSettings(Design):
    """Tune `tuned` on the proxy, for the target.

    tuned: () for rate, strength and outer rate; of an objective, which knows nothing of roles, rate and strength.
    trials: points explored with one seed; 0 for 16, and 8 more for each value beyond two.
    seeds: how many the best of them get at most.

    Raises `UserError` when the target is smaller than the proxy on any axis, or a value is not tunable.
    """

    RECORD, FILE = TuneRecord, "tune.json"

    base: TrainConfig
    proxy: Size
    target: Size
    tuned: tuple[str, ...] = ()
    trials: int = 0
    seeds: int = 3
    user_code: UserCode | None = None

    def __post_init__(self) -> None:
        roles = self.user_code is None or self.user_code.kind == "model"
        usual = ("lr", "strength", "outer_lr") if roles else ("lr", "strength")
        object.__setattr__(self, "tuned", self.tuned or usual)
        object.__setattr__(self, "trials", self.trials or 16 + 8 * max(0, len(self.tuned) - 2))
        object.__setattr__(self, "base", self.base.for_study())
        get_rule(self.base.model.rule)
        for size in (self.proxy, self.target):
            Depth(size.loops, size.layers)
            Width(size.width)
        for axis, small in asdict(self.proxy).items():
            large = getattr(self.target, axis)
            if large < small:
                raise UserError(
                    f"the target has {axis} = {large}, less than the proxy's {small}: "
                    f"name a smaller proxy, --proxy {axis}={large}"
                )
        for name in self.tuned:
            if name not in TUNABLE:
                raise UserError(f"cannot tune {name!r}: {nearest(name, TUNABLE)}")
        if "lr" not in self.tuned or len(set(self.tuned)) != len(self.tuned):
            raise UserError("--tune must list lr and, each once, what else to tune, such as lr,strength,weight_decay")
        between("trials", self.trials, 3, MOST_TRIALS)
        between("seeds", self.seeds, 1, MOST_SEEDS)

    @property
    def rule(self) -> str:
        """The rule that carries the values from proxy to target."""
        return self.base.model.rule

    def config(self, size: Size, values: dict[str, float], seed: int = 0, rule: str | None = None) -> TrainConfig:
        """Return the full config at `size` with these values; L and d count relative to the proxy's.

        A tuned batch keeps the tokens: as many sequences in all as the size states.
        """
        batch = max(1, round(size.batch * values.get("batch", 1.0)))
        # As many tokens trained on, and as many evaluated on: losses of two batches stay comparable.
        steps, evals = (
            max(1, round(count * size.batch / batch)) for count in (size.steps, self.base.train.eval_batches)
        )
        config = self.base.updated(
            model={
                "loops": size.loops,
                "layers": size.layers,
                "width": size.width,
                "base_layers": self.proxy.layers,
                "base_width": self.proxy.width,
                "strength": float(values.get("strength", self.base.model.strength)),
                "rule": rule or self.rule,
            },
            optim={name: float(values[name]) for name in IN_OPTIM if name in values},
            data={"batch_size": batch},
            train={"steps": steps, "eval_batches": evals, "seed": seed},
        )
        if self.user_code is None:
            config.network(256)
        return config

    def job(self, config: TrainConfig, values: dict[str, float], **more: Any) -> Job:
        """Return the trial of a config in which the tuned values are `values`; its cell also says what `more` holds."""
        record, model = job_of(config, self.user_code), config.model
        cell = {"rule": model.rule, "loops": model.loops, "lr": config.optim.lr, "strength": model.strength}
        return trial_key(record), {**cell, "seed": config.train.seed, "values": values, **more}, record

    def typical_job(self, loops: int = 1) -> dict[str, Any]:
        """Return a job's config at the proxy, or there with more loops, at the values the search begins with."""
        size = self.proxy.replace(loops=max(loops, self.proxy.loops))
        return job_of(self.config(size, start(self)), self.user_code)

    def ends(self) -> tuple[TrainConfig, TrainConfig]:
        """Return proxy and target, at the values the search begins with; what cannot be built is said here."""
        return self.config(self.proxy, start(self)), self.config(self.target, start(self))

    def by_strength(self) -> tuple[TrainConfig, TrainConfig] | None:
        """Return the proxy with the target's loops at strengths 1 and 1/8, where the strength is tuned or carries N."""
        moves = self.target.loops != self.proxy.loops and get_rule(self.rule).loops_exponent
        if not moves and "strength" not in self.tuned:
            return None
        size, values = self.proxy.replace(loops=self.target.loops), start(self)
        strong, weak = (self.config(size, {**values, "strength": strength}) for strength in (1.0, 0.125))
        return strong, weak

    def meaning(self) -> dict[str, Any]:
        """Return what makes trials others: more trials, seeds and another target do not."""
        values = {name: value for name, value in self.to_json().items() if name not in ("trials", "seeds", "target")}
        return {**values.pop("base"), **values}

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        values: dict[str, Any] = self.to_record().model_dump(mode="json")
        return values

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Return the settings that `to_json` gave; raises `UserError` for those of another version."""
        return cls.from_record(checked(TuneRecord, record, "the record of the settings"))

    @property
    def name(self) -> str:
        """The name of the tuning in a storage: equal settings are one study, wherever they run."""
        return f"loopscale-{trial_key(self.to_json())}"


def bounds(settings: TuneSettings) -> dict[str, tuple[float, float]]:
    """Return the range of each tuned value in search coordinates: octaves (log2) around the config's, warm-up as it is.

    The outer rate is searched as a rate, not as the factor on the hidden one that `outer_lr` is: its best value stays where
    it is while the hidden rate moves, and a low hidden rate does not shut it out.

    >>> from loopscale.train import TrainConfig
    >>> size = Size(1, 1, 64, 100, 16)
    >>> bounds(TuneSettings(TrainConfig(), size, size))["lr"]
    (-11.0, -3.0)
    """
    optim, model = settings.base.optim, settings.base.model
    decay = math.log2(optim.weight_decay or 0.1)
    ranges = {
        "lr": (math.log2(optim.lr) - 4, math.log2(optim.lr) + 4),
        "strength": (math.log2(model.strength) - 3, math.log2(model.strength) + 3),
        "outer_lr": (math.log2(optim.lr * optim.outer_lr) - 3, math.log2(optim.lr * optim.outer_lr) + 7),
        "weight_decay": (decay - 3, decay + 3),
        "warmup": (0.0, 0.5),
        "batch": (-2.0, 2.0),
    }
    return {name: ranges[name] for name in settings.tuned}


def to_values(point: dict[str, float]) -> dict[str, float]:
    """Turn search coordinates into values of four digits each: what a config file would say.

    >>> to_values({"lr": -6.0, "outer_lr": -3.0})
    {'lr': 0.01562, 'outer_lr': 8.0}
    """
    if "outer_lr" in point:
        point = {**point, "outer_lr": point["outer_lr"] - point["lr"]}
    return {name: float(f"{x if name == 'warmup' else 2.0**x:.4g}") for name, x in point.items()}


def to_point(values: dict[str, float]) -> dict[str, float]:
    """Reverse `to_values`."""
    point = {name: value if name == "warmup" else math.log2(value) for name, value in values.items()}
    return {**point, "outer_lr": point["outer_lr"] + point["lr"]} if "outer_lr" in point else point


def start(settings: TuneSettings) -> dict[str, float]:
    """Return where the search begins: the config's own values."""
    optim, model = settings.base.optim, settings.base.model
    known = {"lr": optim.lr, "outer_lr": optim.outer_lr, "strength": model.strength, "batch": 1.0}
    known["weight_decay"] = optim.weight_decay or 0.1
    values = {**known, "warmup": min(optim.warmup, 0.5)}
    return {name: values[name] for name in settings.tuned}
