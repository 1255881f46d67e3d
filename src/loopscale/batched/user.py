"""A user's own model as members of a stack, after one step of the stack gave each its own loss and gradients.

`torch.vmap` runs code that was written for one model, and cannot see what that code keeps outside of its weights: numbers
in attributes, counters, random draws. So the models are looked at, and compared, before the stack is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.batched.batched import Member, Stack, UnstackableError
from loopscale.errors import UserError
from loopscale.train.config import TrainConfig
from loopscale.train.own import OwnModel, make_own, scalar
from loopscale.train.own_fit import own_optimizer
from loopscale.train.place import describe

TOLERANCE = 1e-3  # of a gradient's largest entry, as for a compiled body; fp32 rounding stays far below


def own_stack(place: str, configs: Sequence[TrainConfig]) -> Stack:
    """The trainings of `configs` with the factory at `place`, which differ in seed and the optimizer's rates, as a stack.

    Raises `UserError` as `make_own` does, and `UnstackableError` when the models cannot be run as one.
    """
    randoms = [_Random(config.train.seed) for config in configs]
    owns, firsts, members = [], [], []
    for config, random in zip(configs, randoms, strict=True):
        with random.drawing():
            own = make_own(place, config)
            batches = own.batches("train")
            own.model.train()
            firsts.append(next(batches))
        owns.append(own)
        members.append(_member(own, config, random, chain([firsts[-1]], batches)))
    _look(owns, firsts)
    expected = [_gradients(own.model, own.loss(own.model, batch)) for own, batch in zip(owns, firsts, strict=True)]
    stack = Stack(members)
    try:
        losses_K = stack.losses(firsts)
        losses_K.sum().backward()  # type: ignore[no-untyped-call]
    except (UserError, UnstackableError, torch.OutOfMemoryError):
        raise
    except Exception as cause:
        raise UnstackableError(f"its operations cannot be batched ({describe(cause)})") from None
    _compare(stack, losses_K, expected)
    return stack


class _Loss(nn.Module):
    def __init__(self, own: OwnModel) -> None:
        super().__init__()
        self.model, self._loss = own.model, own.loss

    def forward(self, batch: Any, numbers: tuple[float, ...] = ()) -> Tensor:
        return scalar(self._loss(self.model, batch))


class _Random:
    """The global random state of one member: it draws what it would draw alone, in its own process."""

    def __init__(self, seed: int) -> None:
        with self._kept():
            torch.manual_seed(seed)
            self._state = self._now()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from the member's own state inside."""
        with self._kept():
            self._set(self._state)
            yield
            self._state = self._now()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        outer = self._now()
        try:
            yield
        finally:
            self._set(outer)

    def _now(self) -> tuple[Tensor, list[Tensor]]:
        return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def _set(self, state: tuple[Tensor, list[Tensor]]) -> None:
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])


def _member(own: OwnModel, config: TrainConfig, random: _Random, batches: Iterator[Any]) -> Member:
    def drawn(batches: Iterator[Any]) -> Any:
        with random.drawing():
            return next(batches)

    def validation() -> Iterator[Any]:
        found = islice(own.batches("validation"), config.train.eval_batches)
        while True:
            try:
                batch = drawn(found)
            except StopIteration:
                return
            yield batch

    network = _Loss(own)
    return Member(
        config,
        network,
        own_optimizer(own, config),
        [p for p in own.model.parameters() if p.requires_grad],
        batches=lambda index: drawn(batches),
        validation=validation,
        score=lambda output, batch: output,
    )


def _look(owns: Sequence[OwnModel], batches: Sequence[Any]) -> None:
    """Raise `UnstackableError` for what a stack cannot hold: numbers that differ, or that a forward pass changes."""
    first = _attributes(owns[0].model)
    for own in owns[1:]:
        name = _differs(first, _attributes(own.model))
        if name is not None:
            raise UnstackableError(f"{name} is a number of its own in each model, and no parameter or buffer")
    model = owns[0].model
    owns[0].loss(model, batches[0])  # once before: the first call may fill in what later calls repeat
    settled = _attributes(model)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    before = torch.get_rng_state()
    owns[0].loss(model, batches[0])
    if not torch.equal(before, torch.get_rng_state()):
        raise UnstackableError("its forward pass draws random numbers")
    changed = _differs(settled, _attributes(model)) or _differs(buffers, dict(model.named_buffers()))
    if changed is not None:
        raise UnstackableError(f"its forward pass changes {changed}")


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Numbers and tensors in plain attributes of the modules."""
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
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


def _gradients(model: nn.Module, loss: Any) -> tuple[Tensor, dict[str, Tensor]]:
    scalar(loss).backward()  # type: ignore[no-untyped-call]
    found = {f"model.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found


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
    """Largest difference, of the largest entry; what is not finite alone is lost either way."""
    if not bool(torch.isfinite(alone).all()):
        return 0.0
    return float((got - alone).abs().max() / alone.abs().max().clamp(min=1e-12))
