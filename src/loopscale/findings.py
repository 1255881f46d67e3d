"""What a diagnosis can find: one row each. The diagnosis, its schema, its page, `explain` and the documents read the rows.

A new finding is a row here and a function in `diagnosis/causes.py` that yields it.
"""

from __future__ import annotations

from dataclasses import dataclass

_PAPER = "papers/residual_scaling/figures"


@dataclass(frozen=True)
class Row:
    """`severity` is the default one; `figure` is what the page draws beside it; `paper` a figure of the repository."""

    code: str
    severity: str
    figure: str
    title: str
    cause: str
    remedy: str
    formula: str
    source: str
    paper: str | None = None


FINDINGS = (
    Row(
        "unscaled-residual",
        "error",
        "norms",
        "The branches carry no factor for loops.",
        "a shared layer adds nearly the same update at every visit, so N visits push the stream N times as far as one",
        "multiply every residual branch by residual_scale(Depth(N, L)), or let attach(model, loops=N) do it; tune the "
        "strength at few loops",
        "h <- h + f(h), |h_N| ~ N; mend with eps = lambda / (N sqrt(L))",
        "arXiv:2606.18524; predictions 1 to 4",
        f"{_PAPER}/03.svg",
    ),
    Row(
        "sqrt-scaled",
        "warning",
        "scales",
        "The branches are scaled by 1/sqrt(depth), the rule for distinct layers.",
        "1/sqrt(depth) assumes that updates point in independent directions; visits of one layer do not, so the stream "
        "still grows like sqrt(N)",
        "replace sqrt(N) by N; keep sqrt(L) for the layers; where it stands in the initialisation, initialise output "
        "projections like the others and scale the branches by eps",
        "eps = 1/sqrt(N L): |h_N| ~ sqrt(N)",
        "arXiv:2310.02244 for distinct layers; arXiv:2606.18524 for loops; predictions 3 and 5",
        f"{_PAPER}/05.svg",
    ),
    Row(
        "miscounted-loops",
        "error",
        "scales",
        "The scale counts other loops than the model makes.",
        "a Loop counts the visits of one call, and attach what it was told; a `for` left around the Loop, or another N "
        "set in the model, makes more",
        "call the Loop once, with loops=N; of an attached model set both, the model's own N and handle.set_loops(N)",
        "eps = lambda / (n sqrt(L)) with n < N: |h_N| ~ N / n",
        "loops around loops",
    ),
    Row(
        "nested-skip",
        "error",
        "norms",
        "The stream is added to a copy of itself at every visit.",
        "the block already returns x + f(x) and the loop adds x again, so the stream is multiplied at every visit: "
        "exponential, not linear; streams side by side that are read as a sum do the same",
        "iterate x = block(x), or add block(x) - x; of several streams read a mean (weights that sum to 1)",
        "h <- h + (h + f(h)): |h_N| ~ 2^N",
        "loops around whole blocks; prediction 21; hyper-connections (arXiv:2604.21254)",
    ),
    Row(
        "norm-bounded",
        "info",
        "norms",
        "A norm or a contraction inside the loop sets the size of the stream.",
        "whatever a visit adds, the next norm divides it out, so the residual scale does not control the size; it still "
        "controls how far one update moves the direction",
        "your loop is norm-bounded, eps is not the lever: look at alignment and at gradients over visits",
        "|F(c h)| / |c h| -> 0 for large c",
        "sandwich norm (arXiv:2510.25741), Huginn block (arXiv:2502.05171), contractive carry (arXiv:2604.12946)",
    ),
    Row(
        "unscaled-injection",
        "error",
        "ratios",
        "The same input is added at every visit.",
        "an injected input, a position or a time signal is a perfectly aligned update: it sums to N times itself whatever "
        "the branches do",
        "scale it by 1/N, add it once before the loop or to the branch's input only, or carry h contractively",
        "h <- h + e + eps f(h): |h_N| ~ N |e|",
        "prediction 21",
        f"{_PAPER}/21.svg",
    ),
    Row(
        "expanding-map",
        "warning",
        "eigenvalues",
        "A visit without a skip multiplies differences.",
        "nothing carries the stream past the block, so each visit multiplies it by the block's own gain; eps has no branch "
        "to scale",
        "bring the map's radius below 1: divide a sum over neighbours by their number, norm the stream at each visit, "
        "initialise smaller, or add a skip and scale the branch",
        "h <- g(h), radius of dg/dh above 1: |h_N| ~ radius^N",
        "message passing by sums; recurrent networks at large gain",
    ),
    Row(
        "growth-unexplained",
        "warning",
        "norms",
        "A symptom is beyond its limit, and no change that was tried removes it.",
        "no addition, factor or injection that the tape sees makes up the symptom",
        "look at the modules named here, visit by visit (loopscale.watch); custom kernels hide additions from the tape",
        "|h_N| / |h_0| beyond its limit",
        "definition",
    ),
    Row(
        "idle-loop",
        "warning",
        "norms",
        "Leaving the loop out changes nothing.",
        "the result of the loop hardly reaches the output, or is never read",
        "use the loop's result in the output; if a gate closed it, look at the gate",
        "|y - y without the loop| / |y| < 0.001",
        "arXiv:2607.11116: 18 of 19 runs",
    ),
    Row(
        "restarts",
        "error",
        "norms",
        "The loop starts from the same input at every visit.",
        "the result of a visit is not handed to the next one, so N visits compute the same thing N times",
        "hand the result on: x = block(x)",
        "y_n = f(x) for every n",
        "definition of a loop",
    ),
    Row(
        "truncated-gradient",
        "info",
        "gradients",
        "The gradient reaches some of the visits only.",
        "the stream is detached, or early visits run without gradients: on purpose in truncated backpropagation",
        "nothing to mend where it is meant; Adam-like optimisers are unaffected, all N visits read the changed weight",
        "g_n = 0 for the first N - k visits",
        "truncated backpropagation (arXiv:2502.05171)",
    ),
    Row(
        "halts-early",
        "info",
        "norms",
        "The loop ends before its number of loops.",
        "a halting rule ended the loop, so eps = 1/N would count visits that are not made",
        "scale by the visits that are made, and measure again after training: halting moves",
        "N made < N asked for",
        "adaptive computation (arXiv:1807.03819)",
    ),
    Row(
        "train-eval-differ",
        "info",
        "norms",
        "Training and evaluation run different loops.",
        "a sampled number of loops, a halting rule, or running statistics of BatchNorm shared by all visits act in one "
        "mode only",
        "judge eps at the N of training; give BatchNorm inside a loop statistics for each visit, or use LayerNorm",
        "N or |h_N| / |h_0| differs between train() and eval()",
        "sampled loops (arXiv:2502.05171); BatchNorm inside recurrent networks",
    ),
    Row(
        "knob-without-effect",
        "warning",
        "norms",
        "A number of loops is given and not used.",
        "the argument or config value is stored, and the forward reads another number",
        "let the forward read it: for _ in range(loops)",
        "N(loops = a) = N(loops = b)",
        "definition",
    ),
    Row(
        "marginal-decay",
        "warning",
        "eigenvalues",
        "A decay meant to be below 1 rounds to 1.",
        "a decay that is below 1 by construction can be 1.0 in single precision; then those channels never forget",
        "bound it away from 1, for example exp(-softplus(a) - 1e-3), or store 1 - decay",
        "h <- a h + ..., a = 1 - delta with delta < 2^-24 is 1 in fp32",
        "contractive carries (arXiv:2604.12946) in fp32",
    ),
    Row(
        "dead-branch",
        "info",
        "ratios",
        "A branch adds exactly nothing.",
        "zero-initialised output projections and gates hide every law at initialisation; the law appears after the first "
        "steps",
        "nothing to mend at initialisation; growth and scale are judged after a few training steps on a copy",
        "f(h) = 0",
        "ReZero, SkipInit and LayerScale start this way on purpose",
    ),
    Row(
        "double-depth-scale",
        "warning",
        "scales",
        "Two depth rules stand on top of each other.",
        "output projections initialised by 1/sqrt(2 depth), or a second factor in the forward, shrink the branch once, "
        "the residual scale again",
        "initialise output projections like the other matrices; eps alone carries the depth. In one layer the factor is "
        "1/sqrt(2), as between Kaiming in and linear out: no finding then, the ratio is printed as `weights`",
        "std(W_out) = std / sqrt(2 E) and eps = 1/(N sqrt(L)); or eps * eps",
        "GPT-2's initialisation, std / sqrt(2 depth) on output projections",
    ),
    Row(
        "bf16-absorbed",
        "warning",
        "ratios",
        "Updates are lost in a bf16 stream.",
        "bf16 keeps 8 significant bits: an addition below about 2^-8 of the stream rounds away, and 1/N makes additions "
        "small",
        "keep the stream in fp32, the branches in bf16",
        "|eps f| < 2^-8 |h|",
        "arithmetic of bf16",
    ),
    Row(
        "not-looped",
        "error",
        "norms",
        "No parameter acts twice on its own result.",
        "without a shared layer that reads its own output there is no N, and no rule for loops applies",
        "set the number of loops above 1, name what sets it with --loops-arg, or use the rule for distinct layers",
        "N = 1",
        "definition of a loop",
    ),
    Row(
        "untied",
        "error",
        "gradients",
        "Weights meant to be shared are not.",
        "copies of equal value drift apart in training; the model has N times the parameters and the law of distinct "
        "layers",
        "assign the same module or parameter object at every visit, after any deepcopy, cast or load with assign=True",
        "W_1 = W_2 by value, not by memory",
        "a bug that stayed for a year in a published model (page Footguns of the documentation)",
    ),
    Row(
        "nonfinite",
        "error",
        "norms",
        "A weight or an activation is not finite.",
        "once a value overflows everything after it is lost; the first place says why",
        "go back to a checkpoint before it; scale the branches, lower the rate, or keep the stream in fp32",
        "inf or nan in weights or outputs",
        "definition",
    ),
)
BY_CODE = {row.code: row for row in FINDINGS}
