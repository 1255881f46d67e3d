"""What a config will take, by the planner's arithmetic, and whether this machine has it: asked before anything is made."""

from __future__ import annotations

from typing import Any

import torch

from loopscale.errors import UserError
from loopscale.files import machine_memory
from loopscale.nn import Recompute
from loopscale.planning import Shape, memory
from loopscale.train.config import TrainConfig

USABLE = 0.95  # share of the machine's memory that one training may plan with; above it the system stalls


def shape_of(config: TrainConfig, vocab_size: int | None = None) -> Shape:
    """Give the numbers that the planner needs; the vocabulary is the config's, `vocab_size`, or its tokenizer's."""
    network = config.network(vocab_size or default_vocabulary(config))
    trained = min(network.gradient_visits or network.loops, network.loops)
    return Shape(
        vocab_size=network.vocab_size,
        layers=network.layers,
        loops=network.loops,
        prelude=network.prelude,
        coda=network.coda,
        kv_width=(network.kv_heads or network.heads) * network.head_dim,
        mlp_width=network.mlp_width,
        tied_readout=network.tied_readout,
        gradient_visits=network.gradient_visits,
        recompute=config.train.recompute,
        recompute_keep=config.train.recompute_keep,
        loss_rows=config.train.loss_rows,
        extra_visits=Recompute(config.train.recompute, config.train.recompute_keep).extra_visits(trained) or None,
        **shared(config),
    )


def shared(config: TrainConfig) -> dict[str, Any]:
    """Give what the planner asks of any training, whoever wrote its model."""
    return {
        "width": config.model.width,
        "context": config.data.context,
        "batch": config.data.batch_size,
        "steps": config.train.steps,
        "optimizer": config.optim.optimizer,
        "bf16": config.train.precision == "bf16",
        "sharded": config.train.strategy == "fsdp",
        "accumulate": config.train.accumulate,
    }


def default_vocabulary(config: TrainConfig) -> int:
    """Give the tokens of the config's tokenizer, without looking at the data."""
    return config.data.vocab_size or (1024 if config.data.tokenizer == "bpe" else 256)


def check_memory(config: TrainConfig, ranks: int = 1, *, training: bool = True) -> None:
    """Raise `UserError`, before anything is allocated, when a training cannot fit: 95 % of the memory there is.

    ranks: of the world; on a CPU all are taken to share this machine. training: False counts the weights alone, on a CPU.
    """
    cuda = training and config.train.device != "cpu" and torch.cuda.is_available()
    there = torch.cuda.get_device_properties(0).total_memory if cuda else machine_memory()
    needed = memory(shape_of(config), ranks)
    bytes_needed = (needed.total - needed.runtime if training else needed.weights) * (1 if cuda else ranks)
    if there is not None and bytes_needed > USABLE * there:
        what = "training" if training else "the model"
        raise UserError(
            f"{what} takes {size_of(bytes_needed)} and this {'GPU' if cuda else 'machine'} has {size_of(there)}: lower "
            f"{_largest(config, training)}, or see what would help with loopscale plan"
        )


def _largest(config: TrainConfig, training: bool) -> str:
    """Name the value that is to blame: the one that is furthest above its default."""
    default, now = TrainConfig().flat(), config.flat()
    keys = ["model.layers", "model.width", "model.vocab_size"]
    keys += ["data.batch_size", "data.context", "model.loops"] if training else []
    key = max(keys, key=lambda key: (now.get(key) or 0) / (default.get(key) or 256))
    return f"{key} = {now.get(key)}"


def trial_flops(
    config: TrainConfig, vocab_size: int | None = None, user_model: bool = False, steps: int | None = None
) -> float:
    """Count the FLOPs of a whole trial: 3 forward passes for a training token, 1 for an evaluation token.

    vocab_size: by default what the config's data has. user_model: the model is the user's and its matrices unknown: it
    counts as N L d^2 (only ratios mean anything then).
    steps: how many were done, when the trial was stopped early (it then was not evaluated).
    """
    tokens = config.data.batch_size * config.data.context
    train, done = config.train, steps is None or steps >= config.train.steps
    passes = 3 * (train.steps if steps is None else steps) + (train.eval_batches if done else 0)
    if user_model:
        return float(passes * tokens * config.model.loops * config.model.layers * config.model.width**2)
    return float(passes * tokens * shape_of(config, vocab_size).flops()["forward"])


def equal_steps(dear: TrainConfig, cheap: TrainConfig, vocab_size: int | None = None, user_model: bool = False) -> int:
    """Return for how many steps `cheap` trains with the compute that `dear` spends on its steps.

    vocab_size, user_model: as in `trial_flops`.

    >>> from loopscale.train import make_config
    >>> loops = {n: make_config({"model": {"loops": n}, "train": {"steps": 100}}) for n in (1, 8)}
    >>> 100 < equal_steps(loops[8], loops[1]) < 800
    True
    """
    each = [trial_flops(config, vocab_size, user_model, steps=1) for config in (dear, cheap)]
    return max(1, round(dear.train.steps * each[0] / each[1]))


def size_of(count: float) -> str:
    """Write a number of bytes for people."""
    scale, unit = next(((at, unit) for at, unit in ((1e12, "TB"), (1e9, "GB")) if count >= at), (1e6, "MB"))
    return f"{count / scale:,.1f} {unit}"
