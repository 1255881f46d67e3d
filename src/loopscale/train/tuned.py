"""`--from tuned.toml`: the tuned values on top of a config of any size."""

from __future__ import annotations

from pathlib import Path

from loopscale.errors import UserError
from loopscale.train.config import TrainConfig
from loopscale.train.load import load_config, make_config

CARRIED = {
    "model": ("rule", "strength", "base_layers", "base_width"),
    "optim": ("lr", "weight_decay", "warmup"),
}


def with_tuned(config: TrainConfig, tuned: Path) -> tuple[TrainConfig, list[str]]:
    """Return the config with the rule, strength, bases, rate, decay and warm-up of `tuned`, and what to beware of.

    Everything else is the config's own: loops, layers and width enter through the rule, relative to the tuned bases.

    Raises `UserError` when the optimizers differ, or the model is smaller than what was tuned.
    """
    source = load_config(tuned)
    if source.optim.optimizer != config.optim.optimizer:
        raise UserError(
            f"{tuned} was tuned with {source.optim.optimizer} and the config trains with {config.optim.optimizer}: "
            f"tune again, or set optim.optimizer"
        )
    for axis, base in (("layers", source.model.base_layers), ("width", source.model.base_width)):
        if base is not None and getattr(config.model, axis) < base:
            raise UserError(
                f"the config has {axis} = {getattr(config.model, axis)}, fewer than the {base} tuned at: tune smaller"
            )
    record = config.model_dump(mode="json", exclude_none=True)
    for section, names in CARRIED.items():
        values = source.model_dump(mode="json", exclude_none=True)[section]
        record[section].update({name: values[name] for name in names if name in values})
    return make_config(record), _beware(config, source)


def _beware(config: TrainConfig, source: TrainConfig) -> list[str]:
    """Return what the tuned rate was not carried to."""
    said = []
    pairs = (
        ("train.steps", config.train.steps, source.train.steps),
        ("data.batch_size", config.data.batch_size, source.data.batch_size),
        ("data.path", config.data.path, source.data.path),
    )
    for name, mine, theirs in pairs:
        if mine != theirs:
            said.append(
                f"{name} is {mine}, the values were carried to {theirs}: set that, or tune for yours to be sure"
            )
    return said
