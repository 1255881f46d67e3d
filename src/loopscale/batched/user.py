"""A user model as members of a stack, after one step of the stack gave each its own loss and gradients.

`torch.vmap` runs code that was written for one model, and cannot see what that code keeps outside of its weights: numbers
in attributes, counters, random draws. So the models are looked at, and compared, before the stack is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.batched.batched import Member, Stack, UnstackableError
from loopscale.errors import UserError, describe
from loopscale.train.config import TrainConfig
from loopscale.train.task import to_device
from loopscale.train.training import Training, prepare

TOLERANCE = 1e-3  # of a gradient's largest entry, as for a compiled body; fp32 rounding stays far below


def user_stack(configs: Sequence[TrainConfig]) -> Stack:
    """Stack the trainings of a user model, whose configs differ in seed and the optimizer's rates.

    Raises `UserError` as `prepare` does, and `UnstackableError` when the models cannot be run as one.
    """
    trainings = [first := prepare(configs[0]), *(prepare(config, first.dataset) for config in configs[1:])]
    batches = [to_device(training.batches(0), training.device) for training in trainings]
    networks = [_Loss(training) for training in trainings]
    _look(networks, batches)
    expected = [_gradients(network, batch) for network, batch in zip(networks, batches, strict=True)]
    members = [Member(t, n, lambda output, batch: output) for t, n in zip(trainings, networks, strict=True)]
    stack = Stack(members)
    try:
        losses_K = stack.losses(batches)
        losses_K.sum().backward()  # type: ignore[no-untyped-call]
    except (UserError, UnstackableError, torch.OutOfMemoryError):
        raise
    except Exception as cause:
        raise UnstackableError(f"its operations cannot be batched ({describe(cause)})") from None
    _compare(stack, losses_K, expected)
    return stack


class _Loss(nn.Module):
    """The loss of a batch, called as a stack calls its networks."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.network, self._autocast = training.task.network, training.autocast

    def forward(self, batch: Any, numbers: tuple[float, ...] = ()) -> Tensor:
        with self._autocast():
            loss: Tensor = self.network(batch)
        return loss


def _look(networks: Sequence[nn.Module], batches: Sequence[Any]) -> None:
    """Raise `UnstackableError` for what a stack cannot hold: numbers that differ, or that a forward pass changes."""
    first = _attributes(networks[0])
    for network in networks[1:]:
        name = _differs(first, _attributes(network))
        if name is not None:
            raise UnstackableError(f"{name} is a number of its own in each model, and no parameter or buffer")
    model = networks[0]
    model(batches[0])  # once before: the first call may fill in what later calls repeat
    settled = _attributes(model)
    buffers = _buffers(model)
    before = torch.get_rng_state()
    model(batches[0])
    if not torch.equal(before, torch.get_rng_state()):
        raise UnstackableError("its forward pass draws random numbers")
    changed = _differs(settled, _attributes(model)) or _differs(buffers, _buffers(model))
    if changed is not None:
        raise UnstackableError(f"its forward pass changes {changed}")


def _buffers(model: nn.Module) -> dict[str, Any]:
    return {name.removeprefix("network.model."): value.clone() for name, value in model.named_buffers()}


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Return numbers and tensors in plain attributes of the modules."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        prefix = path.removeprefix("network").removeprefix(".model").strip(".")  # as the user knows it
        for name, value in vars(module).items():
            if isinstance(value, (bool, int, float, complex)):
                found[f"{prefix}.{name}".strip(".")] = value
            elif isinstance(value, Tensor):
                found[f"{prefix}.{name}".strip(".")] = value.detach().clone()
    return found


def _differs(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    for name in {**before, **after}:
        if name not in before or name not in after:
            return name
        # As tensors: a NaN is equal to itself then, and a number may have become one.
        one, other = torch.as_tensor(before[name]), torch.as_tensor(after[name])
        if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            return name
    return None


def _gradients(network: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    loss = network(batch)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return loss.detach(), gradients


def _compare(stack: Stack, losses_K: Tensor, expected: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> None:
    for k, (loss, gradients) in enumerate(expected):
        gaps = {"loss": _gap(losses_K[k].detach(), loss)}
        for name, gradient in gradients.items():
            got = stack.state[name].grad
            gaps[name] = float("inf") if got is None else _gap(got[k], gradient)
        for name, gap in gaps.items():
            if not gap <= TOLERANCE:
                raise UnstackableError(f"stacked, the first step of a model differs by {gap:.2g} in {name}")


def _gap(got: Tensor, alone: Tensor) -> float:
    """Return the largest difference, of the largest entry; what is not finite alone is lost either way."""
    if not bool(torch.isfinite(alone).all()):
        return 0.0
    return float((got - alone).abs().max() / alone.abs().max().clamp(min=1e-12))
