"""Run the model under a tape: one function for every kind of pass that the diagnosis needs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._functorch import vmap
from torch.autograd.function import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from loopscale.probe.batch import call_model
from loopscale.probe.tape import Stop, Tape


def seed_all(seed: int) -> None:
    """Seed Python and every device of torch.

    Without an accelerator `torch.manual_seed` keeps a stack trace for a device that may come: it takes longer than a pass
    of a small model.
    """
    random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def record(
    model: nn.Module, batch: Any, extra: Mapping[str, Any] | None = None, seed: int = 0, **how: Any
) -> tuple[Tape, Any]:
    """Run one forward pass on a tape; give the tape and the model's output (None after an early stop).

    `how`: what the tape keeps, replaces and where it stops, the fields of `Tape`. Only to be called inside `untouched`,
    which puts the random state back. Attention runs with the kernel that the model runs with; with `plain` in the form
    that forward-mode differentiation can follow on every device.
    """
    # The same random numbers in every pass: a random initial state or number of loops must not differ between them.
    seed_all(seed)
    tape = Tape(model, batch, **how)
    output = None
    attention = sdpa_kernel(SDPBackend.MATH) if tape.plain else nullcontext()
    with torch.set_grad_enabled(tape.graph), attention, warnings.catch_warnings():
        # The model's own warnings came when the user ran it; those about hooks are about ours.
        warnings.simplefilter("ignore")
        handles = [
            register_module_forward_pre_hook(tape.before_module),
            register_module_forward_hook(tape.after_module),
        ]
        try:
            with tape, _custom(tape), _mapped(tape):
                output = call_model(model, batch, extra)
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
    return tape, output


@contextmanager
def _custom(tape: Tape) -> Iterator[None]:
    """Let the tape note the calls of every `autograd.Function` inside, those by a name for its `apply` as well."""
    base: Any = Function.__mro__[1]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return tape.custom(super(base, cls).apply, cls.__name__, args, kwargs)

    base.apply = classmethod(apply)
    try:
        yield
    finally:
        del base.apply


@contextmanager
def _mapped(tape: Tape) -> Iterator[None]:
    """Let the tape note how values go into and out of every `torch.vmap` inside, which no torch call shows."""
    names = [name for name in ("_add_batch_dim", "_remove_batch_dim") if hasattr(vmap, name)]
    calls = {name: getattr(vmap, name) for name in names}

    def told(call: Any) -> Any:
        return lambda *args: tape.mapped(call, args)

    for name, call in calls.items():
        setattr(vmap, name, told(call))
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(vmap, name, call)
