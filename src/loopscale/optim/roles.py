"""The role of every parameter of a model that was not written for this package, found around its loops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from loopscale.errors import UserError, expect, listed
from loopscale.parameterization import Role, check_roles, role_by_name, spread_roles
from loopscale.speaker import named_handle, speaker, states_depth


def roles_of(model: nn.Module, roles: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Return the role of every parameter: `roles` where given, else what `model.roles()` states, else inferred.

    Both may name some parameters only, or modules, for all parameters below them. A tied readout is the embedding under
    a second name: one parameter with one role, that of the embedding unless `roles` says otherwise.

    Inferred: inside a `Loop`, below a residual branch with a scale, or in a block like those of a loop (a prelude, a
    coda), matrices are hidden, vectors gains, the weights of `nn.Embedding` embeddings. Elsewhere, by module
    (`nn.Embedding`; an `nn.Linear` back onto its rows is the readout), then by name (`stem`, `patch_embed`, `tok`;
    `head`, `classifier`, `fc`). Print the result: a guess wants eyes.

    Raises `UserError` naming a parameter that cannot be told, or a name in `roles` that the model does not have.

    >>> from loopscale.nn import Loop, ScaledResidual
    >>> core = Loop(nn.Sequential(ScaledResidual(nn.Linear(8, 8))), loops=4)
    >>> model = nn.ModuleDict({"stem": nn.Linear(3, 8), "core": core, "head": nn.Linear(8, 2)})
    >>> {name: role.value for name, role in roles_of(model).items() if name.endswith("weight")}
    {'stem.weight': 'embedding', 'core.stack.0.branch.weight': 'hidden', 'head.weight': 'readout'}
    """
    expect(model, hasattr(model, "named_parameters"), "a torch.nn.Module", "roles need names, pass the model itself")
    expect(roles, roles is None or isinstance(roles, Mapping), "a dict of roles", "such as roles={'head': 'readout'}")
    names = {name: parameter.ndim for name, parameter in model.named_parameters()}
    tied = tied_names(model)
    asked = {tied.get(name, tied.get(f"{name}.weight", name)): role for name, role in (roles or {}).items()}
    given = {**spread_roles(names, _stated_roles(model)), **spread_roles(names, asked)}
    inferred = _inferred(model, given) if len(given) < len(names) else {}
    return check_roles(names, {**inferred, **given})


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return every further name of a parameter and the one it is listed under, whose role it has."""
    first: dict[int, str] = {}
    further = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            further[name] = first[id(parameter)]
    return further


def _stated_roles(model: nn.Module) -> dict[str, Role]:
    """Return what the model or its handle states; a handle knows the names below the part it is on."""
    own: Any = getattr(speaker(model), "roles", None)
    stated: dict[str, Role] = own() if callable(own) else {}
    place = (named_handle(model) or ("",))[0]
    if not place:
        return stated
    inside = [name for name, _ in model.named_parameters() if name.startswith(f"{place}.")]
    return {**tell_roles(model, inside)[0], **{f"{place}.{name}": role for name, role in stated.items()}}


def tell_roles(model: nn.Module, inside: Collection[str] | None = None) -> tuple[dict[str, Role], list[str]]:
    """Return roles of a model without a `Loop`, told by modules, then by names.

    And the matrices that neither tells: hidden.

    `inside` names the parameters in the layers; by default those with a numbered component (`layers.3.`). Blocks that are
    built like a layer, such as a prelude's, count as layers.
    """
    names = [name for name, _ in model.named_parameters()]
    numbered = {name for name in names if any(part.isdigit() for part in name.split("."))}
    told = _told(model, _with_alike(model, numbered if inside is None else inside))
    unsure = [name for name, role in told.items() if role is None]
    return {name: role or Role.HIDDEN for name, role in told.items()}, unsure


def _with_alike(model: nn.Module, inside: Collection[str]) -> set[str]:
    """Add the parameters of blocks elsewhere that have the class and the shapes of a whole layer."""
    blocks = {
        name: module for name, module in model.named_modules() if not type(module).__module__.startswith("torch.nn")
    }
    shapes = {
        name: tuple((n, p.shape) for n, p in module.named_parameters()) for name, module in blocks.items() if name
    }
    known, within = set(inside), tuple[str, ...]()
    layers = set()
    for name, shape in shapes.items():
        if shape and not name.startswith(within) and all(f"{name}.{own}" in known for own, _ in shape):
            layers.add((type(blocks[name]), shape))
            within += (f"{name}.",)
    alike = [name for name, shape in shapes.items() if (type(blocks[name]), shape) in layers]
    return known | {f"{name}.{own}" for name in alike for own, _ in shapes[name]}


def _inferred(model: nn.Module, given: Mapping[str, Role]) -> dict[str, Role]:
    inside = _inside(model)
    if not inside:
        if given:
            return {}
        raise UserError(_unstated(model))
    told = {name: role for name, role in _told(model, inside).items() if name not in given}
    unknown = [name for name, role in told.items() if role is None]
    if unknown:
        raise UserError(_untold(unknown))
    return {name: role for name, role in told.items() if role is not None}


def _told(model: nn.Module, inside: Collection[str]) -> dict[str, Role | None]:
    """Return the role of every parameter.

    None for a matrix outside the layers that neither its module nor its name tells.
    """
    holders = dict(model.named_modules())
    tables = {tuple(m.weight.shape) for m in holders.values() if isinstance(m, nn.Embedding)}
    found: dict[str, Role | None] = {}
    for name, parameter in model.named_parameters():
        holder = holders[name.rpartition(".")[0]]
        # A vector in more axes (a gain of shape C x 1 x 1); a linear map onto one number is a matrix all the same.
        flat = parameter.ndim < 2 or (parameter.numel() == max(parameter.shape) and not name.endswith("weight"))
        within, shape = name in inside, tuple(parameter.shape)
        back = isinstance(holder, nn.Linear) and shape in tables and len({*shape}) > 1  # onto the rows of an embedding
        if back and not within and not flat:
            found[name] = Role.READOUT
        else:
            role = role_by_name(name, flat, within)
            table = isinstance(holder, (nn.Embedding, nn.EmbeddingBag)) and not (within and role is Role.GAIN)
            found[name] = Role.EMBEDDING if table else role
    return found


def _inside(model: nn.Module) -> set[str]:
    """Return names of parameters in a loop, in a branch that holds a scale, or in a block of a looped block's class."""
    found: set[str] = set()
    loops = [module for module in model.modules() if module is not model and states_depth(module)]
    blocks = {type(block) for loop in loops for block in getattr(loop, "stack", loop).children()}
    blocks = {block for block in blocks if not block.__module__.startswith("torch.nn")}
    for prefix, module in model.named_modules():
        if (module is not model and states_depth(module)) or hasattr(module, "set_scale") or type(module) in blocks:
            found |= {f"{prefix}.{name}".strip(".") for name, _ in module.named_parameters(remove_duplicate=False)}
    if not found and states_depth(model):
        found = {name for name, _ in model.named_parameters()}
    return found


def _unstated(model: nn.Module) -> str:
    """Show the format of roles= in the model's own names: what is first, what is in the middle, what is last."""
    own = [name for name, part in model.named_children() if next(part.parameters(), None) is not None]
    own = own or [name for name, _ in model.named_parameters()]
    shown = list(dict.fromkeys([*own[:2], *own[-1:]]))
    told = {name: (role_by_name(f"{name}.weight", False, False) or Role.HIDDEN).value for name in shown}
    return (
        f"{type(model).__name__} does not state its roles: pass roles={told} and so on (a module's name stands for all "
        "below it), or call attach(model, loops=N) first, or put a Loop inside"
    )


def taken_as_hidden(names: Sequence[str], how: str) -> str:
    """Say what to say of matrices outside the layers that nothing tells; `how` is where roles can be stated."""
    told = f"cannot tell the role of {listed(names)}, taken as hidden"
    return f"{told}: state it with {how} if it maps into or out of the stream"


def _untold(names: list[str]) -> str:
    one = names[0].rpartition(".")[0] or names[0]
    return (
        f"cannot tell the role of {listed(names)}, outside the loop: pass roles={{{one!r}: ...}} (or let roles(model) "
        "beside the factory return it; a module's name stands for all below it) with 'embedding' for what maps the input "
        "into the stream, 'readout' for the stream to the output, 'hidden' for a layer's matrix"
    )
