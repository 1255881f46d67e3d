"""Roles of a stranger's model: right, or an error that names the parameter."""

import pytest
import torch
from torch import nn

from loopscale import (
    Depth,
    Loop,
    Role,
    ScaledResidual,
    ScaledUpdate,
    UserError,
    build_optimizer,
    param_groups,
    roles_of,
)

E, H, R, G, B = "embedding", "hidden", "readout", "gain", "outer_gain"


class Odd(nn.Module):
    """Names without numbers, a branch of tables and experts, a stem of convolutions, a bias table, a prelude."""

    def __init__(self, last="head", loops=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.prelude = ScaledResidual(nn.Linear(8, 8), nn.LayerNorm(8))
        self.core = Loop(Mixer(), loops, layers=1)
        self.norm = nn.LayerNorm(8)
        self.add_module(last, nn.Linear(8, 3))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.eps = ScaledUpdate()
        self.experts = nn.Parameter(torch.zeros(2, 8, 8))
        self.A_log = nn.Parameter(torch.zeros(8, 4))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
        self.bias_table = nn.Embedding(32, 2)
        self.out = nn.Linear(8, 8)


EXPECTED = {
    "cls_token": E,
    "stem.0.weight": E,
    "stem.0.bias": B,
    "stem.1.weight": B,
    "stem.1.bias": B,
    "prelude.branch.weight": H,
    "prelude.branch.bias": G,
    "prelude.norm.weight": G,
    "prelude.norm.bias": G,
    "core.stack.experts": H,
    "core.stack.A_log": G,
    "core.stack.layer_scale": G,
    "core.stack.bias_table.weight": E,
    "core.stack.out.weight": H,
    "core.stack.out.bias": G,
    "norm.weight": B,
    "norm.bias": B,
    "head.weight": R,
    "head.bias": B,
}


def test_every_parameter_gets_the_right_role():
    assert {name: role.value for name, role in roles_of(Odd()).items()} == EXPECTED


def test_groups_need_nothing_but_the_model():
    model = Odd()
    groups = {group["name"]: group for group in param_groups(model, lr=0.1)}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))
    assert set(groups) == {E, H, R, G, B}
    build_optimizer(model, "adamw", lr=0.1)


def test_the_rate_of_the_layers_is_that_of_the_loop():
    stack = nn.Sequential(*(ScaledResidual(nn.Linear(8, 8)) for _ in range(4)))
    groups = param_groups(Loop(stack, 8, base_layers=1), lr=0.1)
    assert groups[0]["name"] == "hidden" and groups[0]["lr"] == 0.05
    assert param_groups(Loop(stack, 8, base_layers=4), lr=0.1)[0]["lr"] == 0.1


def test_what_cannot_be_told_is_named():
    with pytest.raises(UserError, match=r"role of 'whatever.weight', outside the loop: pass roles=\{'whatever': ...\}"):
        roles_of(Odd(last="whatever"))
    assert roles_of(Odd(last="whatever"), {"whatever.weight": "readout"})["whatever.weight"] is Role.READOUT
    with pytest.raises(UserError, match=r"role of '0.weight', '2.weight', outside the loop"):
        roles_of(nn.Sequential(nn.Linear(8, 8), Odd().core, nn.Linear(8, 8)))


def test_a_map_onto_one_number_is_a_matrix():
    model = nn.ModuleDict({"lift": nn.Conv1d(1, 8, 1), "core": Odd().core, "out": nn.Linear(8, 1)})
    roles = roles_of(model)
    assert roles["lift.weight"] is Role.EMBEDDING and roles["out.weight"] is Role.READOUT


def test_a_modules_name_stands_for_what_is_below_it():
    roles = roles_of(Odd(), {"stem": "hidden", "stem.1": Role.OUTER_GAIN})
    assert roles["stem.0.weight"] is Role.HIDDEN and roles["stem.1.weight"] is Role.OUTER_GAIN
    assert roles["stem.0.bias"] is Role.GAIN and roles_of(Odd(), {"head": "readout"})["head.bias"] is Role.OUTER_GAIN


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: param_groups(Odd(), lr=0.1, roles={"hed.weight": Role.READOUT}), "'hed.weight'"),
        (lambda: param_groups(nn.Linear(2, 2), lr=0.1), "does not state its roles: pass roles="),
        (lambda: param_groups(nn.Linear(2, 2), lr=0.1, roles={"weight": "hidden"}), "no role for parameter 'bias'"),
        (lambda: param_groups(Odd(), lr=0.1, roles={"haed": "readout"}), "does not have: did you mean 'head'?"),
        (lambda: param_groups(Odd(), lr=0.1, roles={"stem": "embeding"}), "no role: did you mean 'embedding'?"),
        (lambda: param_groups(nn.Linear(2, 2), lr=0.1, roles={"weight": "hidden", "bias": "gain"}), "pass rule="),
        (lambda: param_groups(two_loops(2), lr=0.1), "different values of depth"),
    ],
)
def test_mistakes_get_one_sentence(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def two_loops(layers):
    def loop(count):
        return Loop(nn.Sequential(*(ScaledResidual(nn.Linear(4, 4)) for _ in range(count))), 2)

    return nn.ModuleList([loop(1), loop(layers)])


def test_loops_that_agree_and_a_depth_that_is_given():
    assert param_groups(two_loops(1), lr=0.1)[0]["lr"] == 0.1
    assert param_groups(two_loops(4), lr=0.1, depth=Depth(2, 4))[0]["lr"] == 0.05


class Plain(nn.Module):
    """A model of a stranger's: tables and a readout by any names, layers that add what their branch gives."""

    def __init__(self, names=("tok", "pos", "out"), loops=1, looped=False):
        super().__init__()
        self.names, self.loops = names, loops
        for name, part in zip(
            names, (nn.Embedding(50, 16), nn.Embedding(9, 16), nn.Linear(16, 50, bias=False)), strict=True
        ):
            self.add_module(name, part)
        layers = [Wide(ScaledUpdate() if looped else nn.Identity()) for _ in range(2)]
        self.layers = Loop(nn.ModuleList(layers), loops) if looped else nn.ModuleList(layers)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens):
        tok, pos, out = (getattr(self, name) for name in self.names)
        x = tok(tokens) + pos(torch.arange(tokens.shape[1]))
        if isinstance(self.layers, Loop):
            return out(self.norm(self.layers(x)))
        for _ in range(self.loops):
            for layer in self.layers:
                x = layer(x)
        return out(self.norm(x))


class Wide(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.norm, self.up, self.out, self.eps = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16), eps

    def forward(self, x):
        return x + self.eps(self.out(torch.relu(self.up(self.norm(x)))))


@pytest.mark.parametrize(
    "names",
    [
        ("tok", "pos", "out"),
        ("E", "P", "W"),
        ("positions", "table", "unembed"),
        ("a", "b", "embed_out"),
        ("x", "y", "decoder"),
    ],
)
def test_a_loop_attach_and_a_factory_tell_the_same_roles(names, tmp_path, capsys):
    from loopscale import attach
    from loopscale.optim.roles import tell_roles

    def outer(roles):
        return [roles[f"{name}.weight"].value for name in names]

    attached = Plain(names, loops=4)
    attach(attached, loops=4, batch=torch.zeros(1, 4, dtype=torch.long))
    factory, unsure = tell_roles(Plain(names))
    assert outer(roles_of(Plain(names, 4, looped=True))) == [E, E, R] and unsure == []
    assert outer(roles_of(attached)) == outer(factory) == [E, E, R]
    assert [roles_of(attached)[f"layers.0.{part}"].value for part in ("up.weight", "up.bias")] == [H, G]


def test_a_matrix_that_nothing_tells_is_hidden_and_named(capsys):
    from loopscale import attach

    model = Plain()
    model.pooler = nn.Linear(16, 16)
    attach(model, loops=4, batch=torch.zeros(1, 4, dtype=torch.long))
    assert roles_of(model)["pooler.weight"] is Role.HIDDEN
    assert (
        "cannot tell the role of 'pooler.weight', taken as hidden: state it with roles={...}" in capsys.readouterr().err
    )
    assert roles_of(model, {"pooler": "readout"})["pooler.weight"] is Role.READOUT


def test_a_table_of_biases_over_positions_is_no_embedding():
    from transformers import T5Config, T5ForConditionalGeneration

    from loopscale.optim.roles import tell_roles

    model = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2))
    roles, unsure = tell_roles(model)
    assert unsure == [] and roles["shared.weight"] is Role.EMBEDDING
    assert roles["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] is Role.GAIN


def test_a_prelude_of_looped_blocks_is_told_and_one_that_is_a_loop_of_its_own_is_told_how():
    class Block(nn.Module):
        def __init__(self, **scale):
            super().__init__()
            self.norm, self.mix, self.eps = nn.LayerNorm(8), nn.Linear(8, 8), ScaledUpdate(**scale)

        def forward(self, x):
            return x + self.eps(self.mix(self.norm(x)))

    core = Loop(nn.ModuleList([Block(), Block()]), loops=4)
    model = nn.ModuleDict({"first": Block(scale=0.5), "core": core, "head": nn.Linear(8, 2)})
    found = {name: role.value for name, role in roles_of(model).items() if not name.startswith("core")}
    assert found["first.mix.weight"] == "hidden" and found["first.norm.weight"] == "gain"
    assert found["head.weight"] == "readout"
    model["first"] = Loop(nn.ModuleList([Block()]), loops=1)
    with pytest.raises(UserError, match=r"or give blocks that run once no Loop but ScaledUpdate\(scale="):
        param_groups(model, lr=0.01)
