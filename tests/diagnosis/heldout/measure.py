"""Measure the models of a batch with plain torch, without loopscale: the size of the watched variable over the visits.

python tests/diagnosis/heldout/measure.py a [part of a name ...]
For each model: how often the variable changed, its size in steps, the exponent of |h_n - h_0|, and the factor by which a
small difference grew at the last change (an expansion, seen along one direction).
"""

import importlib.util
import math
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def modules(batch):
    for path in sorted((HERE / batch).glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"heldout_{batch}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield path, module


def states(model, batch, watch):
    """Every new value of a local variable of a function, in order."""
    function, _, name = watch.partition(":")
    found = []

    def local(frame, event, _):
        value = frame.f_locals.get(name)
        if torch.is_tensor(value) and value.is_floating_point():
            now = value.detach().float().clone()
            if not found or found[-1].shape != now.shape or not torch.equal(found[-1], now):
                found.append(now)
        return local

    def trace(frame, event, _):
        return local if frame.f_code.co_qualname == function else None

    sys.settrace(trace)
    try:
        model(*batch)
    finally:
        sys.settrace(None)
    return [s for s in found if s.shape == found[-1].shape]


def batch_of(made):
    if isinstance(made, tuple):
        given = made[1]
        if isinstance(given, dict):
            return made[0], tuple(given.values())
        return made[0], given if isinstance(given, tuple) else (given,)
    table = next(m for m in made.modules() if isinstance(m, torch.nn.Embedding) or hasattr(m, "p"))
    size = table.num_embeddings if isinstance(table, torch.nn.Embedding) else 64
    return made, (torch.randint(0, size, (2, 16), generator=torch.Generator().manual_seed(9)),)


def main():
    for path, module in modules(sys.argv[1]):
        for name, truth in module.TRUTHS.items():
            case = f"{path.stem}:{name}"
            if sys.argv[2:] and not any(word in case for word in sys.argv[2:]):
                continue
            torch.manual_seed(0)
            model, batch = batch_of(getattr(module, name)())
            model.eval()
            seen = states(model, batch, truth["watch"])
            sizes = [float(s.pow(2).mean().sqrt()) for s in seen]
            moved = [float((s - seen[0]).norm()) for s in seen[1:]]
            half = len(moved) // 2
            slope = math.nan
            if half > 1 and all(m > 0 for m in moved[half - 1 :]):
                slope = math.log(moved[-1] / moved[half - 1]) / math.log(len(moved) / half)
            with torch.no_grad():
                first = next(p for p in model.parameters())
                first.add_(1e-3 * torch.randn(first.shape, generator=torch.Generator().manual_seed(4)))
            again = states(model, batch, truth["watch"])
            gap = [float((a - b).norm()) for a, b in zip(again, seen)]
            last = gap[-1] / gap[-2] if len(gap) > 2 and gap[-2] else math.nan
            shown = " ".join(f"{s:.2f}" for s in sizes[:: max(1, len(sizes) // 12)])
            print(
                f"{case:26} {len(seen) - 1:3} changes, gain {sizes[-1] / max(sizes[0], 1e-9):7.2f}, n^{slope:.2f}, last x{last:.2f}: {shown}"
            )


if __name__ == "__main__":
    main()
