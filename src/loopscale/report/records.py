"""Read the records of a study folder, checked: what does not fit is one sentence, never a half-drawn page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat, PositiveInt, ValidationError, field_validator

from loopscale.errors import UserError

SCHEMA = 1

# Neither XML (SVG) nor a UTF-8 file can hold these, and a JSON string may spell any of them with an escape.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

Interval = tuple[FiniteFloat, FiniteFloat]


class Record(BaseModel):
    """A part of a record; unknown keys are a newer writer's business and are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Optimum(Record):
    """The fitted optimum at one number of loops: the learning rate, its interval, and the loss there (nats)."""

    lr: PositiveFloat
    lr_interval: Interval | None = None
    loss: FiniteFloat
    loss_interval: Interval | None = None
    n_seeds: int = 1
    edge: bool = False

    @field_validator("lr_interval", "loss_interval")
    @classmethod
    def _with_a_width(cls, ends: Interval | None) -> Interval | None:
        """An optimum at the edge has no interval; earlier versions wrote one without a width."""
        return None if ends is None or ends[0] == ends[1] else ends


class Point(Record):
    """One learning rate of the sweep: the mean loss and the loss of each seed; None says diverged."""

    lr: PositiveFloat
    loss: FiniteFloat | None
    losses: tuple[FiniteFloat | None, ...] = ()


class Applied(Record):
    """One number that the rule applied, and why."""

    name: str
    value: Any
    why: str = ""
    source: str = ""


class RuleRecord(Record):
    """The verdict on one rule and the numbers it rests on; the keys of the maps are loops."""

    claims_transfer: bool = False
    verdict: str
    sentence: str
    strength: FiniteFloat | None = None
    slope: FiniteFloat | None = None
    slope_interval: Interval | None = None
    regret: FiniteFloat | None = None
    regret_interval: Interval | None = None
    optima: dict[PositiveInt, Optimum] = {}
    points: dict[PositiveInt, tuple[Point, ...]] = {}
    applied: dict[PositiveInt, tuple[Applied, ...]] = {}

    @field_validator("optima", mode="before")
    @classmethod
    def _without_missing_optima(cls, optima: Any) -> Any:
        """Where every trial diverged there is no optimum: the writer may say so by null."""
        if not isinstance(optima, dict):
            return optima
        return {n: o for n, o in optima.items() if o and (not isinstance(o, dict) or o.get("lr", 0) is not None)}


class Result(Record):
    """result.json."""

    preset: str = ""
    own: str = ""
    sentence: str
    rules: dict[str, RuleRecord]
    strengths: tuple[FiniteFloat, ...] = ()
    loops: tuple[PositiveInt, ...]
    by_strength: dict[str, dict[PositiveInt, dict[float, Optimum]]] = {}
    provenance: dict[str, Any] = {}


class Cell(Record):
    """Where in the sweep a trial stands."""

    rule: str
    loops: PositiveInt
    lr: PositiveFloat
    strength: FiniteFloat | None = None
    seed: int


class Trial(Record):
    """trials/<key>.json, less its config and curve. A visit that overflowed has no RMS (None)."""

    cell: Cell
    loss: FiniteFloat | None
    diverged: bool
    stream_rms: dict[str, tuple[float | None, ...] | None] = {}


R = TypeVar("R", bound=Record)


def clean(value: Any) -> Any:
    """Replace characters that no file can hold by the replacement character, in every string of a JSON value.

    >>> clean({"a": ["b" + chr(0)]}) == {"a": ["b" + chr(0xFFFD)]}
    True
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object; raises `UserError`, ending in `fix`, when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise UserError(f"cannot read {path} ({cause.strerror}): {fix}") from cause
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{path} is damaged (not valid JSON): {fix}") from cause
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): {fix}")
    return clean(value)  # type: ignore[no-any-return]


def read_result(study_dir: Path) -> Result:
    """Read and check result.json.

    Raises `UserError` when the folder is no study, is unfinished, damaged, or of another schema.
    """
    path = study_dir / "result.json"
    if not study_dir.is_dir():
        raise UserError(f"there is no folder {study_dir}: give the folder that `loopscale transfer` wrote")
    if not path.exists():
        if (study_dir / "study.json").exists():
            raise UserError(f"the study in {study_dir} has no result yet: run `loopscale transfer` again to finish it")
        raise UserError(f"{study_dir} holds no result.json: give the folder that `loopscale transfer` wrote")
    fix = "run `loopscale transfer` again on this folder to rebuild it from its trials"
    raw = read_json(path, fix)
    _check_schema(path, raw.get("schema"))
    result = checked(Result, raw, path, fix)
    if not result.rules or not result.loops:
        raise UserError(f"{path} is damaged (it names no rule or no loops): {fix}")
    return result


def _check_schema(path: Path, schema: Any) -> None:
    if type(schema) is int and schema > SCHEMA:
        raise UserError(f"{path} has schema {schema}, newer than the {SCHEMA} known here: upgrade loopscale")
    if type(schema) is not int or schema != SCHEMA:
        raise UserError(
            f"{path} has schema {str(schema)[:40]}, this version reads {SCHEMA}: "
            "run `loopscale transfer` again on this folder to rebuild it from its trials"
        )


def read_trials(study_dir: Path) -> tuple[Trial, ...]:
    """Read every trial record, in the order of their keys; an absent trials folder gives none.

    Raises `UserError` for a damaged record, naming the file.
    """
    fix = "delete that file and run `loopscale transfer` again to repeat the trial"
    return tuple(
        checked(Trial, read_json(path, fix), path, fix)
        for path in sorted((study_dir / "trials").glob("*.json"))
        if not path.name.startswith(".")
    )


def checked(model: type[R], raw: dict[str, Any], path: Path, fix: str) -> R:
    """The record as a value; raises `UserError` that names the file, what does not fit, and `fix`."""
    try:
        return model.model_validate(raw)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{path} is damaged at {where} ({what}): {fix}") from None
