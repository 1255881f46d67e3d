"""What part a parameter plays: the rules speak of roles, and a model assigns them by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from loopscale.errors import UserError, closest, listed, nearest


class Role(str, Enum):
    """The part a parameter plays. A role belongs to a *name*, never to a tensor.

    Attributes on tensors are lost by deepcopy, `load_state_dict(assign=True)`, sharding and compilation.
    """

    EMBEDDING = "embedding"
    HIDDEN = "hidden"
    VISIT = "visit"
    READOUT = "readout"
    GAIN = "gain"
    OUTER_GAIN = "outer_gain"

    @classmethod
    def _missing_(cls, value: object) -> Role:
        raise UserError(f"{value!r} is no role: {nearest(str(value), [role.value for role in cls])}")

    @property
    def meaning(self) -> str:
        """One sentence for tables and error messages."""
        return MEANINGS[self]


MEANINGS = {
    Role.EMBEDDING: "maps tokens or positions into the stream; visited once",
    Role.HIDDEN: "a weight matrix (or convolution) of a residual branch",
    Role.VISIT: "a matrix applied once per visit, outside the layers, with a step of 1/N (an injection)",
    Role.READOUT: "maps the stream to logits; visited once",
    Role.GAIN: "a norm's gain or a bias inside a residual branch",
    Role.OUTER_GAIN: "a norm's gain or a bias outside the branches; visited once",
}


def check_roles(names: Iterable[str], roles: Mapping[str, Role]) -> dict[str, Role]:
    """Return the role of every name, in order; raises `UserError` naming what has no role, or roles without a parameter."""
    wanted = list(names)
    extra = sorted(set(roles) - set(wanted))
    if extra:
        parts = {".".join(name.split(".")[:end]) for name in wanted for end in range(1, name.count(".") + 2)}
        near = closest(extra[0], parts)
        fix = f"did you mean {near!r}?" if near else "remove or correct the name"
        raise UserError(f"roles= names {listed(extra)}, which the model does not have: {fix}")
    missing = [name for name in wanted if name not in roles]
    if missing:
        kinds = ", ".join(role.value for role in Role)
        raise UserError(f"no role for parameter {listed(missing)}: give each one of {kinds} in roles=")
    return {name: Role(roles[name]) for name in wanted}


def spread_roles(names: Mapping[str, int], roles: Mapping[str, Role]) -> dict[str, Role]:
    """Give the role of every parameter that `roles` covers; `names` maps each to its number of dimensions.

    A module's name stands for the parameters below it, for vectors as gains; the longer name wins.
    """
    known: dict[str, Role] = {}
    for key in sorted(roles, key=len):
        role = Role(roles[key])
        below = [name for name in names if name.startswith(f"{key}.")]
        vector = Role.GAIN if role in (Role.HIDDEN, Role.GAIN) else Role.OUTER_GAIN
        known.update({name: role if names[name] >= 2 else vector for name in below})
        if not below:
            known[key] = role
    return known


def starred(name: str) -> str:
    """Return a parameter's name with its numbers starred."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def role_lines(roles: Mapping[str, Role | str]) -> list[str]:
    """Return a line for each role and kind of name, numbers starred.

    >>> role_lines({"h.0.fc.weight": "hidden", "h.1.fc.weight": "hidden", "head.weight": "readout"})
    ['hidden      h.*.fc.weight', 'readout     head.weight']
    """
    return list(dict.fromkeys(f"{Role(role).value:12}{starred(name)}" for name, role in roles.items()))


# Words of a name's components outside the branches; `_IN`: anywhere in the name.
_ENTRY = frozenset(
    "stem tok token tokens pos position positions inp input inputs in_proj proj_in to_stream lift".split()
)
_ENTRY_IN = ("embed", "wte", "wpe", "patch", "cls_token", "class_token", "register", "tokenizer")
_EXIT = frozenset("head heads fc out output outputs logits to_logits proj_out out_proj decoder score unpatch".split())
_EXIT_IN = ("lm_head", "readout", "unembed", "classifier", "output_layer", "logit", "_head", "head_")
# Per-channel numbers that come as a table inside a branch: no matrix of a linear map.
_TABLES = ("a_log", "decay", "log_dt", "gamma", "layer_scale", "gate_logit")
# Biases of attention over relative positions, kept as a table.
_BIASES = ("relative_attention_bias", "relative_position_bias", "rel_pos_bias")


def role_by_name(name: str, vector: bool, inside: bool) -> Role | None:
    """Tell a parameter's role from its name; None for a matrix outside the layers whose name tells nothing.

    `vector` says that the parameter is no matrix, `inside` that it lies in the layers.

    >>> role_by_name("lm_head.weight", vector=False, inside=False).value
    'readout'
    """
    lowered = name.lower()
    if inside:
        last = lowered.rpartition(".")[2]
        table = any(word in last for word in _TABLES) or any(word in lowered for word in _BIASES)
        return Role.GAIN if vector or table else Role.HIDDEN
    parts = set(lowered.split("."))
    entry = bool(parts & _ENTRY) or any(word in lowered.replace("unembed", "") for word in _ENTRY_IN)
    leaves = bool(parts & _EXIT) or any(word in lowered for word in _EXIT_IN)
    if vector and not (entry and lowered.endswith("token")):
        return Role.OUTER_GAIN
    if entry == leaves:
        return None
    return Role.EMBEDDING if entry else Role.READOUT
