"""Kinds of faults that a held-out batch showed: each with a model that has it and one that only looks like it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from loopscale.diagnosis import diagnose

D = 16


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Toy(nn.Module):
    """A right loop over tokens; what a test is about is written in `visit` or `count`."""

    def __init__(self, loops=4):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(20, D), nn.LayerNorm(D), nn.Linear(D, 20)
        self.f, self.passes = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)), loops

    def count(self):
        return self.passes

    def visit(self, x, n):
        return x + self.f(self.norm(x)) / n

    def forward(self, tokens):
        x = self.table(tokens)
        for _ in range(self.count()):
            x = self.visit(x, self.count())
        return self.head(x)


def told(model, batch=None, **more):
    return diagnose(model, batch, products=0, **more)


@pytest.mark.parametrize("how", ["index_add", "scatter_add"])
def test_a_mean_over_neighbours_adds_nothing_to_the_stream(how):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.message = nn.Linear(6, D), nn.Linear(D, D)

        def forward(self, nodes, edges):
            h, (source, target) = self.lift(nodes), edges
            where = target if how == "index_add" else target[:, None].expand(-1, D)
            for _ in range(5):
                h = torch.tanh(self.message(getattr(torch.zeros_like(h), how)(0, where, h[source]) / 2))
            return h

    here = torch.arange(8)
    edges = torch.stack([here.repeat(2), torch.cat([(here + 1) % 8, (here - 1) % 8])])
    found = told(Mean(), (torch.randn(8, 6), edges))
    assert (found.loops, found.growth) == (5, "bounded") and not found.at_least("warning"), found.text()


def test_tokens_are_made_up_for_a_table_that_is_a_raw_parameter():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.w = nn.Parameter(torch.randn(20, D)), nn.Parameter(torch.randn(D, D) / 4)

        def forward(self, tokens):
            x = self.table[tokens]
            for _ in range(4):
                x = x + torch.tanh(x @ self.w) / 4
            return x

    assert (told(Raw()).loops, told(Raw()).codes) == (4, set())


def test_numbers_that_mix_streams_are_no_initialisation():
    class Streams(Toy):
        def __init__(self):
            super().__init__()
            self.mix = nn.Parameter(3 * torch.eye(3))
            for layer, size in ((self.f[0], 1.0), (self.f[2], 0.63)):
                nn.init.normal_(layer.weight, std=size * D**-0.5)

        def forward(self, tokens):
            s = self.table(tokens).unsqueeze(2).repeat(1, 1, 3, 1)
            for _ in range(4):
                s = torch.einsum("mn,btnd->btmd", self.mix.softmax(-1), s)
                s = s + self.f(self.norm(s.mean(2))).unsqueeze(2) / 4
            return self.head(s.mean(2))

    assert "double-depth-scale" not in told(Streams()).codes


class Configured(Toy):
    """`n_loops` stands in a config; `read` says when it is read, if at all."""

    def __init__(self, config):
        super().__init__(config.n_loops if config.read == "built" else 4)
        self.config = config

    def count(self):
        return self.config.n_loops if self.config.read == "run" else self.passes


@pytest.mark.parametrize(("read", "codes"), [("never", {"knob-without-effect"}), ("built", set()), ("run", set())])
def test_a_number_beside_the_one_that_is_read(read, codes):
    found = told(Configured(SimpleNamespace(n_loops=4, read=read)))
    assert found.codes == codes, found.text()


def test_a_most_of_any_name_and_a_config_of_any_name_are_tried():
    class Settles(Toy):
        def __init__(self):
            super().__init__()
            self.limit = 30

        def forward(self, tokens):
            x = self.table(tokens)
            for _ in range(self.limit):
                before, x = x, 0.3 * x + 0.3 * torch.tanh(self.f(x))
                if (x - before).norm() < 0.05 * before.norm():
                    break
            return self.head(x)

    found = told(Settles())
    assert "halts-early" in found.codes and found.loops_argument == "limit", found.text()

    class Groups(Toy):
        """Layers in groups: `depth` says how many there are in all, and no loop makes as many visits."""

        def __init__(self):
            super().__init__()
            self.depth, self.g, self.wide = 6, nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, tokens):
            x = self.wide(self.table(tokens))
            for i in range(self.depth):
                layer = (self.f, self.g)[i * 2 // self.depth]
                x = torch.nn.functional.layer_norm(x + layer(x), (D,))
            return self.wide(x)

    assert "halts-early" not in told(Groups()).codes

    @dataclass
    class Numbers:
        loops: int = 4

    class Held(Toy):
        def __init__(self):
            super().__init__()
            self.c, self.places = Numbers(), {"layers.1": 4, 2: 4}

        def count(self):
            return self.c.loops

    assert told(Held()).loops_argument == "c.loops"


def test_a_number_of_layers_is_no_number_of_loops():
    class Layers(nn.Module):
        def __init__(self, reads):
            super().__init__()
            self.table, self.loops, self.reads = nn.Embedding(20, D), 4, reads
            self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(4))

        def forward(self, tokens):
            x = self.table(tokens)
            for i in range(self.loops if self.reads else 4):
                x = x + self.layers[i](x) / 2
            return x

    assert told(Layers(True)).codes == {"not-looped"}
    assert told(Layers(False)).codes == {"untied"}


def test_what_restarts_is_counted_and_a_decay_is_named_by_what_it_is_made_of():
    class Restarts(Toy):
        def forward(self, tokens):
            x = self.table(tokens)
            return self.head(sum(self.visit(x, 5) for _ in range(5)))

    found = told(Restarts())
    assert (found.looped, found.loops, found.codes) == (False, 5, {"restarts"})

    class Decays(Toy):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.full((D,), -18.0))

        def visit(self, x, n):
            return torch.exp(-nn.functional.softplus(self.raw)) * x + self.f(self.norm(x)) / n

    (finding,) = told(Decays()).findings
    assert finding.code == "marginal-decay" and "made of raw" in finding.evidence and ".py:" in finding.evidence


@pytest.mark.parametrize("read", [False, True])
def test_an_argument_of_forward_that_nothing_reads(read):
    class Deaf(Toy):
        def forward(self, tokens, num_steps=6):
            x = self.table(tokens)
            for _ in range(min(num_steps, 6) if read else self.passes):
                x = self.visit(x, 6)
            return self.head(x)

    found = told(Deaf())
    assert found.codes == (set() if read else {"knob-without-effect"}), found.text()


@pytest.mark.parametrize(("stored", "codes"), [(torch.bfloat16, {"bf16-absorbed"}), (torch.float32, set())])
def test_a_sum_that_is_rounded_where_it_is_stored(stored, codes):
    class Rounds(Toy):
        def forward(self, tokens):
            x = self.table(tokens).to(stored)
            for _ in range(8):
                x = (x.float() + 0.01 * self.f(self.norm(x.float())) / 8).to(stored)
            return self.head(x.float())

    assert told(Rounds()).codes == codes


@pytest.mark.parametrize(("power", "codes"), [(2, {"double-depth-scale"}), (1, set())])
def test_a_scale_that_falls_faster_than_the_loops_ask_for(power, codes):
    class Scaled(Toy):
        def visit(self, x, n):
            return x + self.f(self.norm(x)) / n**power

    found = told(Scaled())
    assert found.codes == codes, found.text()


def visits_of(visit, **more):
    """A loop whose every visit is this function of the model, x, the first x and N."""

    class Made(Toy):
        def __init__(self, loops=6):
            super().__init__(loops)
            for name, part in more.items():
                setattr(self, name, part)

        def forward(self, tokens):
            x = first = self.table(tokens)
            for _ in range(self.passes):
                x = visit(self, x, first, self.passes)
            return self.head(x)

    return Made()


def fused(eps):
    weight = nn.Parameter(torch.randn(D, D) / 2)
    return lambda m, x, _, n: torch.baddbmm(x, m.f(m.norm(x)) * eps(n), weight.expand(len(x), -1, -1)), weight


@pytest.mark.parametrize(("eps", "codes"), [(lambda n: 1, {"unscaled-residual"}), (lambda n: 1 / n, set())])
def test_an_addition_inside_a_product_is_one(eps, codes):
    visit, weight = fused(eps)
    found = told(visits_of(visit, weight=weight))
    assert found.codes == codes and found.layers == 1 and found.effective_scale == pytest.approx(eps(6)), found.text()


@pytest.mark.parametrize(("eps", "codes"), [(1, {"unscaled-residual"}), (1 / 6, set())])
def test_a_sum_over_a_stack_is_an_addition(eps, codes):
    found = told(visits_of(lambda m, x, _, n: torch.stack([x, m.f(m.norm(x)) * eps]).sum(0)))
    assert found.codes == codes and found.layers == 1 and found.effective_scale == pytest.approx(eps), found.text()


def merged(adds):
    merge = nn.Linear(2 * D, D, bias=False)
    if adds:
        with torch.no_grad():
            merge.weight.copy_(torch.cat([torch.eye(D), torch.eye(D)], 1))

    def visit(m, x, first, n):
        x = m.merge(torch.cat([x, first], -1))
        return x + m.f(m.norm(x)) / n

    return visits_of(visit, merge=merge)


def test_an_input_that_a_matrix_adds_is_injected():
    found = told(merged(adds=True))
    assert found.codes == {"unscaled-injection"} and found.growth == "linear", found.text()
    assert "torch.cat([x, first], -1)" in found.findings[0].lines[0] and "then no finding" in found.findings[0].tried
    assert "unscaled-injection" not in told(merged(adds=False)).codes


class Past(Toy):
    """Each state is made of all states before it: their sum doubles, their mean does not."""

    def __init__(self, mean):
        super().__init__(6)
        self.mean = mean

    def forward(self, tokens):
        states = [self.table(tokens)]
        for _ in range(self.passes):
            read = sum(states) / (len(states) if self.mean else 1)
            states.append(read + self.f(self.norm(read)) / self.passes)
        return self.head(states[-1])


def test_a_sum_of_the_whole_past_compounds():
    found = told(Past(mean=False))
    assert found.codes == {"nested-skip"} and found.growth == "exponential", found.text()
    assert "keep the last state alone" in found.findings[0].lines[0] and "then no finding" in found.findings[0].tried
    assert not told(Past(mean=True)).at_least("warning")


def test_a_stream_that_grows_as_a_large_one_does_is_nested_all_the_same():
    class Sums(Toy):
        def forward(self, tokens):
            states = [self.table(tokens)]
            for _ in range(self.passes):
                total = sum(states)
                states.append(total + (self.norm(total) + self.f(self.norm(total))) / self.passes)
            return self.head(states[-1])

    found = told(Sums(5))
    assert found.codes == {"nested-skip"} and found.growth == "exponential", found.text()


def test_a_branch_that_reads_the_past_leaves_the_stream_alone():
    class Reads(Toy):
        def forward(self, tokens):
            states = [self.table(tokens)]
            for _ in range(self.passes):
                read = torch.stack(states).mean(0)
                states.append(states[-1] + self.f(self.norm(read)) / self.passes)
            return self.head(states[-1])

    found = told(Reads(6))
    assert found.codes == set() and found.layers == 1, found.text()


@pytest.mark.parametrize("order", [2, 4])
def test_evaluations_of_one_step_are_one_visit(order):
    """Heun and Runge-Kutta: what lies between the evaluations is no state, and takes no size away."""

    def step(m, x, _, n):
        k = [m.f(m.norm(x))]
        k.append(m.f(m.norm(x + k[0] / n / 2)))
        if order == 2:
            return x + k[1] / n
        k.append(m.f(m.norm(x + k[1] / n / 2)))
        k.append(m.f(m.norm(x + k[2] / n)))
        return x + (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / (6 * n)

    found = told(visits_of(step))
    assert found.codes == set() and found.loops == 6 and found.gain < 1.5, found.text()


def test_a_result_that_is_thrown_away_needs_no_gradient():
    class Stops(Toy):
        def forward(self, tokens):
            x = self.table(tokens)
            for _ in range(12):
                new = 0.5 * x + 0.1 * torch.tanh(self.f(x))
                if float((new - x).abs().max()) < 0.02:
                    break
                x = new
            return self.head(x)

    assert "truncated-gradient" not in told(Stops()).codes


def test_every_set_of_copies_is_named():
    class Clones(nn.Module):
        def __init__(self):
            super().__init__()
            one, two = torch.randn(D, D), torch.randn(D, D)
            self.one = nn.ParameterList(nn.Parameter(one.clone()) for _ in range(3))
            self.two = nn.ParameterList(nn.Parameter(two.clone()) for _ in range(3))

        def forward(self, x):
            for a, b in zip(self.one, self.two, strict=True):
                x = x + torch.relu(x @ a) @ b / 48
            return x

    found = told(Clones(), torch.randn(4, D))
    assert found.codes == {"untied"} and {"one.0", "two.0"} <= set(found.findings[0].where.split(", "))


def test_a_scale_that_follows_the_limit_of_a_halting_loop_is_no_second_one():
    class Halts(Toy):
        def __init__(self):
            super().__init__()
            self.max_steps = 12

        def forward(self, tokens):
            x = self.table(tokens)
            for n in range(self.max_steps):
                x = x + self.f(self.norm(x)) / self.max_steps
                if n == 3:
                    break
            return self.head(x)

    assert told(Halts()).codes == {"halts-early"}


REMEDIES = {
    "10 * first": (lambda m, x, first, n: x + 10 * first + m.f(m.norm(x)) / n, "unscaled-injection", 10, 1 / 6),
    "0.5 * m.f(m.norm(x))": (lambda m, x, _, n: x + 0.5 * m.f(m.norm(x)), "unscaled-residual", 0.5, 1 / 6),
    "1.25 * x": (lambda m, x, _, n: 1.25 * x + m.f(m.norm(x)) / n, "expanding-map", 1.25, 1.0),
    "m.f(m.norm(x)) * 2": (lambda m, x, _, n: x + m.f(m.norm(x)) * 2, "unscaled-residual", 2, 1 / 6),
}


@pytest.mark.parametrize("written", REMEDIES)
def test_the_line_to_edit_and_the_remedy_come_to_one_number(written):
    """The line gives what to multiply, in the user's own words, and what that comes to: the number of the remedy."""
    visit, code, before, after = REMEDIES[written]
    (finding,) = told(visits_of(visit)).findings
    assert finding.code == code
    assert f"multiply `{written}` by {after / before:.4g}: {before:.4g} becomes {after:.4g}" in finding.lines[-1]
    assert f"{after:.4g}" in finding.remedy and "then no finding" in finding.tried
    assert 0.9 < float(finding.tried.partition(" -> ")[2].partition(",")[0]) < 2.1, finding.tried


def test_a_scan_is_a_loop_though_its_matrices_read_the_input_alone():
    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay, self.read, self.head = nn.Parameter(-torch.rand(D) - 0.5), nn.Linear(6, D), nn.Linear(D, 3)

        def forward(self, inputs):
            h, out = torch.zeros(len(inputs), D), []
            for step in inputs.unbind(1):
                h = self.decay.exp() * h + self.read(step)
                out.append(self.head(h))
            return torch.stack(out, 1)

    found = told(Scan(), torch.randn(3, 7, 6))
    assert (found.loops, found.codes) == (7, {"norm-bounded"}), found.text()


@pytest.mark.parametrize("constant", [1.0, 3.0, 0.5])
def test_a_constant_between_branch_and_addition_goes_into_the_strength_of_the_remedy(constant):
    class Multiplied(Toy):
        def visit(self, x, n):
            return x + self.f(self.norm(x)) * constant

    model = Multiplied(6)
    found = told(model)
    assert found.codes == {"unscaled-residual"}, found.text()
    assert found.details["attach"].get("strength", 1.0) == pytest.approx(1 / constant, rel=1e-3)
    found.apply(model)
    assert told(model).codes == set() and told(model).effective_scale == pytest.approx(1 / 6, rel=1e-3)


@pytest.mark.parametrize("shrunk", [True, False])
@pytest.mark.parametrize("start", [nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_])
def test_a_depth_rule_in_the_weights_is_seen_whatever_they_start_from(start, shrunk):
    """By fan-in a wide-to-narrow matrix of Xavier's starts larger than its neighbours, which hides that it was shrunk."""

    class Two(Toy):
        def __init__(self, loops=8):
            super().__init__(loops)
            self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
            self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
            for layer in (self.qkv, self.proj, self.up, self.down):
                start(layer.weight)
            if shrunk:
                for layer in (self.proj, self.down):
                    nn.init.zeros_(layer.bias)
                    layer.weight.data /= (2 * loops) ** 0.5

        def visit(self, x, n):
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            x = x + self.proj(torch.softmax(q @ k.mT / D**0.5, -1) @ v) / n
            return x + self.down(torch.relu(self.up(self.norm(x)))) / n

    assert ("double-depth-scale" in told(Two()).codes) is shrunk


def parts(x, how):
    """Four parts of the last axis, by one way or another."""
    if how == "slices":
        return [x[..., D * k : D * (k + 1)] for k in range(4)]
    if how == "narrow":
        return [x.narrow(-1, D * k, D) for k in range(4)]
    if how == "lists":
        return [x[..., list(range(D * k, D * (k + 1)))] for k in range(4)]
    return {
        "chunk": lambda: x.chunk(4, -1),
        "split": lambda: x.split(D, -1),
        "unbind": lambda: x.unflatten(-1, (4, D)).unbind(-2),
        "tensor_split": lambda: torch.tensor_split(x, 4, dim=-1),
    }[how]()


class Shared(nn.Module):
    """One layer over four parts of a value; with `again`, over the first of them four times: a loop that restarts."""

    def __init__(self, how, again=False):
        super().__init__()
        self.how, self.again = how, again
        self.layer, self.head = nn.Linear(D, D), nn.Linear(4 * D, D)

    def forward(self, x):
        taken = [parts(x, self.how)[0 if self.again else k] for k in range(4)]
        if self.again:
            halves = [(part[..., : D // 2], part[..., D // 2 :]) for part in taken]
            taken = [torch.stack([torch.cat(half, -1), part])[0] for half, part in zip(halves, taken, strict=True)]
        return self.head(torch.cat([torch.relu(self.layer(part)) for part in taken], -1))


@pytest.mark.parametrize("how", ["slices", "narrow", "lists", "chunk", "split", "unbind", "tensor_split"])
def test_a_layer_over_the_parts_of_a_value_restarts_nothing(how):
    found = told(Shared(how), torch.randn(3, 4 * D))
    assert (found.looped, found.codes) == (False, {"not-looped"}), found.text()


@pytest.mark.parametrize("how", ["slices", "narrow", "chunk", "split", "unbind", "tensor_split"])
def test_a_layer_over_one_part_again_and_again_restarts_also_where_lists_of_values_are_read(how):
    found = told(Shared(how, again=True), torch.randn(3, 4 * D))
    assert (found.looped, found.loops, found.codes) == (False, 4, {"restarts"}), found.text()


def test_a_cell_that_hands_on_two_states_restarts_nothing():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(D, D)

        def forward(self, x):
            h = c = torch.zeros_like(x)
            for _ in range(5):
                h, c = self.cell(x, (h, c))
            return h

    assert told(Cell(), torch.randn(3, D)).codes == {"norm-bounded"}


def test_a_drawn_number_of_visits_is_seen_where_the_first_draw_is_that_of_evaluation():
    class Draws(Toy):
        def count(self):
            return int(torch.randint(2, 12, ())) if self.training else 6

    torch.manual_seed(0)
    model = Draws().train()
    torch.manual_seed(0)
    assert model.count() == 6
    (finding,) = told(model.eval()).findings
    assert finding.code == "train-eval-differ" and "training draws the number of visits (" in finding.evidence


def test_one_step_leaves_a_mixture_of_streams_as_it_is():
    """A rate for a few numbers that multiply the stream N times is none of eps, which is right here."""
    mix, write = nn.Parameter(torch.eye(4)), nn.Parameter(torch.full((4, 1), 1 / 6))

    class Streams(Toy):
        def __init__(self):
            super().__init__(6)
            self.mix, self.write = mix, write

        def forward(self, tokens):
            streams = self.table(tokens).unsqueeze(2).expand(-1, -1, 4, -1)
            for _ in range(self.passes):
                update = self.f(self.norm(streams.mean(2)))
                streams = torch.einsum("btnd,nm->btmd", streams, self.mix) + self.write * update.unsqueeze(2)
            return self.head(streams.mean(2))

    found = diagnose(Streams(), products=8)
    assert not found.at_least("warning"), found.text()
    assert found.details["one_step"]["slope_first"] < 0.35


@pytest.mark.parametrize("normed", [False, True])
def test_small_projections_are_a_second_scale_where_they_act(normed):
    """Behind a norm the size of a projection is no scale at all, whatever formula it agrees with."""

    class Shrunk(Toy):
        def __init__(self):
            super().__init__(8)
            self.after = nn.LayerNorm(D) if normed else nn.Identity()
            nn.init.normal_(self.f[0].weight, std=0.2)
            nn.init.normal_(self.f[2].weight, std=0.2 / 4)

        def visit(self, x, n):
            return x + self.after(self.f(self.norm(x))) / n

    found = told(Shrunk())
    assert found.codes == (set() if normed else {"double-depth-scale"}), found.text()
    if not normed:
        assert found.findings[0].lines[0].startswith("model.get_parameter('f.2.weight').data.mul_(")
        assert "then no finding" in found.findings[0].tried


class Stacked(nn.Module):
    """One parameter that holds the weights of all visits, or one for all."""

    def __init__(self, shared):
        super().__init__()
        self.w, self.shared = nn.Parameter(torch.randn(5, D, D) / 8), shared

    def forward(self, x):
        for i in range(5):
            x = x + torch.tanh(x @ self.w[0 if self.shared else i]) / 5
        return x


def test_slices_of_one_parameter_are_different_weights():
    assert told(Stacked(shared=False), torch.randn(4, D)).codes == {"not-looped"}
    assert told(Stacked(shared=True), torch.randn(4, D)).loops == 5


def test_a_norm_at_some_of_the_visits_bounds_the_stream():
    class Sometimes(Toy):
        def forward(self, tokens):
            x = self.table(tokens)
            for n in range(self.passes):
                x = x + self.f(self.norm(x))
                x = self.norm(x) if n % 3 == 2 else x
            return self.head(x)

    found = told(Sometimes(12))
    assert found.codes == {"norm-bounded"} and found.growth == "bounded", found.text()


def test_uses_at_two_places_of_a_visit_are_one_visit():
    """A step of a sparse code reads its dictionary twice: A^T (A z - x)."""

    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.A, self.steps = nn.Parameter(torch.randn(8, D) / 8), 6

        def forward(self, x):
            z = torch.zeros(len(x), D)
            for _ in range(self.steps):
                z = torch.nn.functional.softshrink(z - (z @ self.A.T - x) @ self.A, 0.01)
            return z

    assert told(Sparse(), torch.randn(4, 8)).loops == 6


def test_a_loop_whose_every_visit_is_an_answer_is_not_idle():
    class Memory(Toy):
        def forward(self, tokens):
            memory, told = self.table(tokens), []
            for _ in range(self.passes):
                memory = memory + 1e-4 * self.f(self.norm(memory))
                told.append(self.f(self.norm(memory)))
            return self.head(torch.cat(told, 1))

    assert "idle-loop" not in told(Memory(4)).codes


@pytest.mark.parametrize(("start", "codes"), [(1 / 8, {"double-depth-scale"}), (1e-3, set())])
def test_a_learned_factor_that_starts_at_one_over_n_beside_one_over_n(start, codes):
    gain = nn.Parameter(torch.full((D,), start))
    model = visits_of(lambda m, x, _, n: x + m.gain * m.f(m.norm(x)) / n, gain=gain)
    model.passes = 8
    assert told(model).codes == codes


@pytest.mark.parametrize(("far", "codes"), [(-19.0, {"marginal-decay"}), (0.0, {"norm-bounded"})])
def test_a_complex_decay_has_a_modulus(far, codes):
    class Rotates(Toy):
        def __init__(self):
            super().__init__(6)
            self.nu, self.angle = nn.Parameter(torch.full((D // 2,), far)), nn.Parameter(torch.rand(D // 2))

        def visit(self, x, n):
            turn = torch.polar(torch.exp(-torch.exp(self.nu)), self.angle)
            state, update = (
                torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) for t in (x, self.f(self.norm(x)))
            )
            return torch.view_as_real(turn * state + update / n).flatten(-2)

    found = told(Rotates())
    assert found.codes == codes and found.layers == 1, found.text()


def test_a_mask_that_is_drawn_is_a_factor():
    def drawn(m, x, _, n):
        return x + 1 / n * (torch.rand_like(x[..., :1]) < 0.5).float() * m.f(m.norm(x))

    found = told(visits_of(drawn))
    assert found.codes == set() and found.effective_scale < 1 / 6, found.text()


class Turns(Toy):
    """Two states take turns at one network, both added to at full size; the norm stands within the branch."""

    def forward(self, tokens):
        y = start = self.table(tokens)
        z = torch.zeros_like(y)
        for _ in range(self.passes):
            z = z + 3 * self.f(self.norm(z + y + start))
            y = y + 3 * self.f(self.norm(y + z))
        return self.head(y)


class Shifts(Toy):
    """A stream that is shifted by a token before the input is added to it, at every visit."""

    def forward(self, tokens):
        h = start = self.table(tokens)
        for _ in range(self.passes):
            h = start + torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
            h = h + self.f(self.norm(h)) / self.passes
        return self.head(h)


@pytest.mark.parametrize("kind", [Turns, Shifts])
def test_a_stream_that_grows_beyond_its_limit_is_never_bounded(kind):
    found = diagnose(kind(9), torch.randint(0, 20, (2, 64)), products=0)
    assert found.gain > 2 and found.growth != "bounded" and "norm-bounded" not in found.codes, found.text()
    assert any(finding.severity != "info" for finding in found.findings), found.text()


def test_a_law_does_not_deny_the_growth_that_a_cause_was_shown_for():
    found = told(visits_of(lambda m, x, _, n: x + 5 * m.f(m.norm(x)) / 3))
    assert found.gain > 2 and "unscaled-residual" in found.codes and found.growth != "bounded", found.text()


def test_the_gradient_is_taken_from_an_output_that_has_one():
    """A state that is handed back for the next call comes first, and is cut off."""

    class Carries(Toy):
        def forward(self, tokens):
            x = self.table(tokens)
            with torch.no_grad():
                for _ in range(self.passes - 2):
                    x = self.norm(x + self.f(x))
            for _ in range(2):
                x = self.norm(x + self.f(x))
            return {"state": x.detach()}, {"logits": self.head(x)}

    found = told(Carries(6))
    assert found.codes == {"norm-bounded", "truncated-gradient"} and found.kappa, found.text()


class Teacher(Toy):
    """A copy of the branch runs a stream of its own, as a teacher does; `after`: it goes on where the other has ended."""

    def __init__(self, frozen, after):
        super().__init__()
        self.after, self.copy = after, copy.deepcopy(self.f).requires_grad_(not frozen)

    def forward(self, tokens):
        x = own = self.table(tokens)
        for _ in range(self.passes):
            own = own + self.f(self.norm(own)) / self.passes
        x = own if self.after else x
        for _ in range(self.passes):
            x = x + self.copy(self.norm(x)) / self.passes
        return self.head(own), self.head(x)


@pytest.mark.parametrize(("frozen", "after"), [(True, False), (False, False), (True, True), (False, True)])
def test_a_frozen_copy_or_one_on_a_stream_of_its_own_is_no_copy_by_mistake(frozen, after):
    assert ("untied" in told(Teacher(frozen, after)).codes) == (after and not frozen)


class RawMatrices(nn.Module):
    """Attention and an MLP as functions of raw parameters, `x @ w`, the writing ones smaller by `start`."""

    def __init__(self, start, eps, stacked=False):
        super().__init__()
        shapes = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "up": (D, 4 * D), "down": (4 * D, D)}
        made = {n: torch.randn(s) * s[0] ** -0.5 * (start if n in ("o", "down") else 1) for n, s in shapes.items()}
        self.p = nn.ParameterDict({n: nn.Parameter(torch.stack([v, -v]) if stacked else v) for n, v in made.items()})
        self.table, self.norm, self.head = nn.Embedding(20, D), nn.LayerNorm(D), nn.Linear(D, 20)
        self.eps, self.loops, self.stacked = eps, 8, stacked

    def forward(self, tokens):
        x = self.table(tokens)
        p = {n: w[0] if self.stacked else w for n, w in self.p.items()}
        for _ in range(self.loops):
            h = self.norm(x)
            mix = torch.softmax((h @ p["q"]) @ (h @ p["k"]).mT / D**0.5, -1) @ (h @ p["v"])
            x = x + self.eps * torch.einsum("btd,de->bte", mix, p["o"])
            x = x + self.eps * (torch.relu(self.norm(x) @ p["up"]) @ p["down"])
        return self.head(x)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("start", "code"), [(1 / 4, {"double-depth-scale"}), (1.0, set())])
def test_matrices_that_are_raw_parameters_hide_no_second_scale(start, code, stacked):
    found = told(RawMatrices(start, 1 / 8, stacked))
    assert found.codes == code, found.text()
    assert found.details["init_ratio"] == pytest.approx(start, rel=0.2)
    if code:
        assert "then no finding" in found.findings[0].tried
        told_where = [line.partition("'")[2].partition("'")[0] for line in found.findings[0].lines]
        assert stacked or told_where == ["p.o", "p.down"], found.text()


class Drift(nn.Module):
    """Towards nothing by a share `rate(N)` at every visit, spelt as an addition."""

    def __init__(self, rate, loops=8):
        super().__init__()
        self.read, self.inner, self.out = nn.Linear(6, D), nn.Linear(D, D), nn.Linear(D, 3)
        self.rate, self.loops = rate, loops

    def forward(self, x):
        h = self.read(x)
        for _ in range(self.loops):
            h = h + self.rate(self.loops) * (torch.tanh(self.inner(h)) - h)
        return self.out(h)


@pytest.mark.parametrize(
    ("rate", "loops", "code"),
    [
        (lambda n: 1 / n, 8, set()),
        (lambda n: 0.5 / n, 8, set()),
        (lambda n: 1 / n, 40, set()),
        (lambda n: 0.2, 8, {"norm-bounded"}),
    ],
)
def test_a_drift_of_one_time_in_all_bounds_no_stream(rate, loops, code):
    assert told(Drift(rate, loops), torch.randn(5, 6)).codes == code
