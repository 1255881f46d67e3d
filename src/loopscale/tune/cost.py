"""What a trial costs in FLOPs: the planner's count of matrix products, which is torch's FlopCounterMode's."""

from __future__ import annotations

from loopscale.planning import flops_per_token
from loopscale.train import TrainConfig
from loopscale.train.shape import shape_of


def trial_flops(config: TrainConfig, vocab_size: int, own: bool = False, steps: int | None = None) -> float:
    """Count the FLOPs of a whole trial: 3 forward passes for a training token, 1 for an evaluation token.

    own: the model is the user's and its matrices unknown: it counts as N L d^2 (only ratios mean anything then).
    steps: how many were done, when the trial was stopped early (it then was not evaluated).
    """
    tokens = config.data.batch_size * config.data.context
    train, done = config.train, steps is None or steps >= config.train.steps
    passes = 3 * (train.steps if steps is None else steps) + (train.eval_batches if done else 0)
    size = config.model
    each = size.loops * size.layers * size.width**2 if own else flops_per_token(shape_of(config, vocab_size))["forward"]
    return float(passes * tokens * each)
