"""The role of every leaf of a tree of parameters (Equinox, Flax, plain dicts), by its path."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from loopscale.errors import UserError, require
from loopscale.parameterization import Role, check_roles, role_by_name, spread_roles

_VECTORS = ("bias", "scale", "gain")


def labels(
    params: Any, roles: Mapping[str, Role | str] | None = None, inside: Collection[str] | None = None, stacked: int = 0
) -> Any:
    """Return a tree like `params` with the name of a role at every leaf, as `optax.multi_transform` wants it.

    A leaf is named by its path: `layers.0.mlp.up.weight`. `inside` names the parts that hold the layers (`("blocks",)`);
    without it a path with a number, as of a list of layers, lies in the layers. `stacked` counts the leading axes that
    such leaves have for `scan` over layers. `roles` states roles by path, or for all below a path.

    Raises `UserError` for a matrix outside the layers whose name tells no role, for a tree without layers, for an unknown
    path in `roles`, and when jax is missing.
    """
    tree = require("jax", "jax").tree_util
    leaves, shape = tree.tree_flatten_with_path(params)
    paths = [tree.keystr(path, simple=True, separator=".") for path, _ in leaves]
    if all(path.endswith(".value") for path in paths):  # Flax NNX: the array within a Param
        paths = [path.removesuffix(".value") for path in paths]
    layered = {path for path in paths if _lies_in(path, inside)}
    if not layered:
        raise UserError(
            f"no parameter lies in {inside or 'numbered layers'}: name the layers, such as inside=('blocks',)"
        )
    ranks = {
        path: _rank(path, leaf.ndim - stacked * (path in layered))
        for path, (_, leaf) in zip(paths, leaves, strict=True)
    }
    given = spread_roles(ranks, {path: Role(role) for path, role in (roles or {}).items()})
    told = {path: given.get(path) or role_by_name(path, ranks[path] < 2, path in layered) for path in paths}
    unknown = [path for path, role in told.items() if role is None]
    if unknown:
        raise UserError(
            f"cannot tell the role of {unknown[0]!r}, outside the layers: pass roles={{{unknown[0]!r}: ...}} with "
            "'embedding' for what maps the input into the stream, 'readout' for the stream to the output, 'hidden' for a "
            "layer's matrix"
        )
    checked = check_roles(paths, {**{path: role for path, role in told.items() if role}, **given})
    return shape.unflatten([checked[path].value for path in paths])


def _lies_in(path: str, inside: Collection[str] | None) -> bool:
    if inside is None:
        return any(part.isdigit() for part in path.split("."))
    return any(f".{part}." in f".{path}." for part in inside)


def _rank(path: str, axes: int) -> int:
    """Count the axes; a bias or gain is a vector however it is laid out (Flax: a bias per head and channel)."""
    return min(axes, 1) if path.rpartition(".")[2] in _VECTORS else axes
