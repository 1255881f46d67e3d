"""A JAX training that `loopscale tune` tunes: values -> loss.

loopscale tune examples/jax/tune.toml --objective examples/jax/objective.py:objective --target loops=8
"""

from functools import partial

import jax
import optax
from equinox_loop import LAYERS, batch, make

import loopscale.optax as lo


@partial(jax.jit, static_argnames=("forward", "loops", "steps", "decay"))
def train(params, forward, loops, steps, decay, eps, lr):
    """Train on all pairs at once; give the last loss. Rate and eps are traced: another value is no new program."""
    groups = lo.groups(lo.Scaling(lo.Depth(loops, LAYERS)), lr, weight_decay=decay)
    optimizer = lo.multi_transform(lo.labels(params), groups)

    def step(state, _):
        params, moments = state
        loss, gradients = jax.value_and_grad(lambda p: forward(p, batch(), loops, eps)[1])(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return losses[-1]


def objective(values):
    """Give the loss at a rate and strength: eps comes from the rule at the size of the trial."""
    params, forward = make(values["seed"])
    return float(
        train(
            params,
            forward,
            values["loops"],
            values["steps"],
            values["weight_decay"],
            values["residual_scale"],
            values["lr"],
        )
    )
