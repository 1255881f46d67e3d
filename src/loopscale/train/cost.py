"""What a trial costs in FLOPs: the planner's count of matrix products, which is torch's FlopCounterMode's."""

from __future__ import annotations

from loopscale.train.config import TrainConfig
from loopscale.train.shape import shape_of


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
