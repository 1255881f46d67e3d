"""What a torch call is, by its name, its frame and its values: what the tape asks of each before it notes it."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor
from torch._C import _functorch as functorch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_SHOWN = os.path.join(_TORCH, "nn", "modules") + os.sep
_HERE = os.path.dirname(__file__) + os.sep


@cache
def passes_on(file: str) -> bool:
    """Say whether a frame of this file only passes a call on: torch itself but its layers, and this package."""
    layer = file.startswith(_SHOWN) and not file.endswith(("module.py", "container.py"))
    return file.startswith((_TORCH, _HERE, "<")) and not layer


def out_of_vmap(tensor: Tensor) -> Tensor:
    """Return what a tensor within a `vmap` is a part of, the mapped axis first; any other as it is."""
    while functorch.is_batchedtensor(tensor):
        axis = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        tensor = tensor.movedim(axis, 0) if axis else tensor
    return tensor


def into_vmap(value: Tensor, like: Tensor) -> Tensor:
    """Return a value, as `out_of_vmap` gives it, as a tensor within the `vmap` of another."""
    if not functorch.is_batchedtensor(like):
        return value
    inner = into_vmap(value, functorch.get_unwrapped(like))
    made: Tensor = functorch._add_batch_dim(inner, 0, functorch.maybe_get_level(like))
    return made


def told_by_value(made: Tensor, sources: list[Tensor]) -> str:
    """Say what made a value of others: "add" where it is their sum to rounding, else "opaque"."""
    alike = [t for t in sources if t.shape == made.shape and t.is_floating_point()]
    if len(alike) == 2 and made.numel() and bool(alike[1].any()):
        total = alike[0].detach().double() + alike[1].detach().double()
        error = float((made.detach().double() - total).abs().max())
        if error <= 4 * torch.finfo(made.dtype).eps * float(total.abs().max()):
            return "add"
    return "opaque"


@cache
def in_place(name: str) -> bool:
    """Say whether a call changes its first argument: `add_`, `__iadd__`, `__setitem__`; `__invert__` is none of them."""
    dunder = name.startswith("__") and name.endswith("__")
    return name in _IN_PLACE if dunder else name.endswith("_")


PICKS = frozenset("__getitem__ select narrow unbind split chunk tensor_split index_select".split())
_IN_PLACE = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ifloordiv__ __ipow__ __imod__ __iand__ __ior__ "
    "__ixor__".split()
)
VIEWS = frozenset(
    "__getitem__ view narrow select __get__ transpose permute unsqueeze squeeze flatten chunk split unbind unflatten "
    "movedim swapaxes detach".split()
)
CASTS = frozenset("to type type_as bfloat16 half".split())
EXITS = frozenset("numpy __array__ tolist __dlpack__".split())
DECIDES = frozenset("__bool__ item __float__ __int__ __index__".split())
SPELT = frozenset({bool, int, float, str})
SILENT = frozenset(
    "size dim numel stride is_floating_point is_complex element_size tolist data_ptr __len__ __repr__ "
    "register_hook requires_grad_ backward storage_offset untyped_storage is_contiguous __hash__".split()
)
