"""The state of a training and its one step; everything that trains (a run, a trial of a study) goes through here.

Shapes: B = sequences in a batch, T = tokens in a sequence, V = size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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
    """A model in training: after `done` steps. All that a checkpoint must hold is model, optimizer and `done`."""

    config: TrainConfig
    dataset: Dataset
    model: LoopedTransformer
    optimizer: torch.optim.Optimizer
    multiplier: Callable[[int], float]
    device: torch.device
    parameters: list[Tensor]
    done: int = 0


def prepare(config: TrainConfig, dataset: Dataset | None = None) -> Training:
    """Build model, optimizer and schedule from the config; raises `UserError` when they cannot be built."""
    device = pick_device(config.train.device)
    dataset = config.load_data() if dataset is None else dataset
    if (config.model.vocab_size or dataset.vocab_size) < dataset.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the {dataset.vocab_size} tokens of the data: "
            "leave it out, and the data decides"
        )
    model = LoopedTransformer(config.network(dataset.vocab_size), seed=config.train.seed).to(device)
    model.core.recompute = Recompute(config.train.recompute, config.train.recompute_keep)
    optim = config.optim
    optimizer = build_optimizer(
        model,
        optim.optimizer,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        momentum=optim.momentum,
    )
    steps = config.train.steps
    multiplier = schedule(optim.schedule, steps, min(round(optim.warmup * steps), steps - 1))
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    training = Training(config, dataset, model, optimizer, multiplier, device, parameters)
    if config.train.compile:
        inputs_BT, _ = training_batch(training, 0)
        compile_checked(model, inputs_BT, autocast=torch.bfloat16 if config.train.precision == "bf16" else None)
    return training


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu" or "cuda" into a device; raises `UserError` when there is no GPU to use."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device = 'cuda', but torch sees no GPU here: use --set train.device=auto")
    return torch.device(name)


def train_step(training: Training) -> StepRecord:
    """Do the next step; on a non-finite loss or gradient nothing is updated and the record is not `finite`.

    Batch, rate and clipping are functions of the config and the step number alone, so a resumed run repeats them.
    """
    config, index = training.config, training.done
    rate = training.multiplier(index)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
    inputs_BT, targets_BT = training_batch(training, index)
    training.optimizer.zero_grad(set_to_none=True)
    loops = step_loops(training, index)
    loss = batch_loss(training, inputs_BT, targets_BT, loops)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = get_total_norm([p.grad for p in training.parameters if p.grad is not None])
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


def training_batch(training: Training, index: int) -> tuple[Tensor, Tensor]:
    """Give the batch of the 0-based step `index` on the training's device."""
    data = training.config.data
    pair = training.dataset.batch(index, training.config.train.seed, data.batch_size, data.context)
    return to_device(pair, training.device)


def to_device(pair: tuple[np.ndarray, np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Turn a pair of token arrays into tensors on `device`."""
    inputs_BT, targets_BT = pair
    return torch.from_numpy(inputs_BT).to(device), torch.from_numpy(targets_BT).to(device)


def batch_loss(training: Training, inputs_BT: Tensor, targets_BT: Tensor, loops: int | None = None) -> Tensor:
    """Mean next-token loss in nats; in bf16 only the matrix products are, the loss and the stream stay fp32."""
    with precision(training):
        logits_BTV = training.model(inputs_BT, loops=loops)
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def precision(training: Training) -> AbstractContextManager[object]:
    """Give the autocast context of the config's precision."""
    if training.config.train.precision == "bf16":
        return torch.autocast(training.device.type, dtype=torch.bfloat16)
    return nullcontext()


@torch.inference_mode()
def evaluate(training: Training) -> float | None:
    """Mean loss on the first `train.eval_batches` validation batches, always the same; None when there are none."""
    config = training.config
    pairs = training.dataset.validation_batches(config.data.batch_size, config.data.context, config.train.eval_batches)
    losses = [batch_loss(training, *to_device(pair, training.device)) for pair in pairs]
    return float(torch.stack(losses).mean()) if losses else None


def stream_rms(training: Training) -> list[float]:
    """RMS of the residual stream at the entry and after each visit, on the first training batch, always the same."""
    inputs_BT, _ = training_batch(training, 0)
    return training.model.visit_rms(inputs_BT)
