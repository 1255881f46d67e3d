"""loopscale.optax: the groups of `param_groups`, by label; flat over loops on Equinox and Flax; no torch."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from loopscale import errors
from loopscale.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "jax"


def without(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_it_imports_neither_torch_nor_jax():
    done = without(
        "import sys, loopscale.optax as lo; scaling = lo.Scaling(lo.Depth(8, 4)); print(scaling.at(16).eps, "
        "lo.groups(scaling, 0.01)['hidden'].lr); assert not {'torch', 'jax', 'optax', 'numpy'} & set(sys.modules)"
    )
    assert done.stdout == "0.03125 0.005\n", done.stderr


def test_without_jax_there_is_a_sentence(monkeypatch):
    import loopscale.optax as lo

    monkeypatch.setattr(errors.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(UserError, match=r"this needs 'jax', which is not installed: pip install 'loopscale\[jax\]'"):
        lo.labels({})


@pytest.fixture(scope="module")
def lo():
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    import loopscale.optax

    return loopscale.optax


@pytest.fixture(scope="module")
def network():
    import loopscale as ls

    return ls.LoopedTransformer(ls.ModelConfig(vocab_size=16, width=32, layers=2, loops=4, prelude=1, base_layers=1))


def as_tree(network):
    """The torch model's parameters as a tree of the same paths."""
    tree: dict = {}
    for name, parameter in network.named_parameters():
        *folders, last = name.split(".")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = parameter.detach().numpy()
    return tree


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("rule", ["looped", "depth-mup"])
def test_the_groups_are_those_of_param_groups(lo, network, rule, optimizer):
    import jax

    import loopscale as ls

    given = {"rule": rule, "width": ls.Width(32, 8), "base_layers": 1}
    torchs = ls.param_groups(network, lr=0.01, weight_decay=0.05, optimizer=optimizer, **given)
    ours = lo.groups(lo.Scaling(network.depth, **given), 0.01, weight_decay=0.05, optimizer=optimizer)
    leaves, _ = jax.tree_util.tree_flatten_with_path(lo.labels(as_tree(network)))
    told = {jax.tree_util.keystr(path, simple=True, separator="."): label for path, label in leaves}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in torchs:
        mine = ours[group["name"]]
        assert (mine.lr, mine.weight_decay, mine.eps) == (group["lr"], group["weight_decay"], group["eps"])
        assert {told[names[id(p)]] for p in group["params"]} == {group["name"]}
    assert len(told) == sum(len(group["params"]) for group in torchs)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_three_steps_are_torchs(lo, network, optimizer):
    import copy

    import jax
    import numpy as np
    import optax
    import torch

    import loopscale as ls

    model = copy.deepcopy(network)
    params = jax.tree.map(np.array, as_tree(model))
    theirs = ls.build_optimizer(model, optimizer, lr=0.01, weight_decay=0.1)
    ours = lo.groups(lo.Scaling(model.depth, rule=model.rule, base_layers=1), 0.01, optimizer=optimizer)
    transform = lo.multi_transform(lo.labels(params), ours, {"adamw": lo.adamw, "sgd": lo.sgd}[optimizer])
    state = transform.init(params)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradients = copy.deepcopy(model)
        for parameter, twin in zip(model.parameters(), gradients.parameters(), strict=True):
            twin.data = parameter.grad.clone()
        updates, state = transform.update(as_tree(gradients), state, params)
        params = optax.apply_updates(params, updates)
        theirs.step()
    for (path, ours_), theirs_ in zip(
        jax.tree_util.tree_flatten_with_path(params)[0],
        jax.tree_util.tree_leaves(as_tree(model)),
        strict=True,
    ):
        np.testing.assert_allclose(ours_, theirs_, atol=2e-6, err_msg=str(path))


def test_labels_know_flax_equinox_and_stacked_layers(lo):
    import numpy as np

    tree = {
        "embed": {"embedding": np.zeros((16, 8))},
        "blocks": {"attn": {"kernel": np.zeros((2, 8, 2, 4)), "bias": np.zeros((2, 2, 4))}, "gain": np.zeros((2, 8))},
        "lm_head": {"kernel": np.zeros((8, 16))},
        "memory": {"kernel": np.zeros((8, 8)), "bias": np.zeros(8)},
    }
    with pytest.raises(UserError, match="no parameter lies in numbered layers: name the layers, such as inside="):
        lo.labels(tree)
    with pytest.raises(UserError, match=r"cannot tell the role of 'memory.kernel', outside the layers: pass roles="):
        lo.labels(tree, inside=("blocks",), stacked=1)
    with pytest.raises(UserError, match="roles= names 'memori'"):
        lo.labels(tree, inside=("blocks",), stacked=1, roles={"memory": "hidden", "memori": "hidden"})
    told = lo.labels(tree, inside=("blocks",), stacked=1, roles={"memory": "hidden"})
    assert told == {
        "embed": {"embedding": "embedding"},
        "blocks": {"attn": {"kernel": "hidden", "bias": "gain"}, "gain": "gain"},
        "lm_head": {"kernel": "readout"},
        "memory": {"kernel": "hidden", "bias": "gain"},
    }


def test_mistakes_get_a_sentence(lo):
    scaling = lo.Scaling(lo.Depth(8, 4))
    with pytest.raises(UserError, match="lr must be a positive number or a schedule, got 0"):
        lo.groups(scaling, 0)
    with pytest.raises(UserError, match="depth must be a Depth, got 8"):
        lo.Scaling(8)
    with pytest.raises(UserError, match="groups needs a Scaling, got Depth"):
        lo.groups(lo.Depth(8, 4), 0.01)
    with pytest.raises(UserError, match="label 'other' has no group: labels are the names of roles, embedding, hidden"):
        lo.multi_transform({"w": "other"}, lo.groups(scaling, 0.01))
    with pytest.raises(UserError, match="try \\(1, 2, 4, 8\\)"):
        lo.check_parameterization(lambda params, batch, loops: 0, {}, None, loops=(4,))
    with pytest.raises(UserError, match="forward returned int: it returns the stream, an array, or the pair"):
        lo.check_parameterization(lambda params, batch, loops: 0, {"w": 1.0}, None)


def test_an_outer_rate_moves_what_is_visited_once_and_not_its_decay(lo):
    plain, outer = (lo.groups(lo.Scaling(lo.Depth(8, 4), outer_lr=factor), 0.01) for factor in (1.0, 4.0))
    for name, factor in (("embedding", 4), ("readout", 4), ("outer_gain", 4), ("hidden", 1), ("gain", 1), ("visit", 1)):
        assert outer[name].lr == factor * plain[name].lr
        assert outer[name].lr * outer[name].weight_decay == plain[name].lr * plain[name].weight_decay
    with pytest.raises(UserError, match="outer_lr must be a positive number"):
        lo.groups(lo.Scaling(lo.Depth(8, 4), outer_lr=0.0), 0.01)


def test_a_schedule_keeps_its_shape(lo):
    made = lo.groups(lo.Scaling(lo.Depth(8, 4)), lambda step: 0.01 * step)
    assert made["hidden"].lr(2) == 0.01 and made["embedding"].lr(2) == 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["equinox", "nnx"])
def test_an_example_is_flat_over_loops(lo, name, monkeypatch):
    pytest.importorskip({"equinox": "equinox", "nnx": "flax"}[name])
    names = runpy.run_path(str(EXAMPLES / f"{name}_loop.py"))
    found = names["main"]()
    assert found.passed and abs(found.slopes["change_first"]) < 0.05
    params, forward = names["make"]()

    def unscaled(params, pairs, loops):
        return forward(params, pairs, loops)[0] * loops

    assert not lo.check_parameterization(unscaled, params, names["batch"](), loops=(1, 4), steps=1).passed


@pytest.mark.slow
def test_tune_takes_the_objective(lo, tmp_path):
    pytest.importorskip("equinox")
    options = f"--objective {EXAMPLES / 'objective.py'}:objective --target loops=8 --trials 4 --seeds 1 --out t"
    done = subprocess.run(
        [sys.executable, "-m", "loopscale", "tune", EXAMPLES / "tune.toml", *options.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert "for N = 8" in done.stdout and (tmp_path / "t" / "tuned.toml").exists()
