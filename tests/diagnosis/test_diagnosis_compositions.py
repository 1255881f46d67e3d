"""Random compositions: nothing that grows is healthy, the rule is no fault, no traceback, JSON by the schema."""

from __future__ import annotations

import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopscale.diagnosis import diagnose, diagnosis_schema
from loopscale.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
from compositions import CHOICES, Composed, Recipe, grown

RECIPES = st.builds(Recipe, **{name: st.sampled_from(choices) for name, choices in CHOICES.items()})
RIGHT = st.builds(
    Recipe,
    **{name: st.sampled_from(CHOICES[name]) for name in ("loops", "layers", "branch", "route", "share")},
    inject=st.sampled_from(("none", "branch")),
)
SCHEMA = diagnosis_schema()
# The limit of `diagnosis/symptoms.py`, with room for another batch.
GROWN = 2.2


def told(recipe):
    torch.manual_seed(0)
    return diagnose(Composed(recipe))


def holds(recipe):
    try:
        found = told(recipe)
    except UserError as said:
        assert "\n" not in str(said)
        return
    jsonschema.validate(found.to_json(), SCHEMA)
    gain = grown(recipe)
    if gain > GROWN and not recipe.sums_to_one_visit:
        assert not found.verdict.startswith("healthy"), (gain, found.text())
        assert found.findings, (gain, found.text())
    if recipe.right:
        assert not found.at_least("warning"), found.text()


def test_the_recipes_do_what_they_say():
    """The stream grows by its own account where nothing holds it, and does not under the rule."""
    assert grown(Recipe(loops=8, scale="one", branch="both")) > GROWN
    assert grown(Recipe(loops=8, outer="nested")) > 100
    assert grown(Recipe(loops=8, inject="position")) > GROWN
    assert grown(Recipe(loops=8)) < 1.2 and grown(Recipe(loops=8, placement="post", scale="one")) < GROWN
    assert Recipe().right and not Recipe(scale="one").right and Recipe(scale="one").eps == 1


def test_one_that_grows_is_not_healthy():
    recipe = Recipe(loops=3, scale="one", inject="one")
    assert grown(recipe) > GROWN and not recipe.sums_to_one_visit
    holds(recipe)


def test_attention_of_an_earlier_branch_is_not_counted_again():
    """Where a branch reads x + e and e is the first state, the way to it passes by the branch before."""
    torch.manual_seed(0)
    found = diagnose(Composed(Recipe(loops=3, branch="both", inject="branch")), products=0)
    assert found.layers == 1 and found.codes == set(), found.text()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(RECIPES)
@example(Recipe(loops=8, outer="streams", scale="one"))
@example(Recipe(loops=8, outer="momentum", scale="one"))
@example(Recipe(loops=8, share="functional", inject="time"))
def test_nothing_that_grows_is_healthy(recipe):
    holds(recipe)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(RIGHT)
@example(Recipe(loops=8, layers=2, branch="parallel", inject="branch", route="masked"))
def test_the_rule_is_never_a_fault(recipe):
    assert recipe.right
    holds(recipe)
