"""From a TOML file, `--set a.b=c` and `--from tuned.toml` to a `TrainConfig`, or one sentence that says what to change."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loopscale.errors import UserError, expect, nearest
from loopscale.files import read_bounded
from loopscale.train.config import TrainConfig


def load_config(path: str | Path, sets: Iterable[str] = (), *, user: bool = False) -> TrainConfig:
    """Read the TOML file at `path`, replace values by `sets` ("optim.lr=0.01"), and validate.

    `user`: each value alone, as `parse_values` does.

    Raises `UserError`, one sentence: an unreadable file, an unknown key (names the nearest), a refused value (key,
    value, what is allowed), or values that do not fit together.
    """
    expect(path, isinstance(path, (str, Path)), "the path of a TOML file", "make_config(values) takes values")
    return (parse_values if user else make_config)(read_toml(Path(path)), sets)


def make_config(values: Mapping[str, Any], sets: Iterable[str] = ()) -> TrainConfig:
    """Validate nested plain values after replacing some by `sets`; raises `UserError` as `load_config` does."""
    expect(values, isinstance(values, Mapping), "nested values", "load_config(path) reads a TOML file")
    config = parse_values(values, sets)
    if config.model.factory is None:
        config.network(vocab_size=256)
    return config


def parse_values(values: Mapping[str, Any], sets: Iterable[str] = ()) -> TrainConfig:
    """Validate each value alone: for a user model or an objective, to which the house model's combinations do not apply."""
    changed = copy.deepcopy(dict(values))
    for assignment in sets:
        _assign(changed, assignment)
    try:
        return TrainConfig.model_validate(changed)
    except ValidationError as problem:
        raise UserError(_sentence(problem)) from None


def stored_config(values: Mapping[str, Any], file: str, fix: str) -> TrainConfig:
    """Validate the config that a record holds, each value alone; raises `UserError` that names the file and the key."""
    try:
        return parse_values(values)
    except UserError as cause:
        raise UserError(f"{file} is damaged ({cause}): {fix}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; raises `UserError` when it is missing, not text, or not TOML."""
    try:
        return tomllib.loads(read_bounded(path))
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not a text file: give a config in TOML, such as one with the line 'model.loops = 4'"
        ) from None
    except tomllib.TOMLDecodeError as problem:
        model = f" (a model of yours is named by --model {path}:make_model)" if path.suffix == ".py" else ""
        raise UserError(f"{path} is not valid TOML: {_decapitalized(str(problem))}{model}") from None
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        if path.name.partition(":")[0].endswith(".py") and ":" in path.name:
            raise UserError(f"{path} is a model of yours, no config: name it by --model {path}") from None
        inside = next((path / name for name in ("tuned.toml", "config.toml") if (path / name).is_file()), None)
        if inside is not None:
            raise UserError(f"{path} is a folder, and a config is a file: name {inside}") from None
        raise UserError(
            f"cannot read the config {path} ({_decapitalized(reason)}): "
            "give a TOML file, such as one with the line 'model.loops = 4'"
        ) from None


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {assignment!r} is not of the form section.key=value, for example --set optim.lr=0.01")
    if len(parts) != 2:
        raise UserError(f"--set {key.strip()!r} is not section.key: {_hint(tuple(parts))}")
    section = values.setdefault(parts[0], {})
    if isinstance(section, dict):
        section[parts[1]] = _value(text.strip())


def _value(text: str) -> Any:
    """Read what was typed after `=` as a TOML value; bare words are text, so that quotes are not needed."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _sentence(problem: ValidationError) -> str:
    """Turn the first complaint into one sentence; an unknown key comes first, since it explains the others."""
    errors = sorted(problem.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
    error = errors[0]
    place = tuple(str(part) for part in error["loc"])
    name = ".".join(place[:2])
    if error["type"] == "extra_forbidden":
        return f"unknown config key {name!r}: {_hint(place)}"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    allowed = _decapitalized(error["msg"]).removeprefix("input should be ").replace("a valid integer", "a whole number")
    allowed = allowed.replace("a valid tuple", f"a list, such as [{json.dumps(error['input'], default=str)}]")
    number = isinstance(error["input"], str) and re.fullmatch(r"-?[\d.]+(e-?\d+)?", error["input"])
    if number and error["type"] in ("int_type", "float_type"):
        allowed += ", without quotes"
    if error["type"] == "model_type":
        return f"config section {name!r} must be a table of keys, not {shown}: write [{name}] and its keys below it"
    return f"config key {name!r} cannot be {shown}: it must be {allowed}"


def _hint(place: tuple[str, ...]) -> str:
    """Say which key was meant: the same word in another section, or the nearest in this one."""
    known = known_keys()
    section, leaf = (place[0], place[-1]) if len(place) > 1 else ("", place[0])
    elsewhere = [f"{name}.{leaf}" for name, keys in known.items() if leaf in keys]
    if elsewhere:
        return f"did you mean {elsewhere[0]!r}?"
    return nearest(leaf, known[section]) if section in known else nearest(place[0], known)


def known_keys() -> dict[str, list[str]]:
    """List the sections and the keys of each."""
    return {name: list(type(section).model_fields) for name, section in TrainConfig()}


def _decapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]


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
    mine, theirs = config.flat(), source.flat()
    return [
        f"{name} is {mine[name]}, the values were carried to {theirs[name]}: set that, or tune for yours to be sure"
        for name in ("train.steps", "data.batch_size", "data.path")
        if mine[name] != theirs[name]
    ]
