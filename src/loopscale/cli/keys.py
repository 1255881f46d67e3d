"""Every key of a training's config with its default, unit and meaning: for `train --keys` and the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from loopscale.teaching import key_rows
from loopscale.train import TrainConfig


@dataclass(frozen=True)
class Key:
    """One key; `default` as TOML writes it, "" where it is absent."""

    name: str
    default: str
    kind: str
    unit: str
    meaning: str


def keys() -> list[Key]:
    """List the keys section by section, in the order of the config."""
    told = {row["name"]: row for row in key_rows()}
    found = []
    for section, field in TrainConfig.model_fields.items():
        part: Any = field.annotation
        for name, inner in part.model_fields.items():
            row = told[f"{section}.{name}"]
            kind = _kind(inner.annotation)
            found.append(Key(row["name"], _toml(inner.default), kind, row.get("unit", ""), row["title"]))
    return found


def table() -> str:
    """Format the keys for a terminal, a section at a time."""
    lines: list[str] = []
    for key in keys():
        section, _, name = key.name.partition(".")
        if f"[{section}]" not in lines:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        assigned = f"{name} = {key.default}" if key.default else f"# {name}"
        unit = f" ({key.unit})" if key.unit else ""
        lines.append(f"{assigned:<32}# {key.meaning}{unit}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    import tomli_w

    if value is None:
        return ""
    written = tomli_w.dumps({"x": list(value) if isinstance(value, tuple) else value}, multiline_strings=False)
    return " ".join(written.removeprefix("x = ").split()).replace("[ ", "[").replace(", ]", "]").replace(",]", "]")


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not NoneType)
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "table", tuple: "list"}
    return names.get(get_origin(annotation) or annotation, str(annotation))
