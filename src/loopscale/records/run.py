"""Type the records of a run folder: provenance.json and the lines of metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, FiniteFloat, PositiveInt

from loopscale.errors import UserError
from loopscale.records.record import Record, checked, clean, content_hash, parse_json

_FIX = "restore it, or train again into another folder"


class Provenance(Record):
    """provenance.json: where a run comes from. `config` is the hash of config.toml at the last start of a training.

    `model` describes a user model: its place, the hash of its code, its roles. `precision` is what `train.precision`
    became and why. `tied_entry`: in a run of the house model with a tied readout, the factor on its embedding.
    `resumed` has one entry for each continuation; records of version 0.3 carry no schema.
    """

    OLDER: ClassVar[tuple[int | None, ...]] = (None,)
    FIX: ClassVar[str] = _FIX

    torch: str = "not recorded"
    date: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    precision: dict[str, Any] = Field(default_factory=dict)
    config: str | None = None
    tied_entry: FiniteFloat | None = None
    resumed: tuple[dict[str, Any], ...] = ()


class Step(Record):
    """One line of metrics.jsonl; what was not finite is null. Each line carries its own seal, older ones have none."""

    FIX: ClassVar[str] = _FIX

    step: PositiveInt
    loss: FiniteFloat | None = None
    val_loss: FiniteFloat | None = None
    lr: FiniteFloat | None = None
    grad_norm: FiniteFloat | None = None
    stream_rms: tuple[FiniteFloat | None, ...] | None = None


def step_line(values: dict[str, Any]) -> str:
    """Return the text of a line of metrics.jsonl, with its seal."""
    return json.dumps({**values, "seal": content_hash(values)}, allow_nan=False) + "\n"


def read_steps(path: Path, *, last: int | None = None) -> list[dict[str, Any]]:
    """Read metrics.jsonl, at most `last` lines, without a cut-off one; raises `UserError` naming the first damaged."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise UserError(f"cannot read {path} ({cause.strerror}): {_FIX}") from cause
    steps: list[dict[str, Any]] = []
    for number, text in enumerate(texts[:last], start=1):
        if number == len(texts) and not text.endswith("\n"):
            break
        steps.append(_step(text, f"{path} at line {number}"))
        if steps[-1]["step"] != steps[0]["step"] + number - 1:
            raise UserError(f"{path} is damaged at line {number} (a step is missing or there twice): {_FIX}")
    return steps


def _step(text: str, name: str) -> dict[str, Any]:
    values = parse_json(text, name, _FIX)
    seal = values.pop("seal", None)
    checked(Step, values, name)
    if seal is not None and seal != content_hash(values):
        raise UserError(f"{name} is damaged or was edited (its content does not fit its seal): {_FIX}")
    return dict(clean(values))
