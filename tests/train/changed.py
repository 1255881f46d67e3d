"""A config with some values replaced."""

from __future__ import annotations

from typing import Any

from loopscale.train import TrainConfig, make_config


def changed(config: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    values = config.to_dict()
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return make_config(values)
