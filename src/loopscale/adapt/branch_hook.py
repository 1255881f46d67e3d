"""The hook that scales one branch of a foreign model.

Why a forward hook: names and state dict stay as they are (`parametrize` renames weights, a wrapper module renames
everything), FSDP2 may swap the module's class (a class swap of ours would fight with it), and torch's fused encoder
path looks for hooks. A hook *object*, not a closure: deepcopy then copies it together with its scale.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.speaker import handle_of


class BranchHook:
    """Multiply a module's output (the first of several) by `scale`, a 0-dim CPU tensor; count the `calls` of eager code.

    A tensor, so that a compiled graph serves every value; no buffer, so that `to_empty`, `.to(bfloat16)` and the state
    dict leave it alone; replaced, never changed in place, so that a recorded graph keeps its own.
    """

    def __init__(self) -> None:
        self.scale = torch.ones(())
        self.calls = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Scale what the module's forward returned."""
        if not torch.compiler.is_compiling():
            self.calls += 1
        return scaled(output, self.scale)


class PassHook:
    """Call `begin_pass` or `end_pass` of the handle on a model around each of its passes in eager code."""

    def __init__(self, event: str) -> None:
        self.event = event

    def __call__(self, module: nn.Module, *given: Any) -> None:
        """Tell the handle."""
        if not torch.compiler.is_compiling():
            getattr(handle_of(module), self.event)()


def watch_passes(model: nn.Module) -> None:
    """Register the hooks by which the handle hears of every pass; a second call adds none."""
    if not any(isinstance(hook, PassHook) for hook in model._forward_hooks.values()):
        model.register_forward_pre_hook(PassHook("begin_pass"))
        model.register_forward_hook(PassHook("end_pass"))


def scaled(output: Any, scale: Tensor | float) -> Any:
    """Return `scale * output`; of a tuple or list, its first element: attention returns its weights besides.

    Raises `UserError` when there is no tensor to scale.
    """
    if isinstance(output, Tensor):
        return output * scale
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        rest = [output[0] * scale, *output[1:]]
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
    raise UserError(
        f"a branch returned {type(output).__name__}, of which no tensor can be scaled: name the module that makes the "
        "tensor which is added to the stream in branches="
    )


def install(module: nn.Module) -> None:
    """Add a hook, the first of all: hooks that read outputs then see what the stream gets."""
    module.register_forward_hook(BranchHook(), prepend=True)


def hook_of(module: nn.Module) -> BranchHook | None:
    """Return the hook that scales this module, if any."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, BranchHook)), None)


def remove(model: nn.Module) -> None:
    """Remove our hooks from the model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (BranchHook, PassHook))]:
                del hooks[key]


def drop_compiled() -> None:
    """Forget compiled graphs: they do not look at hooks that come or go after compilation, and would be silently wrong."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
