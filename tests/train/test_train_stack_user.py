"""User models in a stack: those that can be run K at once get what they get alone, the others say in a clause why not."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loopscale.batched import UnstackableError, fit_stack, user_stack
from loopscale.train import fit, parse_values

FILE = Path(__file__).parent / "stack_models.py"
VALUES = {
    "model": {"loops": 3, "layers": 1},
    "data": {"batch_size": 6},
    "train": {"steps": 8, "eval_batches": 3, "device": "cpu"},
}


def configs(*pairs, optimizer="adamw"):
    sets = [[f"optim.lr={lr}", f"train.seed={seed}", f"optim.optimizer={optimizer}"] for lr, seed in pairs]
    return [parse_values(VALUES, each) for each in sets]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("name", ["make_model", "attending"])
def test_user_models_get_the_losses_they_get_alone(name, optimizer):
    place, asked = f"{FILE}:{name}", configs((0.01, 0), (0.03, 1), (0.1, 2), optimizer=optimizer)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's own attention on a CPU is batched by a loop
        found = dict(fit_stack(user_stack([config.using(place) for config in asked])))
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers were used"
    for k, config in enumerate(asked):
        alone = fit(config.using(place))
        assert found[k].val_loss == pytest.approx(alone.val_loss, abs=1e-5)
        assert [loss for _, loss in found[k].curve] == pytest.approx([loss for _, loss in alone.curve], abs=1e-5)
        assert found[k].stream_final == pytest.approx(alone.stream_final, abs=1e-5)
        blank = {"seconds": 0, "val_loss": 0, "curve": [], "train_loss": 0, "stream_final": []}
        assert replace(found[k], **blank) == replace(alone, **blank)


@pytest.mark.parametrize(
    "name,words",
    [
        ("counting", "its forward pass changes calls"),
        ("dropping", "its forward pass draws random numbers"),
        ("unlike", "scale is a number of its own in each model"),
        ("normed", "its forward pass changes drop.running_mean"),
        ("deciding", "its operations cannot be batched"),
        ("hiding", "the first step of a model differs by"),
    ],
)
def test_what_cannot_be_a_stack_says_why(name, words):
    with pytest.raises(UnstackableError, match=words):
        user_stack([config.using(f"{FILE}:{name}") for config in configs((0.01, 0), (0.03, 1))])
