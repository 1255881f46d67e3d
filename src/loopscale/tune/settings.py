"""What a tuning is: a base config, a small proxy, a large target, the values to tune. The identity of its folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from loopscale.errors import UserError, between, describe, nearest
from loopscale.parameterization import Depth, Width, get_rule
from loopscale.records import TuneRecord, checked
from loopscale.study import MOST_SEEDS, Design, Job, UserCode, job_of, trial_key
from loopscale.train import TrainConfig

TUNABLE = ("lr", "strength", "outer_lr", "weight_decay", "warmup", "batch")
MOST_TRIALS = 1000  # of the exploration: its model of the losses takes time with their cube


@dataclass(frozen=True)
class Size:
    """Loops N, layers L, width d, and how long and on how much: what differs between proxy and target.

    >>> str(Size(32, 8, 1024, 1000, 64))
    'N = 32, L = 8, d = 1024, 1000 steps of 64 sequences'
    """

    loops: int
    layers: int
    width: int
    steps: int
    batch: int

    def __str__(self) -> str:
        return f"N = {self.loops}, L = {self.layers}, d = {self.width}, {self.steps} steps of {self.batch} sequences"

    @classmethod
    def of(cls, config: TrainConfig) -> Size:
        """Return the size that a config states."""
        model = config.model
        return cls(model.loops, model.layers, model.width, config.train.steps, config.data.batch_size)

    def replace(self, **axes: int) -> Size:
        """Return the same with some axes changed; raises `UserError` for an unknown axis."""
        return Size(**{**asdict(self), **axes})


@dataclass(frozen=True)
class TuneSettings(Design):
    """Tune `tuned` on the proxy, for the target.

    `trials` is how many points are explored with one seed, `seeds` how many the best of them get at most.

    Raises `UserError` when the target is smaller than the proxy on any axis, or a value is not tunable.
    """

    RECORD, FILE = TuneRecord, "tune.json"

    base: TrainConfig
    proxy: Size
    target: Size
    tuned: tuple[str, ...] = ("lr", "strength")
    trials: int = 16
    seeds: int = 3
    user_code: UserCode | None = None

    def __post_init__(self) -> None:
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
        record = self.base.model_dump(mode="json")
        batch = max(1, round(size.batch * values.get("batch", 1.0)))
        record["model"].update(
            loops=size.loops,
            layers=size.layers,
            width=size.width,
            base_layers=self.proxy.layers,
            base_width=self.proxy.width,
            strength=float(values.get("strength", self.base.model.strength)),
            rule=rule or self.rule,
        )
        record["optim"].update(
            {name: float(values[name]) for name in ("lr", "outer_lr", "weight_decay", "warmup") if name in values}
        )
        record["data"]["batch_size"] = batch
        # As many tokens trained on, and as many evaluated on: losses of two batches stay comparable.
        steps, evals = (
            max(1, round(count * size.batch / batch)) for count in (size.steps, self.base.train.eval_batches)
        )
        record["train"].update(steps=steps, eval_batches=evals, seed=seed)
        config = TrainConfig.model_validate(record)
        if self.user_code is None:
            config.network(256)
        return config

    def job_config(self, config: TrainConfig) -> dict[str, Any]:
        """Return the config as a job carries it: plain JSON, with the user's code where there is some."""
        return job_of(config, self.user_code)

    def job(self, config: TrainConfig, values: dict[str, float], **more: Any) -> Job:
        """Return the trial of a config in which the tuned values are `values`; its cell also says what `more` holds."""
        record, model = self.job_config(config), config.model
        cell = {"rule": model.rule, "loops": model.loops, "lr": config.optim.lr, "strength": model.strength}
        return trial_key(record), {**cell, "seed": config.train.seed, "values": values, **more}, record

    def typical_job(self, loops: int = 1) -> dict[str, Any]:
        """Return a job's config at the proxy, or there with more loops, at the values the search begins with."""
        size = self.proxy.replace(loops=max(loops, self.proxy.loops))
        return self.job_config(self.config(size, start(self)))

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

    def to_record(self) -> TuneRecord:
        """Return what `tune.json` holds."""
        return TuneRecord(
            base=self.base.model_dump(mode="json"),
            proxy=asdict(self.proxy),
            target=asdict(self.target),
            tuned=self.tuned,
            trials=self.trials,
            seeds=self.seeds,
            user_code=None if self.user_code is None else self.user_code.to_json(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values."""
        values: dict[str, Any] = self.to_record().model_dump(mode="json")
        return values

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TuneSettings:
        """Return the settings that `to_json` gave; raises `UserError` for those of another version."""
        return cls.from_record(checked(TuneRecord, record, "the record of the settings"))

    @classmethod
    def from_record(cls, record: TuneRecord) -> TuneSettings:
        """Return the settings that `to_record` gave; raises `UserError` for those of another version."""
        try:
            return cls(
                base=TrainConfig.model_validate(record.base),
                proxy=Size(**record.proxy),
                target=Size(**record.target),
                tuned=record.tuned,
                trials=record.trials,
                seeds=record.seeds,
                user_code=UserCode.from_json(record.user_code),
            )
        except (KeyError, TypeError, ValueError) as cause:
            if isinstance(cause, UserError):
                raise
            raise UserError(f"this is no tuning of this version ({describe(cause)}): tune again") from None

    @property
    def name(self) -> str:
        """The name of the tuning in a storage: equal settings are one study, wherever they run."""
        return f"loopscale-{trial_key(self.to_json())}"


def bounds(settings: TuneSettings) -> dict[str, tuple[float, float]]:
    """Return the range of each tuned value in search coordinates: octaves (log2) around the config's, warm-up as it is.

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
        "outer_lr": (math.log2(optim.outer_lr) - 2, math.log2(optim.outer_lr) + 5),
        "weight_decay": (decay - 3, decay + 3),
        "warmup": (0.0, 0.5),
        "batch": (-2.0, 2.0),
    }
    return {name: ranges[name] for name in settings.tuned}


def to_values(point: dict[str, float]) -> dict[str, float]:
    """Turn search coordinates into values of four digits each: what a config file would say."""
    return {name: float(f"{x if name == 'warmup' else 2.0**x:.4g}") for name, x in point.items()}


def to_point(values: dict[str, float]) -> dict[str, float]:
    """Reverse `to_values`."""
    return {name: value if name == "warmup" else math.log2(value) for name, value in values.items()}


def start(settings: TuneSettings) -> dict[str, float]:
    """Return where the search begins: the config's own values."""
    optim, model = settings.base.optim, settings.base.model
    known = {"lr": optim.lr, "outer_lr": optim.outer_lr, "strength": model.strength, "batch": 1.0}
    known["weight_decay"] = optim.weight_decay or 0.1
    values = {**known, "warmup": min(optim.warmup, 0.5)}
    return {name: values[name] for name in settings.tuned}
