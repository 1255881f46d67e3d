"""What part a parameter plays: the rules speak of roles, and a model assigns them by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from loopscale.errors import UserError, nearest


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
    """Return the role of every name, in the order of `names`.

    Raises `UserError` naming the parameters without a role, or the roles without a parameter.
    """
    wanted = list(names)
    missing = [name for name in wanted if name not in roles]
    if missing:
        kinds = ", ".join(role.value for role in Role)
        raise UserError(f"no role for parameter {_listed(missing)}: give each one of {kinds} in roles=")
    extra = sorted(set(roles) - set(wanted))
    if extra:
        raise UserError(f"roles= names {_listed(extra)}, which the model does not have: remove or correct the name")
    return {name: Role(roles[name]) for name in wanted}


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


_EMBEDDING = ("embed", "wte", "wpe", "tok_emb", "pos_emb", "word_embeddings", "cls_token", "patch")
_READOUT = ("lm_head", "readout", "unembed", "output_layer", "classifier", "score", "head.weight", "head.bias")
# Two-dimensional by layout, not by role: a state-space model's decay rates, tables of biases over relative positions.
_TABLES = ("a_log", "relative_attention_bias", "relative_position_bias", "rel_pos_bias")


def infer_roles(dimensions: Mapping[str, int], in_branch: Iterable[str] | None = None) -> dict[str, Role]:
    """Guess the role of each parameter of a foreign model from its name and number of dimensions.

    `dimensions` maps a parameter's name to `tensor.ndim`. `in_branch` names the parameters inside the layers; when
    absent, a name with a numbered component (`layers.3.`) counts as inside. Print the result: a guess wants eyes.

    >>> infer_roles({"wte.weight": 2, "h.0.mlp.up.weight": 2, "h.0.ln.weight": 1, "ln_f.weight": 1})["ln_f.weight"].value
    'outer_gain'
    """
    inside = None if in_branch is None else set(in_branch)
    return {
        name: _infer(name, ndim, _numbered(name) if inside is None else name in inside)
        for name, ndim in dimensions.items()
    }


def _numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _infer(name: str, ndim: int, inside: bool) -> Role:
    lowered = name.lower()
    if not inside and any(mark in lowered for mark in _READOUT):
        return Role.READOUT if ndim >= 2 else Role.OUTER_GAIN
    if not inside and any(mark in lowered for mark in _EMBEDDING):
        return Role.EMBEDDING if ndim >= 2 else Role.OUTER_GAIN
    if ndim >= 2 and not (inside and any(mark in lowered for mark in _TABLES)):
        return Role.HIDDEN
    return Role.GAIN if inside else Role.OUTER_GAIN
