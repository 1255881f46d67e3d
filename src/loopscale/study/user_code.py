"""A user model, or a Python objective, in the place of the house model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from loopscale.errors import UserError
from loopscale.parameterization import get_rule
from loopscale.train import Fit, TrainConfig, fingerprint, load_place, takes
from loopscale.train.training import make_task

Kind = Literal["model", "objective"]


@dataclass(frozen=True)
class UserCode:
    """A factory of models, or an objective, by place ("file.py:name"), with the fingerprint of its source.

    An objective is `objective(values) -> loss`, a smaller number being better, NaN or infinity meaning diverged; for
    `values` see `objective_values`. Its source's fingerprint enters every trial's key.
    """

    kind: Kind
    place: str
    fingerprint: str
    hears_rule: bool = True

    @classmethod
    def at(cls, place: str, kind: Kind = "model") -> UserCode:
        """Find it; raises `UserError` when the place names nothing usable."""
        load_place(place)
        hears = kind == "objective" or "rule" in takes(place)[0]
        return cls(kind, place, fingerprint(place), hears)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> UserCode | None:
        """Reverse `to_json`; None gives None. Raises `UserError` for what `to_json` does not give."""
        try:
            return None if record is None else cls(**record)
        except TypeError:
            raise UserError("a record is damaged at user_code: restore it, or name a new folder with --out") from None

    def refuse_start(self, rule: str) -> None:
        """Raise `UserError` for a pre-norm rule of other initial weights: a model has its own, so it would be `none`."""
        chosen = get_rule(rule)
        if self.kind == "model" and chosen.norm == "pre" and not chosen.keeps_start:
            raise UserError(
                f"rule {rule!r} is an initialisation, which {self.place} does itself: leave the rule out, or give your "
                f"model that start and compare two studies of rule none"
            )

    def refuse_deaf(self, strong: TrainConfig, weak: TrainConfig) -> None:
        """Raise `UserError` for a model whose loss and gradients are bitwise the same at two strengths: it ignores eps.

        A branch that starts at 0 gives one loss at any eps, and another gradient.
        """
        if self.kind == "model" and _first_step(strong.using(self.place)) == _first_step(weak.using(self.place)):
            raise UserError(
                f"{self.place} ignores its strength: loss and gradients are the same at strengths "
                f"{strong.model.strength:g} and {weak.model.strength:g}, so no rule reaches it: let its loop have rule and "
                "strength, or multiply its branches by residual_scale"
            )

    def check(self, base: TrainConfig, target: TrainConfig | None = None) -> dict[str, Any]:
        """Try a model once at the base size, before a folder is made; returns what provenance says of it.

        `warnings`, if any, say where the model applies something else than the plan, at `target` too.

        Raises `UserError` for whatever the user's code does wrong.
        """
        said: dict[str, Any] = {"source": self.place, "sha256": self.fingerprint}
        if self.kind == "objective":
            return said
        task = make_task(base.using(self.place))
        warnings = task.check(None if target is None else target.using(self.place))
        return {**said, **task.origin["model"], **({"warnings": warnings} if warnings else {})}


def _first_step(config: TrainConfig) -> list[bytes]:
    """Return loss and gradients of the first batch."""
    import torch

    from loopscale.train.task import to_device

    task = make_task(config)
    parameters = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
    loss = task.loss(task.network, to_device(task.batches(0), torch.device("cpu")), config.model.loops)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]
    return [each.float().contiguous().numpy().tobytes() for each in found]


def judged(place: str, config: TrainConfig) -> Fit:
    """Run one trial of an objective."""
    objective: Callable[[dict[str, Any]], Any] = load_place(place)[0]
    loss = objective(objective_values(config))
    try:
        number = float(loss)
    except (TypeError, ValueError):
        raise UserError(f"{place} returned {type(loss).__name__}: it must return a number, the loss") from None
    value = number if math.isfinite(number) else None
    steps = config.train.steps
    return Fit(value, None if value is not None else steps, steps=steps)


def objective_values(config: TrainConfig) -> dict[str, Any]:
    """Return what an objective is told: the size, the rate and strength, the seed, and every factor that the rule applies.

    `residual_scale` and, by role, `multipliers` ("hidden.lr", "hidden.adam_eps", ...) come from the rule at this size.

    >>> objective_values(TrainConfig())["residual_scale"]
    0.25
    """
    size, optim = config.model, config.optim
    multipliers = {row["name"]: row["value"] for row in config.prescription()}
    names = ("loops", "layers", "width", "rule", "strength", "base_layers", "base_width")
    return {
        **{name: getattr(size, name) for name in names},
        "lr": optim.lr,
        "weight_decay": optim.weight_decay,
        "warmup": optim.warmup,
        "optimizer": optim.optimizer,
        "batch_size": config.data.batch_size,
        "steps": config.train.steps,
        "seed": config.train.seed,
        "residual_scale": multipliers.pop("residual_scale"),
        "multipliers": multipliers,
    }
