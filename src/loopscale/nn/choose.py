"""From what a config file can hold (a name, a table, a value) to a value of an option, or one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from loopscale.errors import UserError, nearest

T = TypeVar("T")


def choose(option: str, kinds: Iterable[type[T]], given: object) -> T:
    """Turn "poisson", {"kind": "poisson", "mean": 4} or a value into a value; each class states its `kind`.

    Raises `UserError` for an unknown kind or key, naming the nearest, and whatever the value's own check raises.
    """
    by_kind = {cast(Any, cls).kind: cls for cls in kinds}
    if isinstance(given, tuple(by_kind.values())):
        return cast(T, given)
    table: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"kind": given}
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in by_kind:
        raise UserError(f"{option} has no kind {kind!r}: {nearest(str(kind), by_kind)}")
    cls = by_kind[kind]
    known = [field.name for field in dataclasses.fields(cast(Any, cls)) if field.name != "kind"]
    for key in table:
        if key not in known:
            hint = nearest(str(key), known) if known else "it takes none"
            raise UserError(f"{option} of kind {kind!r} has no key {key!r}: {hint}")
    return cls(**table)
