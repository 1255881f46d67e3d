"""The state of a training and its one step; everything that trains (a run, a trial of a study) goes through here.

Shapes: B = sequences in a batch, T = tokens in a sequence, V = size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from loopscale.data import Dataset
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer, Recompute, compile_checked
from loopscale.optim import build_optimizer, schedule
from loopscale.train.config import TrainConfig
from loopscale.train.parallel import Sync, check_share, let_go, parallelize, whole
from loopscale.train.world import World

Pair = tuple[np.ndarray, np.ndarray]


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


@dataclass
class Training:
    """A model in training: after `done` steps. All that a checkpoint must hold is model, optimizer and `done`.

    `network` is what is called: the model, or its replica or shards on this rank. `batches` gives this rank's rows of a
    step; a run puts a prefetching one in its place.
    """

    config: TrainConfig
    dataset: Dataset
    model: LoopedTransformer
    optimizer: torch.optim.Optimizer
    multiplier: Callable[[int], float]
    device: torch.device
    parameters: list[Tensor]
    network: Callable[..., Tensor]
    batches: Callable[[int], Pair]
    sync: Sync = lambda last: nullcontext()
    world: World = field(default_factory=World)
    done: int = 0
    first: Pair | None = None


def prepare(config: TrainConfig, dataset: Dataset | None = None, world: World | None = None) -> Training:
    """Build model, optimizer and schedule from the config, on one process or on each rank of a world.

    Raises `UserError` when they cannot be built; on every rank when it is so on one.
    """
    world = World() if world is None else world
    with world.together():
        check_share(config, world)
        device = pick_device(config.train.device, world.local_rank)
    with world.together():  # the first process of a machine packs the data, the others find it packed
        if dataset is None and world.local_rank == 0:
            dataset = config.load_data()
    with world.together():
        dataset = config.load_data() if dataset is None else dataset
        dataset.check(config.data.context)
        model = _network(config, dataset).to(device)
        batches = batch_maker(config, dataset, world)
        if config.train.compile:  # before it is spread: the check needs a model that stands alone
            inputs_BT, _ = to_device(batches(0), device)
            compile_checked(model, inputs_BT, autocast=torch.bfloat16 if config.train.precision == "bf16" else None)
    facts = {key: str(dataset.description.get(key)) for key in ("sha256", "source", "vocab_size")}
    world.same("the data", facts, "give every rank the same files")
    world.connect(device)
    network, sync = parallelize(model, config, world, device)
    optimizer = _optimizer(config, model)
    steps, optim = config.train.steps, config.optim
    multiplier = schedule(optim.schedule, steps, min(round(optim.warmup * steps), steps - 1))
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return Training(
        config, dataset, model, optimizer, multiplier, device, parameters, network, batches, sync=sync, world=world
    )


def _network(config: TrainConfig, dataset: Dataset) -> LoopedTransformer:
    if (config.model.vocab_size or dataset.vocab_size) < dataset.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the {dataset.vocab_size} tokens of the data: "
            "leave it out, and the data decides"
        )
    model = LoopedTransformer(config.network(dataset.vocab_size), seed=config.train.seed)
    model.core.recompute = Recompute(config.train.recompute, config.train.recompute_keep)
    return model


def _optimizer(config: TrainConfig, model: LoopedTransformer) -> torch.optim.Optimizer:
    optim = config.optim
    return build_optimizer(
        model,
        optim.optimizer,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        momentum=optim.momentum,
    )


def batch_maker(config: TrainConfig, dataset: Dataset, world: World) -> Callable[[int], Pair]:
    """Give the function from the 0-based step to this rank's rows of its batch."""
    data, rows = config.data, world.share(config.data.batch_size)

    def make(index: int) -> Pair:
        return dataset.batch(index, config.train.seed, data.batch_size, data.context, order=data.order, rows=rows)

    return make


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


def train_step(training: Training) -> StepRecord:
    """Do the next step; on a non-finite loss or gradient nothing is updated and the record is not `finite`.

    Batch, rate and clipping are functions of the config and the step number alone, so a resumed run repeats them.
    """
    config, index = training.config, training.done
    rate = training.multiplier(index)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    training.optimizer.zero_grad(set_to_none=True)
    loops = step_loops(training, index)
    loss = training.world.mean(_backward(training, *training_batch(training, index), loops))
    norm = whole(get_total_norm([p.grad for p in training.parameters if p.grad is not None]))
    # The one wait for the device in a step: both numbers come over together.
    loss_value, norm_value = torch.stack([loss.detach(), norm.to(loss.dtype)]).tolist()
    record = StepRecord(index + 1, loss_value, config.optim.lr * rate, norm_value, loops)
    if record.finite:
        if 0 < config.optim.clip < norm_value:
            clip_grads_with_norm_(training.parameters, config.optim.clip, norm)
        training.optimizer.step()
        training.done = index + 1
    return record


def step_loops(training: Training, index: int) -> int:
    """Give N of the 0-based step `index`: a function of config, seed and step, so a resumed run repeats it."""
    network, train = training.model.config, training.config.train
    return network.sampler.draw(index, train.steps, train.seed, network.loops)


def _backward(training: Training, inputs_BT: Tensor, targets_BT: Tensor, loops: int) -> Tensor:
    """Leave the gradient of the mean loss of this rank's rows, `accumulate` parts one after the other; give the loss."""
    parts = training.config.train.accumulate
    losses = []
    for number, (inputs, targets) in enumerate(zip(inputs_BT.chunk(parts), targets_BT.chunk(parts), strict=True)):
        with training.sync(number == parts - 1):
            loss = batch_loss(training, inputs, targets, loops) / parts
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses[0] if parts == 1 else torch.stack(losses).sum()


def training_batch(training: Training, index: int) -> tuple[Tensor, Tensor]:
    """Give this rank's rows of the batch of the 0-based step `index`, on the training's device."""
    return to_device(training.batches(index), training.device)


def to_device(pair: tuple[np.ndarray, np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Turn a pair of token arrays into tensors on `device`."""
    inputs_BT, targets_BT = (torch.from_numpy(side) for side in pair)
    if device.type == "cuda":  # pinned: the copy does not wait for the step before
        inputs_BT, targets_BT = inputs_BT.pin_memory(), targets_BT.pin_memory()
    return inputs_BT.to(device, non_blocking=True), targets_BT.to(device, non_blocking=True)


def batch_loss(training: Training, inputs_BT: Tensor, targets_BT: Tensor, loops: int | None = None) -> Tensor:
    """Mean next-token loss in nats; in bf16 only the matrix products are, the loss and the stream stay fp32."""
    with precision(training):
        if training.config.train.loss_rows:
            rows = training.config.train.loss_rows
            return training.network(inputs_BT, loops=loops, targets_BT=targets_BT, loss_rows=rows)
        logits_BTV = training.network(inputs_BT, loops=loops)
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def precision(training: Training) -> AbstractContextManager[object]:
    """Give the autocast context of the config's precision."""
    if training.config.train.precision == "bf16":
        return torch.autocast(training.device.type, dtype=torch.bfloat16)
    return nullcontext()


@torch.no_grad()
def evaluate(training: Training) -> float | None:
    """Mean loss on the first `train.eval_batches` validation batches, always the same; None when there are none.

    Each rank takes its rows of a batch; the sum over the ranks is the mean over the rows.
    """
    config, world = training.config, training.world
    data, count = config.data, config.train.eval_batches
    with world.together():  # all are read before the first is used: a damaged shard on one rank ends all
        pairs = list(training.dataset.validation_batches(data.batch_size, data.context, count))
    losses = []
    for inputs, targets in pairs:
        rows = len(range(world.rank, len(inputs), world.size))
        # A rank without a row takes the first, with weight 0: all must go through the model together.
        own = slice(world.rank if rows else 0, None if rows else 1, world.size)
        loss = batch_loss(training, *to_device((inputs[own], targets[own]), training.device))
        losses.append(loss if world.size == 1 else loss * (rows / len(inputs)))
    let_go(training.model)
    return float(world.total(torch.stack(losses)).mean()) if losses else None


def stream_rms(training: Training) -> list[float]:
    """RMS of the residual stream at the entry and after each visit, on the first training batch, always the same."""
    if training.first is None:
        training.first = training.batches(0)
    with precision(training):
        own = training.model.visit_rms(to_device(training.first, training.device)[0])
    let_go(training.model)
    if training.world.size == 1:
        return own
    squares = torch.tensor(own, dtype=torch.float64, device=training.device).square()
    return [float(rms) for rms in training.world.mean(squares).sqrt()]
