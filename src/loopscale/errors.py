"""What a user's mistake looks like: one sentence with the fix; the command line exits with code 2."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar, cast

T = TypeVar("T")


class UserError(ValueError):
    """A mistake the caller can mend. The message is one sentence that says how."""


class MissingExtraError(UserError, ImportError):
    """An optional dependency is absent; the message names the extra that brings it."""


LONGEST = 300  # characters of a message, whatever the input was


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a message as one line: what does not print is escaped, and what is too long is cut in the middle.

    >>> one_line("a\\nb" + chr(27), 20), one_line("x" * 50, 12)
    ('a\\\\nb\\\\x1b', 'xxxxx .. xxx')
    """
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(text) <= longest:
        return text
    tail = longest // 3 - 1
    return f"{text[: longest - tail - 4]} .. {text[-tail:]}"


def first_line(error: BaseException, longest: int = 160) -> str:
    """Return the first line of what an exception says; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]


def describe(error: BaseException) -> str:
    """Return an exception as a short clause.

    >>> describe(KeyError("loops")), describe(KeyError())
    ("KeyError: 'loops'", 'KeyError')
    """
    kind, said = type(error).__name__, first_line(error, 200)
    return kind if said == kind else f"{kind}: {said}"


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Turn whatever code that is not ours raises inside, a script's `sys.exit` too, into a `UserError` of one sentence."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as cause:
        raise UserError(f"{what}: {describe(cause)}") from cause


def nearest(word: str, options: Iterable[str]) -> str:
    """Say which known word was probably meant, and list the choices.

    >>> nearest("loped", ["looped", "sqrt"])
    "did you mean 'looped'? known: looped, sqrt"
    >>> nearest("looped sqrt", ["looped", "sqrt"])
    'put commas between: looped,sqrt'
    """
    names, several = sorted(options), word.replace(";", " ").split()
    if len(several) > 1 and set(several) <= set(names):
        return f"put commas between: {','.join(several)}"
    close = closest(word, names)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def closest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant: one that holds the other, or differs in a third of the letters at most.

    >>> closest("--seed", ["--seeds", "--steps"]), closest("--target", ["--strengths"])
    ('--seeds', None)
    """
    shares = {name: _difference(*(re.sub(r"[^a-z0-9]", "", each.lower()) for each in (word, name))) for name in names}
    best = min(shares, key=lambda name: (shares[name], abs(len(name) - len(word)), name), default=None)
    return best if best is not None and shares[best] < 0.35 else None


def _difference(word: str, name: str) -> float:
    """Return the share of letters that differ: 0 where only their order does, a third at most if one holds the other."""
    short, long = sorted((word, name), key=len)
    if sorted(word) == sorted(name):
        return 0.0
    steps = difflib.SequenceMatcher(None, word, name).get_opcodes()
    changed = sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in steps if kind != "equal")
    return min(changed / max(len(long), 1), 0.34 if len(short) > 2 and short in long else 1.0)


def listed(names: Sequence[str]) -> str:
    """Quote at most four names.

    >>> listed("abcdef")
    "'a', 'b', 'c', 'd' and 2 more"
    """
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def expect(value: object, fits: bool, noun: str, fix: str) -> None:
    """Raise `UserError` for an argument of the wrong kind, such as the path of a config in the place of the config.

    >>> expect("a.toml", False, "a TrainConfig", "load_config(path) reads one")
    Traceback (most recent call last):
        ...
    loopscale.errors.UserError: expected a TrainConfig, got str: load_config(path) reads one
    """
    if not fits:
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise UserError(f"expected {noun}, got {got}: {fix}")


def between(noun: str, value: int, least: int, most: int) -> None:
    """Raise `UserError` for a count outside of its bounds.

    >>> between("seeds", 3, 1, 1000)
    """
    if not least <= value <= most:
        raise UserError(f"{noun} must be from {least} to {most:,}, not {value}")


def number(name: str, value: object, least: float, most: float = math.inf, whole: bool = False) -> Any:
    """Return the value; raise `UserError` unless it is a finite number, or a whole one, in [least, most].

    >>> number("loops", 8, 1, whole=True)
    8
    """
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not least <= cast(float, value) <= most or value == math.inf:
        bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise UserError(f"{name} must be a {'whole number' if whole else 'number'} {bounds}, got {value!r}")
    return value


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or raise `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtraError(
            f"this needs {module!r}, which is not installed: pip install 'loopscale[{extra}]'"
        ) from cause


def transformers() -> ModuleType:
    """Import transformers, or raise `UserError` when it is absent or older than 4.57: before, a cache cannot be looped."""
    module = require("transformers", "hf")
    version = str(getattr(module, "__version__", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (4, 57):
        raise UserError(
            f"transformers {version} is too old: loopscale works with 4.57 and newer, pip install -U 'loopscale[hf]'"
        )
    return module


def settings(kind: type[T], given: Mapping[str, Any], where: Callable[..., Any]) -> T:
    """Make a dataclass or a typed dict of the further keywords of a call.

    Raises `UserError` naming the nearest argument of the function for a keyword that it does not have.
    """
    known = kind.__dataclass_fields__ if dataclasses.is_dataclass(kind) else kind.__annotations__
    for name in given:
        if name not in known:
            named = [one.name for one in inspect.signature(where).parameters.values() if one.kind != one.VAR_KEYWORD]
            raise UserError(f"{where.__name__} has no keyword {name!r}: {nearest(name, {*named, *known} - {'self'})}")
    return kind(**given)


def spelt(kind: type[T]) -> type[T]:
    """Let the constructor of a dataclass say in one sentence which value is missing, or which name is not one of its own.

    >>> @spelt
    ... @dataclasses.dataclass
    ... class Depth:
    ...     loops: int
    >>> Depth(loop=4)
    Traceback (most recent call last):
        ...
    loopscale.errors.UserError: Depth has no value 'loop': did you mean 'loops'? known: loops
    """
    make: Callable[..., None] = kind.__init__

    @functools.wraps(make)
    def checked(self: T, *values: Any, **named: Any) -> None:
        try:
            make(self, *values, **named)
        except TypeError:
            signature = inspect.signature(make)
            known = [one for name, one in signature.parameters.items() if name != "self"]
            names = [one.name for one in known]
            for name in named:
                if name not in names:
                    raise UserError(f"{kind.__name__} has no value {name!r}: {nearest(name, names)}") from None
            absent = [one.name for one in known[len(values) :] if one.default is one.empty and one.name not in named]
            if absent:
                example = ", ".join(f"{one.name}=..." for one in known if one.default is one.empty)
                missing = " and ".join(absent)
                raise UserError(f"{kind.__name__} needs {missing}: {kind.__name__}({example})") from None
            raise

    setattr(kind, "__init__", checked)  # noqa: B010  (mypy knows no other way)
    return kind
