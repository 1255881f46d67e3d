"""Numbers known from elsewhere are reproduced: growth laws, doubling, bounds, spectral radii."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopscale.diagnosis import diagnose, leading_eigenvalues

sys.path.insert(0, str(Path(__file__).parent))
import blocks as own
import looped_states as states
import looped_styles as styles

# Stream norm after N loops over that after one, of LoopFormer's plain loop at random weights.
KNOWN = {4: 3.45, 16: 15.5, 64: 68.8}


def after_one(found):
    norms = found.details["norms"]
    return norms[-1] / norms[1]


@pytest.mark.parametrize(
    "loops", [4, pytest.param(16, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
def test_a_plain_loop_grows_as_it_is_known_to(loops):
    torch.manual_seed(0)
    model = states.Cache(n=loops)
    with torch.no_grad():
        model.tok.weight.mul_(0.3)
    found = diagnose(model, products=0)
    assert found.growth == found.growth_over_loops == "linear"
    assert after_one(found) == pytest.approx(KNOWN[loops], rel=0.1)
    low, high = found.details["growth_interval"]
    assert low <= found.details["growth_exponent"] <= high


@pytest.mark.slow
@pytest.mark.parametrize("loops", [4, 16, 64])
def test_a_nested_skip_doubles_and_norms_and_contraction_bound(loops):
    torch.manual_seed(0)
    nested = diagnose(own.Looped("none", loops=loops, carry="nested"), products=0)
    assert nested.growth == "exponential" and nested.gain == pytest.approx(2.0**loops, rel=0.7)
    assert diagnose(styles.Ouro(ut=loops), products=0).growth == "bounded"
    assert diagnose(styles.Parcae(T=loops, scale=1 / loops), products=0).growth == "bounded"


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(4, 256),
    seed=st.integers(0, 10**6),
    angle=st.floats(0.2, 2.9),
    shear=st.floats(0.0, 1.0),
    lead=st.floats(1.1, 3.0),
)
def test_spectral_radius_of_random_non_normal_maps_with_a_complex_leading_pair(size, seed, angle, shear, lead):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    matrix += shear * torch.triu(torch.randn(size, size, generator=generator, dtype=torch.float64), 1) / size**0.5
    rest = max(float(torch.linalg.eigvals(matrix[2:, 2:]).abs().max()), 0.1)
    turn = torch.tensor(angle, dtype=torch.float64)
    matrix[2:, :2] = 0
    matrix[:2, :2] = (
        lead * rest * torch.tensor([[turn.cos(), -turn.sin()], [turn.sin(), turn.cos()]], dtype=torch.float64)
    )
    true = float(torch.linalg.eigvals(matrix).abs().max())
    found = leading_eigenvalues(lambda v: matrix @ v, torch.zeros(size, dtype=torch.float64))
    assert found.radius == pytest.approx(true, rel=0.02)
