"""Task: what is trained, whoever wrote it, and where its visits begin and end. The house model is one task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopscale.data import Dataset
from loopscale.errors import UserError
from loopscale.parameterization import Role
from loopscale.probe.tape import tensors_in
from loopscale.train.config import TrainConfig

Call = Callable[[], object]
Note = Callable[[Any], object]


class Visits:
    """Finds where a model's visits begin and end: at the outermost modules with hidden matrices that are called repeatedly.

    The first `call` finds them; a model that calls each layer once has no visits.
    """

    def __init__(self, model: nn.Module, roles: Mapping[str, Role]) -> None:
        self._model, self._roles = model, roles
        self._ends: tuple[nn.Module, nn.Module] | None = None
        self._sought = False

    def rms(self, call: Call) -> list[float]:
        """Give the RMS of the stream at entry to the first visit and after each visit of one forward pass."""
        entries, ends = list[float](), list[float]()
        with self.noted(call, lambda x: entries.append(_rms(x)), lambda x: ends.append(_rms(x))):
            call()
        return [*entries[:1], *ends]

    @contextmanager
    def noted(self, call: Call, begin: Note, end: Note) -> Iterator[None]:
        """Call `begin(inputs)` and `end(output)` at every visit inside."""
        if not self._sought:
            self._ends, self._sought = self._find(call), True
        with ExitStack() as hooks:
            if self._ends is not None:
                first, last = self._ends
                before = first.register_forward_pre_hook(lambda _, *given: _silent(begin(given)), with_kwargs=True)
                hooks.enter_context(before)
                hooks.enter_context(last.register_forward_hook(lambda _, given, output: _silent(end(output))))
            yield

    def _find(self, call: Call) -> tuple[nn.Module, nn.Module] | None:
        hidden = {name for name, role in self._roles.items() if role is Role.HIDDEN}
        modules = [(n, m) for n, m in self._model.named_modules() if any(h.startswith(f"{n}.") for h in hidden) and n]
        counts, callers, now = Counter[nn.Module](), dict[nn.Module, list[nn.Module]](), list[nn.Module]()

        def enter(module: nn.Module, *_: Any) -> None:
            counts[module] += 1
            callers.setdefault(module, list(now))
            now.append(module)

        def leave(*_: Any) -> None:
            now.pop()

        with ExitStack() as hooks:
            for _, module in modules:
                hooks.enter_context(module.register_forward_pre_hook(enter))
                hooks.enter_context(module.register_forward_hook(leave))
            call()
        outermost = [m for m in callers if counts[m] > 1 and all(counts[caller] == 1 for caller in callers[m])]
        most = max((counts[module] for module in outermost), default=0)
        looped = [module for module in outermost if counts[module] == most]
        return (looped[0], looped[-1]) if looped else None


def _silent(result: object) -> None:
    """Return nothing: what a hook returns would replace the value that it saw."""


def _rms(value: Any) -> float:
    stream = next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)
    return float("nan") if stream is None else float(stream.detach().float().square().mean().sqrt())


@dataclass(frozen=True)
class Task:
    """A model, its batches, its loss and its roles: functions of the config and the step, so that a training can resume.

    - `network` is what is called: the model, or a module around it.
    - `loss(network, batch, loops)` is the mean loss of a batch on the device, [].
    - `batches(step)` gives this process's rows of the batch of a 0-based step, `validation()` the same batches at each
      evaluation, `loops(step)` N.
    - `streams(network, batch)` gives the RMS of the stream at entry to the loop and after each visit, `[]` without a loop;
      `visits` sees the visits of any model.
    - Inside `drawing(step)` random numbers depend on the step alone, inside `evaluating()` nothing is random.
    - `check(target)` tries one step, and warns of what the model applies otherwise than the config says, or than the target
      that its values are carried to.
    - `origin` goes into a run's provenance. `ahead`: batches may be made in a thread, ahead of their step.
    """

    config: TrainConfig
    model: nn.Module
    roles: Mapping[str, Role]
    network: nn.Module
    loss: Callable[[Any, Any, int], Tensor]
    batches: Callable[[int], Any]
    validation: Callable[[], Iterator[Any]]
    loops: Callable[[int], int]
    streams: Callable[[Any, Any], list[float]]
    visits: Visits
    dataset: Dataset | None
    origin: dict[str, Any]
    drawing: Callable[[int], AbstractContextManager[object]] = lambda step: nullcontext()
    evaluating: Callable[[], AbstractContextManager[object]] = nullcontext
    check: Callable[[TrainConfig | None], list[str]] = lambda target: []
    ahead: bool = True


@dataclass(frozen=True)
class StepRecord:
    """What one step measured. `step` counts from 1; `grad_norm` is the norm before clipping; `loops` is the step's N."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    loops: int = 0

    @property
    def finite(self) -> bool:
        """Whether the update was made: a non-finite loss or gradient leaves the weights as they were."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device; raises `UserError` when there is no GPU for this process to use."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device = 'cuda', but torch sees no GPU here: use --set train.device=auto")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs here and more ranks than that: "
            f"start torchrun with --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back, at the end, the buffers that a forward pass inside changes, and drop the gradients."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        model.zero_grad()


def mapped(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Give the batch with every tensor and array in it changed, in dicts, tuples and lists; other values stay."""
    if isinstance(batch, Mapping):
        return {name: mapped(part, change) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(mapped(part, change) for part in batch)
    return change(batch) if isinstance(batch, (Tensor, np.ndarray)) else batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Turn every array and tensor of a batch into a tensor on `device`, in one piece."""

    def placed(array: Any) -> Tensor:
        tensor = torch.as_tensor(array)
        if device.type == "cuda" and not tensor.is_cuda:  # pinned: the copy does not wait for the step before
            tensor = tensor.pin_memory()
        # Inputs and targets are cut from one array; many a loss flattens its targets with `view`.
        return tensor.to(device, non_blocking=True).contiguous()

    return mapped(batch, placed)


def length(batch: Any) -> int | None:
    """Give the number of rows of a batch: the first axis that all its arrays share; None when they share none."""
    lengths: list[int | None] = []
    mapped(batch, lambda array: lengths.append(array.shape[0] if array.ndim else None))
    return lengths[0] if len(set(lengths)) == 1 else None


def rows_of(batch: Any, rows: slice) -> Any:
    """Give some rows of every array of a batch."""
    return mapped(batch, lambda array: array[rows])
