"""Measure the models of a batch with plain torch, without loopscale: the size of the watched variable over the visits, and over N.

python tests/diagnosis/heldout/measure.py a [part of a name ...]
For each model: how often the variable changed, its size in steps, the exponent of |h_n - h_0|, the largest eigenvalue modulus of the
last visit (by powers of its transposed Jacobian), of how many visits the state has a gradient, the gain in training mode, the gain at half
and at twice the N where the factory takes one, and the exponent over N of what one step of SGD moves the output by.
"""

import importlib.util
import inspect
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
    """Every new value of a local variable of a function, in order: copies, the tensors themselves, and what the model gave."""
    function, _, name = watch.partition(":")
    found, live = [], []

    def local(frame, event, _):
        value = frame.f_locals.get(name)
        if torch.is_tensor(value) and (value.is_floating_point() or value.is_complex()):
            now = value.detach().clone() if value.is_complex() else value.detach().float().clone()
            if not found or found[-1].shape != now.shape or not torch.equal(found[-1], now):
                found.append(now)
                live.append(value)
        return local

    def trace(frame, event, _):
        return local if frame.f_code.co_qualname == function else None

    sys.settrace(trace)
    try:
        out = model(*batch)
    finally:
        sys.settrace(None)
    keep = [i for i, s in enumerate(found) if s.shape == found[-1].shape]
    return [found[i] for i in keep], [live[i] for i in keep], out


def batch_of(made):
    if isinstance(made, tuple):
        given = made[1]
        if isinstance(given, dict):
            return made[0], (given,) if len(inspect.signature(made[0].forward).parameters) == 1 else tuple(
                given.values()
            )
        return made[0], given if isinstance(given, tuple) else (given,)
    table = next(m for m in made.modules() if isinstance(m, torch.nn.Embedding) or hasattr(m, "p"))
    size = table.num_embeddings if isinstance(table, torch.nn.Embedding) else 64
    return made, (torch.randint(0, size, (2, 16), generator=torch.Generator().manual_seed(9)),)


def tensors(out):
    if torch.is_tensor(out):
        return [out] if out.is_floating_point() else []
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, (list, tuple)) else []
    return [t for part in parts for t in tensors(part)]


def made(factory, *n):
    torch.manual_seed(0)
    model, batch = batch_of(factory(*n))
    return model.eval(), batch


def gain(factory, watch, *n, train=False):
    model, batch = made(factory, *n)
    torch.manual_seed(1)
    seen = states(model.train(train), batch, watch)[0]
    return size(seen[-1]) / max(size(seen[0]), 1e-9)


def size(state):
    return float(state.abs().pow(2).mean().sqrt())


def radius(live, step):
    """Largest eigenvalue modulus of the last visit."""
    if len(live) <= step or not live[-1].requires_grad or not live[-1 - step].requires_grad:
        return math.nan
    v, last = torch.randn_like(live[-1]), math.nan
    sizes = []
    for _ in range(60):
        try:
            (v,) = torch.autograd.grad(live[-1], live[-1 - step], v, retain_graph=True, allow_unused=True)
        except RuntimeError:
            return math.nan
        if v is None or not float(v.norm()):
            return 0.0 if v is not None else math.nan
        sizes.append(float(v.norm()))
        v = v / v.norm()
    last = math.exp(sum(math.log(s) for s in sizes[-20:]) / 20)
    return last


def reach(live, out):
    """Of how many of the states that the loop began a visit from there is a gradient."""
    total = sum(t.float().pow(2).sum() for t in tensors(out))
    told = 0
    for state in live[:-1]:
        if not state.requires_grad:
            continue
        try:
            (g,) = torch.autograd.grad(total, state, retain_graph=True, allow_unused=True)
        except RuntimeError:
            return "?"
        told += g is not None and float(g.abs().sum()) > 0
    return told


def moved(factory, *n):
    """What one step of SGD on the sum of squares, of unit length in the weights, moves the output by."""
    model, batch = made(factory, *n)
    torch.manual_seed(1)
    before = model(*batch)
    total = sum(t.float().pow(2).mean() for t in tensors(before))
    params = [p for p in model.parameters() if p.requires_grad]
    try:
        grads = torch.autograd.grad(total, params, allow_unused=True)
    except RuntimeError:
        return math.nan
    with torch.no_grad():
        for p, g in zip(params, grads):
            if g is not None:
                p.sub_(1e-4 * g.sign() if not g.is_complex() else 1e-4 * g.sgn())
        torch.manual_seed(1)
        after = model(*batch)
    return math.sqrt(
        sum(float((a - b).detach().float().pow(2).mean()) for a, b in zip(tensors(after), tensors(before)))
    )


def main():
    for path, module in modules(sys.argv[1]):
        for name, truth in module.TRUTHS.items():
            case = f"{path.stem}:{name}"
            if sys.argv[2:] and not any(word in case for word in sys.argv[2:]):
                continue
            factory, watch = getattr(module, name), truth["watch"]
            model, batch = made(factory)
            seen, live, out = states(model, batch, watch)
            away = [float((s - seen[0]).norm()) for s in seen[1:]]
            half = len(away) // 2
            slope = math.nan
            if half > 1 and all(m > 0 for m in away[half - 1 :]):
                slope = math.log(away[-1] / away[half - 1]) / math.log(len(away) / half)
            step = max(1, round((len(seen) - 1) / (truth.get("loops") or len(seen) - 1)))
            told = [f"{len(seen) - 1:3} changes, gain {size(seen[-1]) / max(size(seen[0]), 1e-9):7.2f}, n^{slope:.2f}"]
            told += [f"radius {radius(live, step):.2f}", f"gradient {reach(live, out)}"]
            told += [f"training {gain(factory, watch, train=True):.2f}"]
            asked = list(inspect.signature(factory).parameters.values())
            if asked and isinstance(asked[0].default, int):
                n = asked[0].default
                told += ["over N " + " ".join(f"{gain(factory, watch, k):.2f}" for k in (n // 2, n, 2 * n))]
                few, many = moved(factory, n // 2), moved(factory, 2 * n)
                told += [f"step N^{math.log(many / few) / math.log(2 * n / (n // 2)):.2f}" if few else "step 0"]
            shown = " ".join(f"{size(s):.2f}" for s in seen[:: max(1, len(seen) // 12)])
            print(f"{case:26} {', '.join(told)}: {shown}", flush=True)


if __name__ == "__main__":
    main()
