"""Leave the user's model bit-identical: weights, buffers, mode, hooks, gradients, flags and random state."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from loopscale.errors import UserError, expect


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module under `torch.compile` and data-parallel wrappers: hooks on the wrapper would never fire.

    Raises `UserError` when it is not a module, or a scripted one, or has parameters without values.
    """
    expect(model, isinstance(model, nn.Module), "a torch.nn.Module", "pass the model itself")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    refuse_hidden(model)
    meta = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise UserError(
            f"parameter {meta!r} is on the meta device and has no values: call to_empty and initialise first"
        )
    return model


def refuse_hidden(model: nn.Module) -> None:
    """Raise `UserError` for a scripted model, which hides its calls, and for lazy layers, which have no shape yet."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("a scripted model hides its inner calls: pass the module it was made from")
    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise UserError(f"parameter {lazy!r} is lazy and has no shape yet: run the model once on a batch first")


_measured = 0


def measuring() -> bool:
    """Say whether a model is being measured, where another N than its own is no mistake."""
    return _measured > 0


@contextmanager
def untouched(model: nn.Module, grads: bool = False) -> Iterator[None]:
    """Measure inside: evaluation mode, one random seed, eager code; all is put back afterwards, whatever happens.

    With `grads` every floating-point parameter asks for gradients inside, so that frozen models can be measured.
    """
    made = next((name for name, p in model.named_parameters() if grads and p.is_inference()), None)
    if made is not None:
        raise UserError(
            f"parameter {made!r} was made under inference_mode and takes no gradient: build the model outside"
        )
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    global _measured
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=devices), eager():
        torch.manual_seed(0)
        _measured += 1
        try:
            model.eval()
            if grads:
                for parameter, _, _ in flags:
                    if parameter.is_floating_point() and parameter.is_leaf:
                        parameter.requires_grad_(True)
            yield
        finally:
            _measured -= 1
            random.setstate(python_state)
            numpy.random.set_state(numpy_state)
            for module, mode in modes:
                module.training = mode
            for parameter, flag, grad in flags:
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)
                parameter.grad = grad
            for module, name, buffer, value in buffers:
                _restore(module, name, buffer, value)


def eager() -> AbstractContextManager[object]:
    """Run compiled code eagerly inside: a compiled graph calls no hook that came after it, and shows no tape its calls."""
    # Setting the stance imports the compiler, which takes a second: only where something may have been compiled.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _restore(module: nn.Module, name: str, buffer: Tensor | None, value: Tensor | None) -> None:
    module._buffers[name] = buffer
    if buffer is not None and value is not None and not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)
