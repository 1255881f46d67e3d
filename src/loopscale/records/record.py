"""Read and write one record: what does not fit its type, its schema or its seal is one sentence, never a traceback."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, FiniteFloat, ValidationError

from loopscale.errors import UserError
from loopscale.files import read_bounded, write_json

# Neither XML (SVG) nor a UTF-8 file can hold these, and a JSON string may spell any of them with an escape.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LONGEST = 120  # characters that a message repeats of what a file holds

Interval = tuple[FiniteFloat, FiniteFloat]
USER_CODE = AliasChoices("user_code", "own")  # the second in records of older versions


class Record(BaseModel):
    """A record, or a part of one. Unknown keys belong to a newer writer: they are kept and mean nothing here.

    A record that is a file of its own says its `SCHEMA`, the `OLDER` ones that it also reads (None: a record that names
    none), and the `FIX` for one that is damaged. On disk it carries a seal, a hash of everything else in it, so that a
    flipped byte is noticed; older schemas have no seal.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    SCHEMA: ClassVar[int] = 1
    OLDER: ClassVar[tuple[int | None, ...]] = ()
    FIX: ClassVar[str] = "write it again"


R = TypeVar("R", bound=Record)


def content_hash(value: Any) -> str:
    """Return the first 16 hex digits of SHA-256 over canonical JSON."""
    return _hash(_canonical(value))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: Record) -> dict[str, Any]:
    """Return the plain values of a record as a file holds them, with schema and seal."""
    body = {"schema": record.SCHEMA, **record.model_dump(mode="json", exclude_unset=True)}
    return {**body, "seal": content_hash(body)}


def write_record(path: Path, record: Record) -> None:
    """Write a record to `path` atomically, with schema and seal."""
    write_json(path, sealed(record))


def read_record(path: Path, model: type[R]) -> R:
    """Read a record of this or an older schema; raises `UserError` that names file, fault and fix."""
    return parse_record(read_json(path, model.FIX), model, str(path))


def parse_record(raw: dict[str, Any], model: type[R], name: str) -> R:
    """Check schema, types and seal of a record that messages call `name`; raises `UserError` as `read_record` does."""
    body = {key: value for key, value in raw.items() if key not in ("schema", "seal")}
    schema = raw.get("schema")
    if schema not in (model.SCHEMA, *model.OLDER) or isinstance(schema, (bool, float)):
        if type(schema) is int and schema > model.SCHEMA:
            raise UserError(f"{name} has schema {schema}, newer than the {model.SCHEMA} known here: upgrade loopscale")
        raise UserError(f"{name} has schema {str(schema)[:40]}, this version reads {model.SCHEMA}: {model.FIX}")
    try:
        text = _canonical({**body, "schema": schema})
    except (ValueError, RecursionError) as cause:  # a number beyond all floats, or nested deeper than Python goes
        raise UserError(f"{name} is damaged (no record holds such a value): {model.FIX}") from cause
    # In ASCII JSON whatever `clean` replaces is escaped, but for DEL: most records have nothing to look through.
    record = checked(model, clean(body) if "\\" in text or "\x7f" in text else body, name)
    if (schema == model.SCHEMA or "seal" in raw) and raw.get("seal") != _hash(text):
        raise UserError(f"{name} is damaged or was edited (its content does not fit its seal): {model.FIX}")
    return record


def checked(model: type[R], values: dict[str, Any], name: str | Path) -> R:
    """Return the values as a record; raises `UserError` that names the file, what does not fit, and the fix."""
    try:
        return model.model_validate(values)
    except ValidationError as cause:
        first = cause.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        what = first["msg"][:1].lower() + first["msg"][1:_LONGEST]
        raise UserError(f"{name} is damaged at {where} ({what}): {model.FIX}") from None


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object; raises `UserError`, ending in `fix`, when there is none."""
    try:
        text = read_bounded(path, 2**30)
    except OSError as cause:
        raise UserError(f"cannot read {path} ({cause.strerror}): {fix}") from cause
    except UnicodeDecodeError as cause:
        raise UserError(f"{path} is damaged (not UTF-8 text): {fix}") from cause
    return parse_json(text, str(path), fix)


def parse_json(text: str, name: str, fix: str) -> dict[str, Any]:
    """Parse a JSON object; raises `UserError`, ending in `fix`, for anything else, NaN and deep nesting included."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as cause:
        raise UserError(f"{name} is damaged (not valid JSON): {fix}") from cause
    if not isinstance(value, dict):
        raise UserError(f"{name} is damaged (it holds no JSON object): {fix}")
    return value


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted name.

    >>> flat({"train": {"steps": 120}, "seeds": [0, 1]})
    {'train.steps': 120, 'seeds': [0, 1]}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


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


def _refuse(constant: str) -> float:
    raise ValueError(constant)
