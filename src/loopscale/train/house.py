"""The house model as a task: next-token prediction on the tokens of `data.path`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopscale.data import Dataset
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer, Recompute
from loopscale.train.config import TrainConfig
from loopscale.train.task import Task, Visits


def house_task(config: TrainConfig, dataset: Dataset, rows: slice, device: torch.device) -> Task:
    """Build the model of the config from its seed; `rows` are this process's sequences of a batch.

    Raises `UserError` when the model cannot be built, or its vocabulary is smaller than that of the data.
    """
    dataset.check(config.data.context)
    data, train = config.data, config.train
    model = _model(config, dataset).to(device)
    roles = model.roles()
    return Task(
        config=config,
        model=model,
        roles=roles,
        network=model,
        loss=partial(next_token_loss, rows=train.loss_rows),
        batches=token_batches(config, dataset, rows),
        validation=lambda: dataset.validation_batches(data.batch_size, data.context, train.eval_batches),
        loops=lambda step: model.config.sampler.draw(step, train.steps, train.seed, model.config.loops),
        # The model's own: `network` may be its shards, for which the model answers too.
        streams=lambda network, batch: model.visit_rms(batch[0]),
        visits=Visits(model, roles),
        dataset=dataset,
        origin={"data": dataset.description},
    )


def next_token_loss(network: nn.Module, batch: tuple[Tensor, Tensor], loops: int, rows: int = 0) -> Tensor:
    """Return the mean next-token loss in nats, in fp32; `rows` > 0 computes it that many positions at a time."""
    inputs_BT, targets_BT = batch
    if rows:
        loss: Tensor = network(inputs_BT, loops=loops, targets_BT=targets_BT, loss_rows=rows)
        return loss
    return cross_entropy(network(inputs_BT, loops=loops), targets_BT)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the mean cross entropy in nats, in fp32."""
    return F.cross_entropy(logits_BTV.float().flatten(0, -2), targets_BT.flatten())


def token_batches(config: TrainConfig, dataset: Dataset, rows: slice) -> Callable[[int], Any]:
    """Give the function from the 0-based step to these rows of its (inputs [B, T], targets [B, T])."""
    data, seed = config.data, config.train.seed

    def batch(step: int) -> Any:
        return dataset.batch(step, seed, data.batch_size, data.context, order=data.order, rows=rows)

    return batch


def _model(config: TrainConfig, dataset: Dataset) -> LoopedTransformer:
    if (config.model.vocab_size or dataset.vocab_size) < dataset.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size} is less than the {dataset.vocab_size} tokens of the data: "
            "leave it out, and the data decides"
        )
    model = LoopedTransformer(config.network(dataset.vocab_size), seed=config.train.seed)
    model.core.recompute = Recompute(config.train.recompute, config.train.recompute_keep)
    return model
