"""States, experts and networks that take turns, gates that open later, maps over members, and what looks like them."""

import copy

import pytest
import torch
from torch import nn

import loopscale as ls
from loopscale.diagnosis import diagnose

D, N = 16, 6


def mlp(gain=1.5):
    made = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))
    for layer in (made[0], made[2]):
        nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
    return made


class Base(nn.Module):
    """Numbers in, numbers out; `run` is the loop."""

    def __init__(self, rate=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave, self.norm = nn.Linear(6, D), nn.Linear(D, 2), nn.LayerNorm(D)
        self.f, self.rate = mlp(), rate
        self.make()

    def make(self):
        self.loops = N

    def branch(self, h):
        return self.rate * self.f(self.norm(h))

    def forward(self, x):
        return self.leave(self.run(self.enter(x)))


def told(model, *shape, **more):
    return diagnose(model, torch.randn(*(shape or (5, 6))), **{"products": 0, **more})


class Gated(Base):
    """adaLN-zero of a label that comes with the batch: a gate and a shift, both zero at first."""

    def make(self):
        super().make()
        self.ada = nn.Linear(3, 2 * D)
        nn.init.zeros_(self.ada.weight), nn.init.zeros_(self.ada.bias)

    def forward(self, x, label):
        h = self.enter(x)
        for _ in range(self.loops):
            gate, shift = self.ada(label).chunk(2, -1)
            h = h + self.rate * gate * self.f(self.norm(h) + shift)
        return self.leave(h)


@pytest.mark.parametrize(("rate", "codes"), [(1 / N, set()), (1.0, {"unscaled-residual"})])
def test_a_gate_of_a_label_is_opened_to_one_and_the_factor_beside_it_is_kept(rate, codes):
    found = diagnose(Gated(rate), (torch.randn(4, 6), torch.eye(3)[[0, 1, 2, 0]]), products=0)
    assert found.codes == {"dead-branch"} | codes, found.text()


class Picked(Base):
    """Gates of two branches are one parameter, zero at first."""

    def make(self):
        super().make()
        self.k, self.gates = mlp(), nn.Parameter(torch.zeros(2))

    def run(self, h):
        for _ in range(self.loops):
            h = h + self.gates[0] * self.branch(h)
            h = h + self.rate * self.gates[1] * self.k(self.norm(h))
        return h


@pytest.mark.parametrize(("rate", "codes"), [(1 / N, set()), (1.0, {"unscaled-residual"})])
def test_gates_that_are_picked_from_one_parameter_are_opened(rate, codes):
    found = told(Picked(rate))
    assert found.codes == {"dead-branch"} | codes, found.text()


class Experts(Base):
    """One mixing for all visits; of three MLPs, which hold most weights, each visit takes the one whose turn it is."""

    def make(self):
        self.visits, self.mix = N, nn.Linear(D, D)
        self.experts = nn.ModuleList(mlp() for _ in range(3))

    def run(self, h):
        for n in range(self.visits):
            h = h + torch.tanh(self.mix(self.norm(h))) / self.visits
            h = h + self.experts[n % 3](self.norm(h)) / self.visits
        return h


def test_experts_that_take_turns_are_visited_as_often_as_what_they_share():
    found = told(Experts())
    assert (found.loops, found.codes) == (N, set()), found.text()


class Summed(Base):
    """(1 + eps) h and the sum of the neighbours through a matrix: nothing is carried past it."""

    def make(self):
        super().make()
        self.eps = nn.Parameter(torch.zeros(()))

    def forward(self, x, neighbours):
        h = self.enter(x)
        for _ in range(self.loops):
            h = self.f((1 + self.eps) * h + neighbours @ h)
        return self.leave(h)


def test_a_sum_that_a_matrix_takes_in_is_no_nested_skip():
    found = diagnose(Summed(), (torch.randn(5, 6), torch.ones(5, 5)), products=24)
    assert "expanding-map" in found.codes and "nested-skip" not in found.codes, found.text()


class Taught(Base):
    """A frozen copy runs the same loop on a stream of its own, and the loss is how far the two are apart."""

    def make(self):
        super().make()
        self.teacher = copy.deepcopy(self.f).requires_grad_(False)

    def run(self, h):
        with torch.no_grad():
            target = self.visits(h, self.teacher)
        return self.visits(h, self.f) - target

    def visits(self, h, f):
        for _ in range(self.loops):
            h = h + f(self.norm(h)) / self.loops
        return h


def test_a_network_on_a_stream_of_its_own_is_no_further_layer():
    assert told(Taught()).layers == 1


class Pondering(Base):
    """Halts by what the state says: with other factors on its additions it would halt at another visit."""

    def make(self):
        self.most = 12
        self.halt, self.signal = nn.Linear(D, 1), nn.Buffer(0.6 * torch.randn(D))
        nn.init.normal_(self.halt.weight, std=0.2)

    def run(self, h):
        h, spent = self.norm(h), torch.zeros(len(h), 1)
        for _ in range(self.most):
            h = h + self.signal
            h = h + self.branch(h)
            spent = spent + 0.12 + 0.05 * torch.tanh(self.halt(h))
            if bool(spent.mean() > 1):
                break
        return h


def test_a_factor_does_not_change_when_a_loop_halts():
    found = told(Pondering())
    assert found.codes == {"halts-early", "unscaled-residual", "unscaled-injection"}, found.text()


class Routed(Base):
    """The places that a visit works on are counted by the state: with other factors there are others, and as many."""

    def run(self, h):
        for _ in range(self.loops):
            chosen = h[:, 0] > h[:, 1]
            room = h.new_zeros(int(chosen.sum()), D)
            h = h.index_add(0, chosen.nonzero()[:, 0], room + self.branch(h[chosen]))
        return h


def test_a_size_that_the_state_decides_changes_with_the_state():
    found = told(Routed(), 40, 6)
    assert "unscaled-residual" in found.codes and found.findings[0].tried, found.text()


class TwoStates(Base):
    """One network adds to two states in turns, the second from zero."""

    def make(self):
        self.n = N

    def run(self, x):
        y, z = x, torch.zeros_like(x)
        for _ in range(self.n):
            z = z + self.branch(z + y + x)
            y = y + self.branch(y + z)
        return y


def test_states_that_one_network_serves_in_turns_are_followed_by_rounds():
    found = told(TwoStates())
    assert (found.codes, found.growth, found.loops) == ({"unscaled-residual"}, "linear", 2 * N), found.text()
    assert found.loops_argument == "n"
    (unscaled,) = found.findings
    assert "then no finding" in unscaled.tried and len(unscaled.lines) == 2  # of both states


class Members(Base):
    """Weights of three members, mapped over at once; the loop stands around the map or within it."""

    within = False

    def make(self):
        self.loops, self.weight = N, nn.Parameter(torch.randn(3, D, D) / 3)

    def visit(self, w, h):
        return h + self.rate * torch.tanh(self.norm(h) @ w)

    def visits(self, w, h):
        for _ in range(self.loops):
            h = self.visit(w, h)
        return h

    def run(self, h):
        h = h.expand(3, -1, -1)
        if self.within:
            return torch.vmap(self.visits)(self.weight, h).mean(0)
        for _ in range(self.loops):
            h = torch.vmap(self.visit)(self.weight, h)
        return h.mean(0)


class WithinMap(Members):
    within = True


@pytest.mark.parametrize("kind", [Members, WithinMap])
@pytest.mark.parametrize(("rate", "codes"), [(1 / N, set()), (1.0, {"unscaled-residual"})])
def test_a_loop_of_members_that_are_mapped_over_is_seen(kind, rate, codes):
    found = told(kind(rate))
    assert (found.codes, found.loops, found.tied) == (codes, N, True), found.text()


class Boxes(Base):
    """The stream by 1/N; beside it boxes, corrected in another space and detached, whose correction is zero at first."""

    def make(self):
        super().make()
        self.box, self.place = nn.Linear(D, 6), nn.Linear(6, D)
        nn.init.zeros_(self.box.weight), nn.init.zeros_(self.box.bias)

    def forward(self, x):
        h, place = self.enter(x), torch.sigmoid(x)
        for _ in range(self.loops):
            h = h + self.branch(h + self.place(place))
            box = torch.sigmoid(self.box(h) + torch.logit(place))
            place = box.detach()
        return box


def test_a_correction_that_is_zero_at_first_is_named_where_steps_open_it():
    found = told(Boxes(1 / N), products=None)
    assert found.codes == {"dead-branch"} and not found.verdict.startswith("healthy"), found.text()
    assert found.findings[0].where == "box"


class Twice(Base):
    """1/N in the forward and a learned factor beside it."""

    def make(self):
        super().make()
        self.scale = nn.Parameter(torch.full((D,), 0.1))

    def run(self, h):
        for _ in range(self.loops):
            h = h + self.scale * self.branch(h) / self.loops
        return h


def test_two_factors_of_which_one_is_learned_are_spelt():
    assert "= 0.1667 x 0.1, one of them learned" in told(Twice()).text()


class Latents(Base):
    """The stream begins as a parameter; the visits are written in the model's own forward, the batch are numbers."""

    def make(self):
        super().make()
        self.latents = nn.Parameter(torch.randn(3, D))
        self.read = nn.MultiheadAttention(D, 2, batch_first=True)
        nn.init.orthogonal_(self.read.out_proj.weight, 3.0), nn.init.normal_(self.f[2].weight, std=0.5)

    def run(self, data):
        x = self.latents[None].repeat(len(data), 1, 1)
        for _ in range(self.loops):
            x = x + self.read(self.norm(x), data, data, need_weights=False)[0]
            x = x + self.f(self.norm(x))
        return x.mean(1)


def test_visits_in_the_forward_of_the_model_itself_are_attached_to():
    model = Latents()
    found = told(model, 2, 5, 6)
    assert found.codes == {"unscaled-residual"} and found.findings[0].where == "read, f.2", found.text()
    handle = ls.attach(model, **found.details["attach"], batch=torch.randn(2, 5, 6))
    assert "no layer could be looked at" in handle.verified and told(model, 2, 5, 6).codes == set()


KEPT = {
    "ends at 1": (1 - 2.0 ** (-torch.linspace(1, 40, D)), {"marginal-decay"}),
    "below 1": (1 - 2.0 ** (-torch.linspace(1, 8, D)), set()),
    "mask": ((torch.arange(D) % 2).float(), set()),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_decay_in_a_buffer_is_looked_at_as_one_that_is_learned(name):
    """Where channels of it are exactly 1, these forget nothing; a mask and a decay below 1 are as they should be."""
    decay, codes = KEPT[name]

    class Retention(Base):
        def make(self):
            self.loops = N
            self.register_buffer("gamma", decay)

        def run(self, h):
            for _ in range(self.loops):
                h = self.gamma * h + self.branch(h) / self.loops
            return h

    found = diagnose(Retention(), torch.randn(4, 6))
    assert {finding.code for finding in found.findings} & {"marginal-decay"} == codes
    assert all("made of gamma" in finding.evidence for finding in found.findings if finding.code == "marginal-decay")
