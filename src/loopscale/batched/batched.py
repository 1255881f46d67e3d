"""K trainings of one graph at once: weights stacked along a new first axis, one batched forward and backward a step.

What differs between the members is data: weights, batches, rates, decays, and the numbers that a rule gives the network.
Each keeps its own model, whose parameters are views of the stack, so what looks at one model goes on working.

Shapes: K members; everything of theirs is [K, ...].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from loopscale.optim import StackedOptimizer
from loopscale.train.config import TrainConfig
from loopscale.train.fitting import Course, Fit, Stop
from loopscale.train.task import StepRecord, mapped
from loopscale.train.training import Training, stream_rms


class UnstackableError(Exception):
    """These trainings cannot share a graph; the message is a clause that says why. Each can be run alone."""


@dataclass
class Member:
    """One training of a stack. `network(batch, numbers)` is what runs K at a time; `score` makes a loss of its output.

    `numbers` enter the network as they are where all members agree, else as a tensor.
    """

    training: Training
    network: nn.Module
    score: Callable[[Tensor, Any], Tensor]
    numbers: tuple[float, ...] = ()

    @property
    def config(self) -> TrainConfig:
        """The config of its training."""
        return self.training.config

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, each once."""
        return {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}

    def slots(self) -> dict[str, str]:
        """Return every place of a parameter or buffer, several for tied ones, and its name in `state`."""
        names = {id(value): name for name, value in self.state().items()}
        return {
            f"{prefix}.{name}".strip("."): names[id(value)]
            for prefix, module in self.network.named_modules()
            for held in (module.named_parameters, module.named_buffers)
            for name, value in held(recurse=False, remove_duplicate=False)
        }


class Stack:
    """Members in lockstep: `step` does a step of each. `template` is the network that is called, its weights swapped.

    Raises `UnstackableError` where the members' weights or batches have different shapes.
    """

    def __init__(self, members: Sequence[Member], template: nn.Module | None = None) -> None:
        self.members, self.done = list(members), 0
        self.template = members[0].network if template is None else template
        self.device, self.dtype = members[0].training.device, members[0].training.parameters[0].dtype
        states = [member.state() for member in members]
        if any({n: v.shape for n, v in s.items()} != {n: v.shape for n, v in states[0].items()} for s in states):
            raise UnstackableError("their weights have different shapes")
        self.state = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
        for name, value in states[0].items():
            self.state[name].requires_grad_(value.requires_grad)
        self._slots = members[0].slots()
        names = {id(value): name for name, value in states[0].items()}
        self._order = [names[id(parameter)] for parameter in members[0].training.parameters]
        table = {self.state[name]: [state[name] for state in states] for name in self._order}
        self.optimizer = StackedOptimizer([member.training.optimizer for member in members], table)
        self._point(states)

    def _point(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Make the members' weights views of the stack's."""
        for k, state in enumerate(states):
            for name, value in state.items():
                value.data = self.state[name].data[k]

    def step(self) -> list[StepRecord]:
        """Take the next step of every member; one that is not finite keeps its weights and must `leave` then."""
        for name in self._order:
            self.state[name].grad = None
        losses_K = self.losses([member.training.batches(self.done) for member in self.members])
        losses_K.sum().backward()  # type: ignore[no-untyped-call]
        norms_K = self._norms()
        # The one wait for the device in a step.
        losses, norms = torch.stack([losses_K.detach(), norms_K.to(losses_K.dtype)]).tolist()
        rates = [member.training.multiplier(self.done) for member in self.members]
        records = [
            StepRecord(self.done + 1, loss, member.config.optim.lr * rate, norm, member.config.model.loops)
            for member, loss, norm, rate in zip(self.members, losses, norms, rates, strict=True)
        ]
        for member, record in zip(self.members, records, strict=True):
            if not record.finite:
                _apart(member)
        self._clip(norms_K, norms)
        self.optimizer.step(rates)
        self.done += 1
        return records

    def losses(self, batches: Sequence[Any]) -> Tensor:
        """Return the loss of every member on its batch, [K]."""
        batch = stacked(batches, self.device)
        numbers = tuple(
            self._number(values) for values in zip(*(member.numbers for member in self.members), strict=True)
        )

        def call(state: dict[str, Tensor], batch: Any, numbers: tuple[Any, ...]) -> Tensor:
            held = {slot: state[name] for slot, name in self._slots.items()}
            # Tied by `slots`: torch's own tying leaves a batched tensor in a module that is used under two names.
            output: Tensor = functional_call(self.template, held, (batch, numbers), tie_weights=False)
            return output

        outputs = torch.vmap(call, in_dims=(0, _dims(batch), _dims(numbers)))(self.state, batch, numbers)
        # Unbound at once: the gradient of an indexed part alone would be as large as the whole, K times.
        parts = outputs.unbind()
        scored = [m.score(parts[k], mapped(batch, itemgetter(k))) for k, m in enumerate(self.members)]
        return torch.stack(scored)

    def _number(self, values: tuple[float, ...]) -> float | Tensor:
        return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=self.dtype, device=self.device)

    def _norms(self) -> Tensor:
        """Norm of each member's whole gradient, [K]: of the norms of its parameters, as torch's clipping has it."""
        gradients = [self.state[name].grad for name in self._order]
        rows = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients if g is not None]
        norms_K: Tensor = torch.linalg.vector_norm(torch.stack(rows, dim=1), dim=1)
        return norms_K

    def _clip(self, norms_K: Tensor, norms: Sequence[float]) -> None:
        """Clip each member by its own norm and limit; nobody else's gradient changes."""
        limits = [member.config.optim.clip for member in self.members]
        over = [0 < limit < norm for limit, norm in zip(limits, norms, strict=True)]
        if not any(over):
            return
        limits_K = torch.tensor(limits, device=self.device, dtype=norms_K.dtype)
        # Torch divides a number by a tensor in this way; a division would round otherwise.
        factor_K = ((norms_K + 1e-6).reciprocal() * limits_K).clamp(max=1.0)
        factor_K = torch.where(torch.tensor(over, device=self.device), factor_K, 1.0)
        for name in self._order:
            gradient = self.state[name].grad
            if gradient is not None:
                gradient.mul_(factor_K.view(-1, *[1] * (gradient.ndim - 1)).to(gradient.dtype))

    def evaluate(self) -> list[float | None]:
        """Return the mean loss of every member on its validation batches; None without batches."""
        self.template.eval()
        with torch.no_grad():
            rows = [
                self.losses(batches)
                for batches in zip(*(m.training.task.validation() for m in self.members), strict=True)
            ]
        self.template.train()
        return [float(torch.stack([row[k] for row in rows]).mean()) if rows else None for k in range(len(self.members))]

    def leave(self, gone: Sequence[int]) -> None:
        """Take the members at these places out; their models keep their weights, the others go on."""
        for k in gone:
            _apart(self.members[k])
        kept = [k for k in range(len(self.members)) if k not in set(gone)]
        self.members = [self.members[k] for k in kept]
        index = torch.tensor(kept, device=self.device, dtype=torch.long)
        self.state = {
            name: value.detach()[index].requires_grad_(value.requires_grad) for name, value in self.state.items()
        }
        self.optimizer.keep(index, [self.state[name] for name in self._order])
        self._point([member.state() for member in self.members])


def _apart(member: Member) -> None:
    for value in member.state().values():
        value.data = value.data.clone()


def stacked(trees: Sequence[Any], device: torch.device) -> Any:
    """Stack batches along a new first axis; raises `UnstackableError` where shapes or other values differ."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: stacked([tree[key] for tree in trees], device) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(stacked(list(parts), device) for parts in zip(*trees, strict=True))
    if isinstance(first, (Tensor, np.ndarray)):
        if any(tree.shape != first.shape for tree in trees):
            raise UnstackableError("their batches have different shapes")
        whole = torch.stack(list(trees)) if isinstance(first, Tensor) else torch.from_numpy(np.stack(trees))
        return (whole.pin_memory() if device.type == "cuda" and not whole.is_cuda else whole).to(
            device, non_blocking=True
        )
    if any(tree != first for tree in trees):
        raise UnstackableError("their batches differ in a value that is no tensor")
    return first


def _dims(tree: Any) -> Any:
    """Return `in_dims` for `torch.vmap`: tensors are mapped over their first axis, other values are shared."""
    if isinstance(tree, Mapping):
        return {key: _dims(part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_dims(part) for part in tree)
    return 0 if isinstance(tree, Tensor) else None


def fit_stack(stack: Stack, stops: Sequence[Stop | None] | None = None) -> Iterator[tuple[int, Fit]]:
    """Yield (place in the stack at first, `Fit`) of each member as it leaves; the same `Fit` that it has alone.

    On a CPU in fp32 the losses of the house model are bitwise those of `fit`; in bf16, on a GPU and for user models they
    agree to rounding. `seconds` is a member's share: a step's time is divided by the members that took it.

    stops: of each member, asked after each of its steps with the record; True ends its training there.

    Raises `UnstackableError`, before the first step or at it, where the members cannot share a graph.
    """
    clock = _Clock()
    places = {id(member): place for place, member in enumerate(stack.members)}
    initial = [stream_rms(member.training) for member in stack.members]
    steps = [member.config.train.steps for member in stack.members]
    courses = [Course(n, stop) for n, stop in zip(steps, stops or [None] * len(steps), strict=True)]
    shares = [clock.lap() / len(steps)] * len(steps)
    while stack.members:
        at = [places[id(member)] for member in stack.members]
        records = stack.step()
        for place, record in zip(at, records, strict=True):
            courses[place].take(record)
        gone = [k for k, place in enumerate(at) if not courses[place].running]
        whole = any(courses[at[k]].whole for k in gone)
        values = stack.evaluate() if whole else [None] * len(at)
        left = [stack.members[k] for k in gone]
        if gone:
            stack.leave(gone)
        final = [stream_rms(member.training) for member in left]
        lap = clock.lap() / len(at)
        for place in at:
            shares[place] += lap
        for k, streams in zip(gone, final, strict=True):
            done = records[k].step if records[k].finite else records[k].step - 1
            yield at[k], courses[at[k]].fit(values[k], done, shares[at[k]], initial[at[k]], streams)
        clock.lap()  # what the caller does with a result is nobody's time


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return seconds since the last call."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before
