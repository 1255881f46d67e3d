"""What a tracker is: something that takes the numbers of a step, and closes."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.records import Provenance, read_record


@dataclass(frozen=True)
class Tracker:
    """Takes the finite numbers of one step after the other; each step comes once.

    `log(step, values)` keeps these numbers: safe from a kill when it returns, as far as the tracker can promise it.
    `close()` writes what is left.
    """

    log: Callable[[int, Mapping[str, float]], object]
    close: Callable[[], object]


@dataclass(frozen=True)
class Identity:
    """A run as trackers know it: its folder, a name, an id that a continuation shares, and its config."""

    run: Path
    name: str
    id: str
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where trackers keep their files: RUN/trackers."""
        return self.run / "trackers"


def identity(run: Path) -> Identity:
    """Read it from the folder of a run; damaged files make it poorer, never an error."""
    try:
        text = (run / "config.toml").read_text(encoding="utf-8")
        config = tomllib.loads(text)
    except (OSError, ValueError):
        text, config = "", {}
    try:
        date = read_record(run / "provenance.json", Provenance).date
    except UserError:
        date = ""
    digest = hashlib.sha256(f"{text}\n{date}".encode()).hexdigest()[:10]
    return Identity(run, f"{run.resolve().name}-{digest}", digest, config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in a line of metrics.jsonl: lists by index, tables by key, nulls and texts left out.

    >>> flat({"step": 3, "loss": 1.5, "val_loss": None, "stream_rms": [1.0, 2.0]})
    {'loss': 1.5, 'stream_rms/0': 1.0, 'stream_rms/1': 2.0}
    """
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            found |= flat({str(inner): part for inner, part in value.items()}, f"{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step":
            found[name] = float(value)
    return found
