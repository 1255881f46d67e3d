"""Hold `attach` to its laws on one architecture. `python tests/adapt/adapt_examine.py --out
records/attach_architectures.json`.

Checked here from outside, not with the library's own check: scale 1 and detach bit-identical, strength 0 the identity
and blind to every weight of a branch, a compiled model equal to eager at several N without a new graph, tracing against
convention.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from adapt_architectures import MODELS, VISITS, batch_for, make
from torch import nn

from loopscale import attach, detach
from loopscale.adapt.trace import by_trace
from loopscale.adapt.verify import stream_of
from loopscale.probe.batch import prepare


def examine(name: str, backend: str) -> dict[str, Any]:
    """A row of the table; every law that fails is False (or a difference) in it."""
    model = make(name)
    batch = {**batch_for(model), "use_cache": False} if hasattr(model.config, "use_cache") else batch_for(model)
    traced = [branch.name for branch in by_trace(model, prepare(model, batch))]
    state, before = copy.deepcopy(model.state_dict()), output(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        visits = VISITS.get(name, 1)
        handle = attach(model, loops=visits, strength=visits, layers=2, base_layers=2, rule="looped")
        row = {"architecture": name, "class": type(model).__name__, "branches": len(handle.branches)}
        row |= {"found_by": handle.found_by, "post_norm": handle.post_norm}
        row["trace_agrees"] = traced == [branch.name for branch in handle.branches]
        row["scale_1"] = torch.equal(output(model, batch), before) and list(model.state_dict()) == list(state)
        row |= compiled_equal(model, batch, handle, backend)
        handle.detach()
        attach(model, loops=2, strength=0.0)
    row["strength_0"] = identity(model, batch, handle)
    detach(model)
    same_state = all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    row["detach"] = same_state and torch.equal(output(model, batch), before)
    return row


def output(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The first tensor that the model returns."""
    with torch.no_grad():
        return model(**batch)[0]


def compiled_equal(model: nn.Module, batch: dict[str, Any], handle: Any, backend: str) -> dict[str, Any]:
    """The largest relative difference between compiled and eager over N, and the graphs made by changing N."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    compiled, worst, graphs = torch.compile(model, backend=backend), 0.0, []
    for loops in (2, 1, 3, 8):
        handle.set_loops(loops)
        eager = output(model, batch)
        worst = max(worst, float((output(compiled, batch) - eager).abs().max() / eager.abs().max()))
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    return {"compiled_difference": worst, "graphs_made_by_changing_loops": graphs[-1] - graphs[0]}


def identity(model: nn.Module, batch: dict[str, Any], handle: Any) -> str | bool:
    """What strength 0 leaves of the layers: "identity", or "norms" where none of the branches' matrices has a say."""
    same: list[bool] = []

    def compare(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        same.append(torch.equal(stream_of((args, kwargs)), stream_of(out)))

    layers = {branch.layer for branch in handle.branches}
    hooks = [model.get_submodule(name).register_forward_hook(compare, with_kwargs=True) for name in layers]
    before = output(model, batch)
    for hook in hooks:
        hook.remove()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in layers:
            for parameter in other.get_submodule(name).parameters():
                if parameter.ndim >= 2:
                    parameter.add_(torch.randn_like(parameter))
    if not torch.equal(output(other, batch), before):
        return False
    return "identity" if all(same) else "norms"


def holds(row: dict[str, Any]) -> bool:
    """Whether every law holds in this row."""
    zero = row["strength_0"] == "identity" or (row["strength_0"] == "norms")
    equal = row["compiled_difference"] < 1e-4 and row["graphs_made_by_changing_loops"] == 0
    return bool(row["scale_1"] and row["detach"] and zero and equal)


if __name__ == "__main__":
    from loopscale.files import write_json
    from loopscale.train import provenance

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    chosen = parser.parse_args()
    rows = []
    for place, key in enumerate(chosen.only):
        rows.append(examine(key, chosen.backend))
        print(place + 1, json.dumps(rows[-1]), file=sys.stderr, flush=True)
    import transformers

    origin = {**provenance(), "transformers": transformers.__version__, "seeds": [0, 1]}
    record = {
        "claim": "attach on architectures of transformers",
        "backend": chosen.backend,
        "rows": rows,
        "provenance": origin,
    }
    if chosen.out:
        write_json(chosen.out, record)
    raise SystemExit(0 if all(map(holds, rows)) else 1)
