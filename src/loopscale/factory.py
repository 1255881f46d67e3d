"""What a factory of user models may ask for, read from its argument names alone: without torch, at once."""

from __future__ import annotations

import ast
from pathlib import Path

from loopscale.errors import UserError

OFFERED = (
    "loops, layers, width, vocab_size, context, seed, rule, strength, base_layers, base_width, residual_scale, "
    "output_multiplier"
)
REACHES = ("rule", "strength", "residual_scale")  # without one of these no rule reaches the model
LOOP = "ls.Loop(stack, loops, rule=rule, strength=strength, base_layers=base_layers)"
# The end of `--help`, where each blank line begins a paragraph.
CONTRACT = f"""
--model: the factory takes `loops`, and `rule` and `strength` (or `residual_scale`), by these names, such as
make_model(loops, layers, width, rule, strength, base_layers); it returns a torch.nn.Module and gives them to its loop,
{LOOP}. On offer: {OFFERED}.

Beside it the file may define make_batch(split, step, seed, batch_size), loss(model, batch) and roles(model).
"""


def heard(place: str, wanted: set[str], required: list[str], rule: bool = True) -> set[str]:
    """Give the names on offer among those that the factory wants; `required` are those without a default.

    `rule`: a rule must reach the model, as in a study that compares rules.

    Raises `UserError` when the factory takes no loops, when no rule can reach it, or when it needs something else.
    """
    known = set(OFFERED.split(", "))
    strange = [name for name in required if name not in known]
    if strange:
        raise UserError(f"{place} needs {strange[0]!r}, which is not on offer: give it a default; on offer: {OFFERED}")
    taken = wanted & known
    if "loops" not in taken:
        raise UserError(f"{place} takes no 'loops': let it take loops, layers and width, by these names")
    if rule and not taken & set(REACHES):
        raise UserError(
            f"{place} takes none of {', '.join(REACHES)}, so no rule reaches the model: let its loop have them, "
            f"{LOOP}, or take residual_scale, for branches that you multiply"
        )
    return taken


def peek(place: str, rule: bool = True) -> None:
    """Refuse, by its source alone, a factory that `heard` would refuse; pass where the source does not tell."""
    arguments = _arguments(place)
    if arguments is None:
        return
    by_position = [argument.arg for argument in arguments.args]
    by_name = [argument.arg for argument in arguments.kwonlyargs]
    required = by_position[: len(by_position) - len(arguments.defaults)]
    required += [key for key, default in zip(by_name, arguments.kw_defaults, strict=True) if default is None]
    heard(place, {*by_position, *by_name}, required, rule)


def own_sizes(place: str | None) -> tuple[str, ...]:
    """Give the factory's own defaults for layers and width, as `section.key=value`, where its source shows them as numbers.

    They are the size of the model as its author wrote it, where neither a config nor the command line says one.
    """
    arguments = _arguments(place) if place is not None else None
    if arguments is None:
        return ()
    last = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    defaults = [
        *zip(last, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return tuple(
        f"model.{argument.arg}={default.value}"
        for argument, default in defaults
        if argument.arg in ("layers", "width") and isinstance(default, ast.Constant) and type(default.value) is int
    )


def _arguments(place: str) -> ast.arguments | None:
    """Read the arguments of the factory from its source; None where that does not tell."""
    where, _, name = place.rpartition(":")
    path = Path(where if where.endswith(".py") else where.replace(".", "/") + ".py")
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    functions = [part for part in body if isinstance(part, ast.FunctionDef) and part.name == name]
    if not functions or functions[-1].decorator_list or functions[-1].args.kwarg or functions[-1].args.posonlyargs:
        return None
    return functions[-1].args
