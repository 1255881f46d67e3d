"""The residual branches of a foreign model, by convention or by glob, and the layers they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from loopscale.adapt.conventions import FAMILIES, Family
from loopscale.errors import UserError, nearest


@dataclass(frozen=True)
class Branch:
    """A module whose output is added to the stream (by way of linear steps), and the layer it belongs to.

    `visits`: how often it acts in a forward pass, where that is not N (1 for prelude and coda). `group` names the first of
    the modules that make one update together (experts).
    """

    name: str
    layer: str
    visits: int | None = None
    group: str = ""


def layer_of(model: nn.Module, name: str) -> str:
    """Return the layer of a branch: the innermost numbered module above it whose siblings are of its kind; else its parent.

    Siblings of another kind (T5's attention and MLP are numbered too) are parts of one layer, which is further out.
    """
    parts = name.split(".")
    numbered = [".".join(parts[: i + 1]) for i, part in enumerate(parts[:-1]) if part.isdigit()]
    for candidate in reversed(numbered):
        stack = model.get_submodule(candidate.rpartition(".")[0])
        if isinstance(stack, (nn.ModuleList, nn.Sequential)) and len({type(m) for m in stack.children()}) == 1:
            return candidate
    return numbered[-1] if numbered else ".".join(parts[:-1])


def by_convention(model: nn.Module) -> tuple[list[Branch], list[str]]:
    """Return the branches named as a known family names them, and the families recognised; empty when none is."""
    names = dict(model.named_modules())
    found: dict[str, Branch] = {}
    families: list[str] = []
    for name, module in names.items():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        for key, member in module.named_children():
            family = _family(member)
            if family is not None:
                families.append(family.name)
                for path in (path.lstrip("?") for path in family.branches):
                    if _has(member, path):
                        branch = f"{name}.{key}.{path}" if name else f"{key}.{path}"
                        found[branch] = Branch(branch, layer_of(model, branch))
    order = {name: place for place, name in enumerate(names)}
    return sorted(found.values(), key=lambda branch: order[branch.name]), list(dict.fromkeys(families))


def _family(layer: nn.Module) -> Family | None:
    needed = {family: [path for path in family.branches if not path.startswith("?")] for family in FAMILIES}
    return next((family for family, paths in needed.items() if all(_has(layer, path) for path in paths)), None)


def _has(layer: nn.Module, path: str) -> bool:
    for part in path.split("."):
        child = layer._modules.get(part)
        if child is None:
            return False
        layer = child
    return True


def by_glob(model: nn.Module, patterns: Sequence[str]) -> list[Branch]:
    """Return the modules whose names match one of the patterns (`*` also crosses dots).

    Raises `UserError` when a pattern matches nothing, or a branch inside another branch.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(f"the branch pattern {pattern!r} matches no module: {_hint(pattern, names)}")
        found.update(dict.fromkeys(matched))
    for name in found:
        outer = next((other for other in found if name.startswith(other + ".")), None)
        if outer is not None:
            raise UserError(
                f"branches= matches {outer!r} and {name!r} inside it, which would be scaled twice: name one"
            )
    return [Branch(name, layer_of(model, name)) for name in names if name in found]


def _hint(pattern: str, names: list[str]) -> str:
    """Return the nearest known last component, with the number of layers left out."""
    ends = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
    return nearest(pattern.rpartition(".")[2], ends)


def marked_once(branches: list[Branch], patterns: Sequence[str]) -> list[Branch]:
    """Mark the branches whose layer or name matches a pattern as visited once (prelude, coda).

    Raises `UserError` when a pattern matches no branch, or all of them.
    """
    for pattern in patterns:
        if not any(_outside(branch, [pattern]) for branch in branches):
            raise UserError(f"once= pattern {pattern!r} matches no branch: known: {branches[0].name}, ...")
    marked = [replace(branch, visits=1 if _outside(branch, patterns) else None) for branch in branches]
    if all(branch.visits == 1 for branch in marked):
        raise UserError("once= matches every branch: leave out the layers that are looped")
    return marked


def _outside(branch: Branch, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(branch.name, pattern) or fnmatchcase(branch.layer, pattern) for pattern in patterns)
