"""What a trial costs in FLOPs: matrix products of forward and backward, counted as torch's FlopCounterMode does."""

from __future__ import annotations

from loopscale.train import TrainConfig


def forward_flops(config: TrainConfig, vocab_size: int) -> float:
    """FLOPs of one forward pass over one token of the house model: 2 * (weights visited) + attention 4 T d per layer.

    >>> forward_flops(TrainConfig(), 256) > 0
    True
    """
    model = config.model
    network = config.network(vocab_size)
    kv = (network.kv_heads or network.heads) * network.head_dim
    d = model.width
    block = 2 * d * d + 2 * d * kv + 3 * d * network.mlp_width
    layers = model.layers * model.loops + model.prelude + model.coda
    return layers * (2 * block + 4 * config.data.context * d) + 2 * d * network.vocab_size


def trial_flops(config: TrainConfig, vocab_size: int, own: bool = False, steps: int | None = None) -> float:
    """FLOPs of a whole trial: 3 forward passes a training token, 1 an evaluation token.

    own: the model is the user's and its matrices unknown: it counts as N L d^2 (only ratios mean anything then).
    steps: how many were done, when the trial was stopped early (it then was not evaluated).
    """
    tokens = config.data.batch_size * config.data.context
    train, done = config.train, steps is None or steps >= config.train.steps
    passes = 3 * (train.steps if steps is None else steps) + (train.eval_batches if done else 0)
    size = config.model
    each = size.loops * size.layers * size.width**2 if own else forward_flops(config, vocab_size)
    return float(passes * tokens * each)
