"""What the studies of the paper share: the search over the rate, kept trials, and the tasks."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loopscale.transfer import best_rate, complete, fit_optimum

PAPER = Path(__file__).parents[2] / "papers" / "residual_scaling"


@pytest.fixture(scope="module")
def paper():
    sys.path[:0] = [str(PAPER), str(PAPER / "tasks")]
    import kept
    import search

    yield {"kept": kept, "search": search}
    sys.path.remove(str(PAPER))
    sys.path.remove(str(PAPER / "tasks"))


@given(st.lists(st.floats(-9, -1), min_size=1, max_size=3), st.integers(1, 4))
def test_the_search_brackets_every_valley_and_gives_it_all_seeds(paper, bottoms, seeds):
    def train(_study, arms, points):
        return {
            arm: {(rate, seed): (math.log2(rate) - arms[arm]) ** 2 + seed for rate, seed in points[arm]} for arm in arms
        }

    found = paper["search"].searched("", dict(enumerate(bottoms)), seeds, train)
    for arm, bottom in enumerate(bottoms):
        rows = complete(found[arm])
        assert len(rows) >= 5 and all(len(row) == seeds for row in rows.values())
        assert abs(math.log2(best_rate(found[arm])) - bottom) <= 0.2501
        assert fit_optimum(found[arm]).log2_lr == pytest.approx(bottom, abs=1e-6)


def test_what_is_kept_is_not_made_again_until_it_is_forgotten(paper, tmp_path, monkeypatch):
    kept, made = paper["kept"], []
    monkeypatch.setattr(kept, "RUNS", tmp_path)
    monkeypatch.setattr(kept, "_side_by_side", lambda work, batches: ((work(b), 1.5) for b in batches))

    def work(batch):
        made.extend(batch)
        return {key: job * 2 for key, job in batch.items()}

    assert kept.kept("s", work, [{"a": 1}, {"b": 2, "c": 3}]) == {"a": 2, "b": 4, "c": 6}
    (tmp_path / "s" / "b.json").unlink()  # as when it was stopped before b ended
    assert kept.kept("s", work, [{"a": 1}, {"b": 2, "c": 3}]) == {"a": 2, "b": 4, "c": 6}
    assert made == ["a", "b", "c", "b"]
    assert kept.processor_seconds("s") >= 3
    kept.forget("s")
    assert (tmp_path / "s" / "a.json").exists(), "a study that was stopped goes on"
    kept.ended("s")
    kept.forget("s")
    assert not (tmp_path / "s").exists()


def test_trainings_side_by_side_and_in_stacks_have_the_losses_they_have_alone(paper, tmp_path, monkeypatch):
    from loopscale.train import fit

    kept, search = paper["kept"], paper["search"]
    monkeypatch.setattr(kept, "RUNS", tmp_path)
    house = [search.base(2, rule=rule, steps=3)(2.0**-6, 0) for rule in ("looped", "none")]
    gates = search.base(2, rule="none", steps=3, own="variants.py:visit_gates")(2.0**-6, 0)
    found = kept.losses("s", [*house, gates])
    assert found[:2] == [fit(training.config).val_loss for training in house]
    alone = fit(gates.config.using(str(PAPER / gates.own))).val_loss
    assert found[2] == pytest.approx(alone, rel=1e-5)  # batched by torch.vmap: equal but for rounding


@pytest.mark.parametrize("name", ["learned_scalars", "visit_gates"])
def test_gates_at_their_start_are_the_rule(name, paper):
    import variants

    tokens = torch.randint(0, 256, (2, 8), generator=torch.Generator().manual_seed(0))
    sizes = {"loops": 4, "layers": 2, "width": 32, "strength": 1.0, "base_layers": None, "seed": 0}
    gated = getattr(variants, name)(rule="none" if name == "visit_gates" else "looped", **{**sizes, "layers": 1})
    plain = variants.house(rule="looped", **{**sizes, "layers": 1})
    torch.testing.assert_close(gated(tokens), plain(tokens))
    assert torch.equal(gated(tokens), gated(tokens)), "the count of visits starts anew"


def test_at_one_layer_the_rules_of_the_family_are_one_network_at_strengths_apart_by_a_power_of_loops(paper):
    import compare

    from loopscale.train import fit

    assert compare.family() == {"looped": 1.0, "looped-complete": 1.0, "sqrt": 0.5, "none": 0.0}
    configs = [
        paper["search"].base(4, rule=rule, strength=2.0 * 4 ** (power - 1), steps=3)(2.0**-6, 0).config
        for rule, power in compare.family().items()
    ]
    losses = [fit(config).val_loss for config in configs]
    # Not bitwise: Adam's epsilon follows N^(1-a), which rounds differently.
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


@pytest.mark.parametrize(("bottom", "holds"), [(-1.0, True), (-2.4, None)])
def test_a_best_strength_at_the_end_of_the_grid_confirms_nothing(paper, bottom, holds):
    """Two places with the same best strength: confirmed inside the grid, undecided where many seeds lie at its end."""
    import carried

    def place(shift):
        bottoms = [bottom + 0.3 * math.sin(3 * seed) for seed in range(10)]
        return [{2.0**k: (k - low) ** 2 + shift for k in range(-2, 3)} for low in bottoms]

    assert carried.strength_moved("", place(0.0), place(0.1)).holds is holds


def test_every_rule_is_compared(paper):
    import compare

    import loopscale as ls

    assert {name.strip("`") for name in compare.arms()} | set(compare.family()) >= set(ls.RULES)


def test_embedding_and_readout_learn_four_times_as_fast_from_the_same_start(paper):
    import variants

    import loopscale as ls

    sizes = {"rule": "looped", "loops": 4, "layers": 1, "width": 32, "strength": 1.0, "base_layers": 1, "seed": 0}
    tokens = torch.randint(0, 256, (2, 8), generator=torch.Generator().manual_seed(0))
    moved = []
    for model in (variants.house(**sizes), variants.outer_rate(**sizes)):
        before = [weight.detach().clone() for weight in (model.readout.weight, next(model.core.parameters()))]
        first = model(tokens)
        first.square().mean().backward()
        ls.build_optimizer(model, lr=2.0**-8, weight_decay=0.0).step()
        after = (model.readout.weight, next(model.core.parameters()))
        moved.append([float((b.detach() - a).abs().median()) for a, b in zip(before, after, strict=True)])
        moved[-1].append(float(first.detach().sum()))
    (plain_readout, plain_core, plain_first), (fast_readout, fast_core, fast_first) = moved
    assert fast_first == pytest.approx(plain_first) and fast_core == pytest.approx(plain_core, rel=1e-3)
    assert fast_readout == pytest.approx(4 * plain_readout, rel=1e-3)


def test_the_tasks_have_one_right_answer(paper):
    import addition
    import sorting
    import walk

    batch = addition.make_batch("train", 0, 0, 64).numpy()
    value = lambda part: (part * 10 ** np.arange(part.shape[1] - 1, -1, -1)).sum(1)  # noqa: E731
    assert np.array_equal(value(batch[:, :4]) + value(batch[:, 5:9]), value(batch[:, 10:]))
    batch = sorting.make_batch("train", 0, 0, 64).numpy()
    assert np.array_equal(np.sort(batch[:, :8], axis=1), batch[:, 9:])
    for row in walk.make_batch("train", 0, 0, 64).numpy():
        edges, steps, at, end = row[:8], row[8] - 8, row[9], row[10]
        for _ in range(steps):
            at = edges[at]
        assert 1 <= steps <= 4 and at == end
    for task in (addition, sorting, walk):
        one, two = task.make_batch("train", 0, 0, 64), task.make_batch("validation", 0, 0, 64)
        assert not torch.equal(one, two) and torch.equal(one, task.make_batch("train", 0, 0, 64))
