"""Predictions that show at initialisation or within a few steps: 1 to 8, 17, 18, 20, 21. Seconds to a minute each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from networks import MLP, Attention, Unscaled, branch_outputs, looped_mlp, tokens, transformer
from outcome import ABOVE, Figure, Line, Outcome, about, over_seeds, slope
from torch import Tensor, nn

import loopscale as ls

SEEDS = range(5)
LOOPS = (1, 2, 4, 8, 16, 32, 64)
LATE = (4, 8, 16, 32, 64)  # slopes are fitted here: the entry of RMS 1 hides the law at N = 1 and 2
RULES = {"looped": "1/N", "sqrt": "1/sqrt(N)", "none": "none"}
HOUSE = "house Transformer, d = 128, L = 1, 8 sequences of 64 random bytes, random weights"


def rms(x: Tensor) -> float:
    """Root mean square of all elements."""
    return float(x.detach().float().square().mean().sqrt())


@torch.no_grad()
def visits_aligned() -> Outcome:
    """Prediction 1: cosine of one branch's outputs over the visits, tied against distinct layers."""
    count, lines, measured = 16, [], []
    for tied in (True, False):
        for kind in ("attention", "mlp"):
            rows = []
            for seed in SEEDS:
                model = transformer("looped", seed, layers=1 if tied else count)
                with branch_outputs(model, kind) as seen:
                    model(tokens(seed), loops=count if tied else 1)
                flat = F.normalize(torch.stack(seen).flatten(1), dim=1)
                gram = flat @ flat.T
                rows.append([float(gram.diagonal(lag).mean()) for lag in range(1, count)])
            name = f"{kind}, {'tied' if tied else 'distinct layers'}"
            lines.append(Line(name, range(1, count), rows))
            weights = torch.arange(count - 1, 0, -1.0)
            means = [float((torch.tensor(row) * weights).sum() / weights.sum()) for row in rows]
            measured.append(over_seeds(f"mean cosine, {name}", means, (0.75, 1.0) if tied else about(0, 0.1)))
    figure = Figure("visits apart", "cosine of two outputs of a branch", lines, log_x=False, log_y=False)
    return Outcome(1, measured, figure, HOUSE + ", N = 16, eps = 1/N")


@torch.no_grad()
def coherent_sum() -> Outcome:
    """Prediction 2: how the summed outputs of a branch grow with their number."""
    lines, measured = [], []
    for tied in (True, False):
        rows = []
        for seed in SEEDS:
            row = []
            for n in LOOPS[:-1]:
                model = transformer("looped", seed, layers=1 if tied else n)
                with branch_outputs(model, "mlp") as seen:
                    model(tokens(seed), loops=n if tied else 1)
                row.append(float(torch.stack(seen).sum(0).square().sum()))
            rows.append(row)
        name = "tied" if tied else "distinct layers"
        lines.append(Line(name, LOOPS[:-1], rows))
        slopes = [slope(LOOPS[:-1], row) for row in rows]
        measured.append(over_seeds(f"slope, {name}", slopes, about(2 if tied else 1, 0.15)))
    return Outcome(2, measured, Figure("N", "squared norm of the sum of MLP outputs", lines), HOUSE)


def _streams(rule: str, seed: int, loops: Sequence[int], layers: int = 1) -> list[float]:
    model = transformer(rule, seed, layers=layers)
    return [model.visit_rms(tokens(seed), loops=n)[-1] for n in loops]


def stream_norm() -> Outcome:
    """Prediction 3: the stream's size over N for three scales."""
    lines, measured = [], []
    for rule, expected in (("none", 1.0), ("sqrt", 0.5), ("looped", 0.0)):
        rows = [_streams(rule, seed, LOOPS) for seed in SEEDS]
        lines.append(Line(f"eps {RULES[rule]}", LOOPS, rows))
        slopes = [slope(LATE, row[2:]) for row in rows]
        measured.append(over_seeds(f"slope, eps {RULES[rule]}", slopes, about(expected, 0.15)))
    return Outcome(3, measured, Figure("N", "RMS of the stream after N visits", lines), HOUSE)


@torch.no_grad()
def no_norm() -> Outcome:
    """Prediction 4: the same without any norm, one ReLU layer."""
    lines, measured, width = [], [], 256
    for rule in ("none", "sqrt", "looped"):
        rows = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            loop = ls.Loop(nn.Sequential(ls.ScaledResidual(MLP(width, "relu"))), loops=1, rule=rule)
            x = torch.randn(64, width)
            rows.append([rms(loop(x, loops=n)) for n in LOOPS])
        lines.append(Line(f"eps {RULES[rule]}", LOOPS, rows))
        # In powers of ten: growth is exponential and its ratio is log-normal over seeds.
        grown = [math.log10(row[-1] / row[3]) for row in rows]
        limits = about(0, 0.15) if rule == "looped" else (1.0, ABOVE)
        measured.append(over_seeds(f"log10 of RMS at N = 64 over RMS at N = 8, eps {RULES[rule]}", grown, limits))
    figure = Figure("N", "RMS of the stream after N visits", lines)
    note = "Measured in powers of ten since a first run: plain ratios over seeds were undecided, their mean has no meaning."
    return Outcome(4, measured, figure, "one ReLU MLP without norm, d = 256", note)


def untied_control() -> Outcome:
    """Prediction 5: distinct layers at 1/sqrt(depth)."""
    depths = LOOPS[:-1]
    rows = [
        [transformer("looped", seed, layers=depth).visit_rms(tokens(seed), loops=1)[-1] for depth in depths]
        for seed in SEEDS
    ]
    tied = [_streams("sqrt", seed, depths) for seed in SEEDS]
    measured = [
        over_seeds("slope, distinct layers, eps 1/sqrt(depth)", [slope(depths, r) for r in rows], about(0, 0.1))
    ]
    lines = [Line("distinct layers", depths, rows), Line("one layer, looped", depths, tied)]
    return Outcome(5, measured, Figure("depth", "RMS of the stream at the end", lines), HOUSE + ", eps = 1/sqrt(depth)")


@torch.no_grad()
def factorisation() -> Outcome:
    """Prediction 6: the sum of updates over the grid of N and L."""
    loops, layers = (1, 4, 16), (1, 4, 16)
    names = {"looped": "1/(N sqrt L)", "looped-complete": "1/(N L)", "sqrt": "1/sqrt(N L)", "none": "none"}
    lines, measured = [], []
    for rule, name in names.items():
        spreads, corner = [], []
        for seed in SEEDS:
            cells = {}
            for count in layers:
                model = transformer(rule, seed, layers=count)
                for n in loops:
                    kept = model.run(tokens(seed), n, keep=True)
                    cells[n, count] = rms(kept[-1] - kept[0])
            spreads.append(max(cells.values()) / min(cells.values()))
            corner.append([cells[n, count] for n in loops for count in layers])
        lines.append(Line(f"eps {name}", [1, 2, 3, 4, 5, 6, 7, 8, 9], corner))
        limits = (1.0, 1.5) if rule == "looped" else (2.0, ABOVE)
        measured.append(over_seeds(f"largest over smallest, eps {name}", spreads, limits))
    grid = "cells (N, L) = (1, 1), (1, 4), (1, 16), (4, 1), ..., (16, 16)"
    figure = Figure(grid, "RMS of the sum of updates", lines, log_x=False)
    return Outcome(6, measured, figure, HOUSE.replace("L = 1", "L = 1, 4, 16") + ", N = 1, 4, 16")


CHECKED = (1, 2, 4, 8, 16)


def one_step_change() -> Outcome:
    """Prediction 7: how far 1 and 10 Adam steps move the stream."""
    lines, measured = [], []
    for rule, name in RULES.items():
        checks = [
            ls.check_parameterization(
                transformer(rule, seed, width=64), rule, CHECKED, batch=tokens(seed, 4, 32), steps=10
            )
            for seed in SEEDS
        ]
        limits = about(0, 0.2) if rule == "looped" else (0.3, ABOVE)
        for steps, key in ((1, "change_first"), (10, "change_last")):
            values = [check.slopes[key] for check in checks]
            measured.append(over_seeds(f"slope after {steps} steps, eps {name}", values, limits))
        lines.append(Line(f"eps {name}", CHECKED, [[row.change_first for row in check.rows] for check in checks]))
    figure = Figure("N", "RMS change of the stream by one step", lines)
    return Outcome(7, measured, figure, "house Transformer, d = 64, L = 1, Adam at 2^-10, random bytes")


def gradient_norm() -> Outcome:
    """Prediction 8: the gradient of the shared weights over N."""
    loops, lines, measured = LOOPS[:-1], [], []
    for rule, name in RULES.items():
        rows = []
        for seed in SEEDS:
            model, batch = transformer(rule, seed), tokens(seed)
            shared = [p for key, p in model.named_parameters() if key.startswith("core.")]
            row = []
            for n in loops:
                loss = F.cross_entropy(model(batch[:, :-1], loops=n).flatten(0, 1), batch[:, 1:].flatten())
                grads = torch.autograd.grad(loss, shared)
                row.append(sum(float(g.square().sum()) for g in grads) ** 0.5)
            rows.append(row)
        lines.append(Line(f"eps {name}", loops, rows))
        slopes = [slope(loops, row) for row in rows]
        if rule == "looped":
            measured.append(over_seeds(f"slope, eps {name}", slopes, about(0, 0.15)))
    return Outcome(8, measured, Figure("N", "norm of the shared weights' gradient", lines), HOUSE)


def any_activation() -> Outcome:
    """Prediction 17: predictions 3 and 7 for three activations."""
    lines, measured = [], []
    for activation in ("relu", "gelu", "swiglu"):
        for rule in ("looped", "none"):
            checks = []
            for seed in SEEDS:
                batch = torch.randn(4, 32, 128, generator=torch.Generator().manual_seed(seed))
                factory = looped_mlp(activation, rule, seed)
                checks.append(ls.check_parameterization(factory, rule, CHECKED, batch=batch, steps=1))
            name = f"{activation}, eps {RULES[rule]}"
            lines.append(Line(name, CHECKED, [[row.stream for row in check.rows] for check in checks]))
            for key, word in (("stream", "stream"), ("change_first", "one-step change")):
                limits = about(0, 0.2) if rule == "looped" else (0.3, ABOVE)
                values = [check.slopes[key] for check in checks]
                measured.append(over_seeds(f"slope of the {word}, {name}", values, limits))
    figure = Figure("N", "RMS of the stream after N visits", lines)
    return Outcome(17, measured, figure, "one pre-norm MLP, d = 128, Gaussian input, Adam at 2^-10")


@torch.no_grad()
def both_branches() -> Outcome:
    """Prediction 18: only one of the two branches scaled."""
    lines, measured, width = [], [], 128
    kinds = {"both": (True, True), "only attention": (True, False), "only MLP": (False, True)}
    for name, scaled in kinds.items():
        rows = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            branches = (Attention(width), MLP(width, "swiglu"))
            stack = nn.Sequential(
                *(
                    (ls.ScaledResidual if by_rule else Unscaled)(branch, norm=nn.RMSNorm(width))
                    for branch, by_rule in zip(branches, scaled, strict=True)
                )
            )
            loop, x = ls.Loop(stack, loops=1, layers=1), torch.randn(4, 32, width)
            rows.append([rms(loop(x, loops=n)) for n in LOOPS])
        lines.append(Line(f"scaled: {name}", LOOPS, rows))
        limits = about(0, 0.15) if name == "both" else (0.3, ABOVE)
        measured.append(over_seeds(f"slope, scaled: {name}", [slope(LATE, row[2:]) for row in rows], limits))
    figure = Figure("N", "RMS of the stream after N visits", lines)
    return Outcome(18, measured, figure, "attention and SwiGLU, d = 128, Gaussian input, random weights")


def negative_control() -> Outcome:
    """Prediction 20: all pre-norm rules that keep the start at N = 1, bit by bit, before and after three steps."""
    rules = [name for name, rule in ls.RULES.items() if rule.keeps_start]
    differing = []
    for seed in SEEDS:
        finals = [_after_steps(rule, seed) for rule in rules]
        pairs = [zip(finals[0], other, strict=True) for other in finals[1:]]
        differing.append(float(sum(not torch.equal(a, b) for pair in pairs for a, b in pair)))
    figure = Figure("seed", "tensors that differ", [Line("all rules", [1], [[d] for d in differing])], False, False)
    setting = f"rules {', '.join(rules)} at N = 1, L = L_base = 2, logits and all weights after 3 AdamW steps"
    return Outcome(20, [over_seeds("tensors that differ", differing, (0, 0))], figure, setting)


def _after_steps(rule: str, seed: int) -> list[Tensor]:
    config = ls.ModelConfig(width=64, layers=2, loops=1, rule=rule, base_layers=2)
    model, batch = ls.LoopedTransformer(config, seed=seed), tokens(seed, 4, 32)
    optimizer = ls.build_optimizer(model, lr=2**-6)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return [model(batch).detach(), *(p.detach() for p in model.parameters())]


@torch.no_grad()
def unscaled_path() -> Outcome:
    """Prediction 21: an input that is injected at every visit, in four ways."""
    width, lines, measured = 128, [], []
    kinds = {"added, unscaled": about(1, 0.15), "added, times 1/N": about(0, 0.15), "into the branch": about(0, 0.15)}
    for name, limits in kinds.items():
        rows = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            branch, norm, e = MLP(width, "swiglu"), nn.RMSNorm(width), torch.randn(64, width)
            rows.append([_injected(name, branch, norm, e, n) for n in LOOPS])
        lines.append(Line(name, LOOPS, rows))
        measured.append(over_seeds(f"slope, {name}", [slope(LATE, row[2:]) for row in rows], limits))
    figure = Figure("N", "RMS of the stream after N visits", lines)
    return Outcome(21, measured, figure, "one pre-norm SwiGLU at eps = 1/N, d = 128, Gaussian input")


def _injected(kind: str, branch: nn.Module, norm: nn.Module, e: Tensor, loops: int) -> float:
    eps, h = ls.residual_scale(ls.Depth(loops, 1)), e
    for _ in range(loops):
        if kind == "into the branch":
            h = h + eps * branch(norm(h + e))
        else:
            h = h + (e if kind == "added, unscaled" else e / loops)
            h = h + eps * branch(norm(h))
    return rms(h)


STUDIES = {
    1: visits_aligned,
    2: coherent_sum,
    3: stream_norm,
    4: no_norm,
    5: untied_control,
    6: factorisation,
    7: one_step_change,
    8: gradient_norm,
    17: any_activation,
    18: both_branches,
    20: negative_control,
    21: unscaled_path,
}
