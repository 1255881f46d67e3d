"""Task: what is trained, whoever wrote it. The house model is one task, the model of a user's factory is another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopscale.data import Dataset
from loopscale.errors import UserError
from loopscale.parameterization import Role
from loopscale.train.config import TrainConfig
from loopscale.train.visits import Visits


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
