"""A task in training: its optimizer, its ranks, how it is evaluated. The step itself is in `loop`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.data import Dataset
from loopscale.errors import expect
from loopscale.nn import LoopedTransformer, compile_checked
from loopscale.optim import build_optimizer, schedule
from loopscale.optim.build import TAKES
from loopscale.train.config import TrainConfig
from loopscale.train.house import house_task
from loopscale.train.parallel import Sync, check_share, let_go, parallelize
from loopscale.train.task import StepRecord, Task, length, pick_device, rows_of, to_device
from loopscale.train.user import makes_batches, takes, user_task
from loopscale.train.world import World

__all__ = ["StepRecord", "Task", "Training", "evaluate", "make_task", "prepare", "spread", "stream_rms"]


@dataclass
class Training:
    """A task after `done` steps. All that a checkpoint must hold is model, optimizer and `done`.

    `network` is what is called: the task's, or its replica or shards on this rank. `batches` gives this rank's rows of a
    step; a run puts a prefetching one in its place. `span(name)` surrounds each part of a step, for a profile.
    """

    task: Task
    optimizer: torch.optim.Optimizer
    network: Any
    sync: Sync = lambda last: nullcontext()
    world: World = field(default_factory=World)
    done: int = 0
    span: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext()

    def __post_init__(self) -> None:
        optim, steps = self.config.optim, self.config.train.steps
        self.multiplier = schedule(optim.schedule, steps, min(round(optim.warmup * steps), steps - 1))
        self.parameters: list[Tensor] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batches = self.task.batches

    @property
    def config(self) -> TrainConfig:
        """The task's config."""
        return self.task.config

    @property
    def model(self) -> nn.Module:
        """The task's model: what a checkpoint holds."""
        return self.task.model

    @property
    def device(self) -> torch.device:
        """Where the training happens."""
        return self.parameters[0].device

    @property
    def dataset(self) -> Dataset | None:
        """The tokens, unless the user's file makes its batches itself."""
        return self.task.dataset

    @cached_property
    def first(self) -> Any:
        """The batch of the first step: always the same."""
        return self.batches(0)

    def bookmark(self) -> dict[str, int] | None:
        """Return what finds the next batch of a stream again quickly; None: any step is reached at once."""
        data = self.config.data
        return None if self.dataset is None else self.dataset.bookmark(self.done, data.batch_size, data.context)

    def loss(self, batch: Any, loops: int) -> Tensor:
        """Give the mean loss of a batch on the device; under bf16 only matrix products are, the stream stays fp32."""
        with self.autocast():
            return self.task.loss(self.network, batch, loops)

    def autocast(self) -> AbstractContextManager[object]:
        """Give the autocast context of the config's precision."""
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def prepare(config: TrainConfig, dataset: Dataset | None = None, world: World | None = None) -> Training:
    """Build model, optimizer and schedule from the config, on one process or on each rank of a world.

    Raises `UserError` when they cannot be built; on every rank when it is so on one.
    """
    expect(config, isinstance(config, TrainConfig), "a TrainConfig", "load_config(path) reads one from a file")
    world = World() if world is None else world
    return spread(make_task(config, dataset, world), world)


def make_task(config: TrainConfig, dataset: Dataset | None = None, world: World | None = None) -> Task:
    """Build what the config trains, a user model or the house's; raises `UserError` as `prepare` does."""
    world = World() if world is None else world
    with world.together():
        check_share(config, world)
        device = pick_device(config.train.device, world.local_rank)
        tokens = config.model.factory is None or not makes_batches(config.model.factory)
    with world.together():  # the first process of a machine packs the data, the others find it packed
        if tokens and dataset is None and world.local_rank == 0:
            dataset = config.load_data()
    rows = world.share(config.data.batch_size)
    with world.together():
        if tokens and dataset is None:
            dataset = config.load_data()
        if config.model.factory is not None:
            return user_task(config, dataset, rows, device)
        assert dataset is not None
        return house_task(config, dataset, rows, device)


def spread(task: Task, world: World) -> Training:
    """Put a task on the ranks and give it its optimizer; raises `UserError` as `prepare` does."""
    config, device = task.config, next(task.model.parameters()).device
    with world.together():
        if config.train.compile:  # before it is spread: the check needs a model that stands alone
            assert isinstance(task.model, LoopedTransformer)
            inputs_BT, _ = to_device(task.batches(0), device)
            bf16 = torch.bfloat16 if config.train.precision == "bf16" else None
            compile_checked(task.model, inputs_BT, autocast=bf16)
    data = task.origin["data"]
    facts = {key: str(data.get(key)) for key in ("sha256", "source", "vocab_size")}
    world.same("the data", facts, "give every rank the same files")
    world.connect(device)
    network, sync = parallelize(task.network, config, world, device)
    return Training(task, task_optimizer(task), network, sync, world)


def task_optimizer(task: Task) -> torch.optim.Optimizer:
    """Build the optimizer over the model's roles, under the config's rule and size."""
    optim, size = task.config.optim, task.config.model
    with warnings.catch_warnings():  # what a factory should do about the width is said once, before the first trial
        warnings.filterwarnings("ignore", "width= scales the rates")
        return build_optimizer(
            task.model,
            optim.optimizer,
            lr=optim.lr,
            outer_lr=optim.outer_lr,
            weight_decay=optim.weight_decay,
            eps=optim.eps,
            **{name: getattr(optim, name) for name in TAKES[optim.optimizer]},
            rule=size.rule,
            depth=size.depth,
            width=size.width_ratio,
            base_layers=size.base_layers,
            roles=task.roles,
            multiplied=_multiplied(task.config),
        )


def _multiplied(config: TrainConfig) -> bool | None:
    """Say whether the logits carry the rule's 1/m_d: a factory multiplies them if it asks for what it needs to do so."""
    factory = config.model.factory
    if factory is None:
        return None
    return bool({"output_multiplier", "base_width"} & takes(factory, rule=False)[0])


@torch.no_grad()
def evaluate(training: Training) -> float | None:
    """Return the mean loss on the first `train.eval_batches` validation batches, always the same; None when there are none.

    Each rank takes its rows of a batch; the sum over the ranks is the mean over the rows.
    """
    world, loops, losses = training.world, training.config.model.loops, list[Tensor]()
    with world.together():  # all are read before the first is used: a damaged shard on one rank ends all
        batches = list(training.task.validation())
    with training.span("evaluation"), training.task.evaluating():
        for batch in batches:
            whole = length(batch)
            shared = world.size > 1 and whole is not None
            rows = len(range(world.rank, whole or 0, world.size)) if shared else 1
            if shared:  # a rank without a row takes the first, with weight 0: all must go through the model together
                batch = rows_of(batch, slice(world.rank if rows else 0, None if rows else 1, world.size))
            loss = training.loss(to_device(batch, training.device), loops)
            weight = rows / (whole or 1) if shared else 1 / world.size
            losses.append(loss if world.size == 1 else loss * weight)
    let_go(training.network)
    return float(world.total(torch.stack(losses)).mean()) if losses else None


@torch.no_grad()
def stream_rms(training: Training) -> list[float]:
    """Give the stream's RMS at the entry and after each visit, on the first training batch, always the same."""
    with training.autocast(), training.task.evaluating():
        mine = training.task.streams(training.network, to_device(training.first, training.device))
    let_go(training.network)
    if training.world.size == 1 or not mine:
        return mine
    squares = torch.tensor(mine, dtype=torch.float64, device=training.device).square()
    return [float(rms) for rms in training.world.mean(squares).sqrt()]
