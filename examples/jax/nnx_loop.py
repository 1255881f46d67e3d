"""Flax NNX: one block read N times, eps from the rule, an optimiser per role: `python examples/jax/nnx_loop.py`.

Needs `pip install 'loopscale[jax]' flax`. No torch is imported.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import loopscale.optax as lo

LAYERS, WIDTH, WORDS = 2, 32, 16


class Block(nnx.Module):
    """A residual branch: norm, up, down."""

    def __init__(self, rngs):
        """Draw the weights; every branch starts alike, whatever the depth."""
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        """Give the branch's output."""
        return self.down(nnx.gelu(self.up(self.norm(x))))


class Looped(nnx.Module):
    """Embedding, blocks that are visited N times, readout."""

    def __init__(self, rngs):
        """Draw the weights."""
        self.embedding = nnx.Embed(WORDS, WIDTH, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.blocks = nnx.List(Block(rngs) for _ in range(LAYERS))
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, pairs, loops):
        """Give the stream after the last visit, and the logits."""
        eps = lo.residual_scale(lo.Depth(loops, LAYERS))

        def visit(x, _):
            for block in self.blocks:
                x = x + eps * block(x)
            return x, None

        x, _ = jax.lax.scan(visit, self.embedding(pairs).mean(1), length=loops)
        return x, self.head(x)


def batch():
    """Give all pairs of numbers [256, 2]: their sum modulo 16 is asked for."""
    return jnp.stack(jnp.meshgrid(jnp.arange(WORDS), jnp.arange(WORDS)), axis=-1).reshape(-1, 2)


def make(seed=0):
    """Give the parameters and `forward(params, batch, loops)`, which returns (stream, loss)."""
    graph, params = nnx.split(Looped(nnx.Rngs(seed)))

    def forward(params, pairs, loops):
        stream, logits = nnx.merge(graph, params)(pairs, loops)
        return stream, optax.softmax_cross_entropy_with_integer_labels(logits, pairs.sum(1) % WORDS).mean()

    return params, forward


def optimizer(params, loops, lr=2**-9):
    """Make AdamW by role, for `nnx.Optimizer(model, optimizer(...), wrt=nnx.Param)` too."""
    scaling = lo.Scaling(lo.Depth(loops, LAYERS))
    return lo.multi_transform(lo.labels(params), lo.groups(scaling, lr))


def main():
    """Check that one step moves the stream alike at every N."""
    params, forward = make()
    return lo.check_parameterization(forward, params, batch(), optimizer=lambda loops: optimizer(params, loops))


if __name__ == "__main__":
    print(main())
