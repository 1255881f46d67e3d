"""The function that makes a model: its arguments set N where nothing in the model does, or do nothing at all."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from loopscale import UserError
from loopscale.diagnosis import diagnose

D = 16


class Sizes(NamedTuple):
    reps: int


class Right(nn.Module):
    """A right loop over tokens; `_count` says how often, at each pass."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(20, D), nn.LayerNorm(D)
        self.f, self.head = nn.Linear(D, D), nn.Linear(D, 20)

    def forward(self, tokens):
        x, count = self.table(tokens), self._count()
        for _ in range(count):
            x = x + self.f(self.norm(x)) / count
        return self.head(x)


class Looped(Right):
    """Visits by the rows of a table, by a tuple that nothing can change, by a closure: nothing in the model sets them."""

    def __init__(self, how, loops, each=1):
        super().__init__()
        self.register_buffer("levels", torch.logspace(0, -1, loops * each))
        ways = {
            "buffer": lambda: len(self.levels),
            "tuple": partial(_reps, Sizes(loops * each)),
            "closure": lambda: loops * each,
        }
        self._count = ways[how]


def _reps(sizes):
    return sizes.reps


class Config:
    def __init__(self, n_loop=8):
        self.n_loop = n_loop


class Inner(Right):
    """N is `config.n_loop`, whatever else is given."""

    def __init__(self, n_loop=8):
        super().__init__()
        self.config = Config(n_loop)

    def _count(self):
        return self.config.n_loop


def told(factory):
    torch.manual_seed(0)
    made = factory()
    return diagnose(*(made if isinstance(made, tuple) else (made, None)), products=0, factory=factory)


@pytest.mark.parametrize("how", ["buffer", "tuple", "closure"])
def test_what_sets_n_is_an_argument_of_the_factory(how):
    def make(width=D, reps=6):
        return Looped(how, reps), torch.arange(20).view(2, 10)

    found = told(make)
    assert (found.loops, found.loops_argument, found.codes) == (6, "reps", set()), found.text()
    assert found.details["over_loops"]["loops"] == [3, 6, 12] and found.details["settling"]
    with pytest.raises(UserError, match="does not set the number of loops"):
        diagnose(*make(), factory=make, loops_arg="width")


def test_an_argument_of_the_factory_may_set_several_visits():
    found = told(lambda rounds=3: Looped("buffer", rounds, each=2))
    assert (found.loops, found.loops_argument) == (6, "rounds")
    assert found.details["over_loops"]["loops"] == [4, 6, 12]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda n_loops=8: Inner(), True),
        (lambda n_loop=4: Inner(), True),  # named like the one inside, and another all the same
        (lambda times=8: Inner(), True),  # as many as the visits, whatever it is called
        (lambda n_loops=8: Inner(n_loops), False),
        (lambda times=8: Inner(times), False),
        (lambda batch_size=8, seed=8, max_len=8, n_layer=8, iterations=1000, times=7: Inner(), False),
        (Inner, False),
    ],
)
def test_an_argument_of_the_factory_that_does_nothing(make, code):
    found = told(make)
    assert found.codes == ({"knob-without-effect"} if code else set()), found.text()
    assert found.loops_argument == "config.n_loop"
    assert not code or "of the factory" in found.findings[0].evidence


def test_a_factory_has_to_be_a_function():
    with pytest.raises(UserError, match="a function in factory"):
        diagnose(Inner(), factory=8)
