"""Nested state (an optimizer's) as JSON plus named tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split `value` into JSON and tensors; raises `TypeError` for what is neither tensor, container nor plain value.

    >>> pack({0: {"step": 3}})
    ({'dict': [[0, {'dict': [['step', 3]]}]]}, {})
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, "state", tensors), tensors


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: a checkpoint holds tensors, containers and plain values")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together what `pack` took apart; raises `KeyError` when a tensor is missing."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
