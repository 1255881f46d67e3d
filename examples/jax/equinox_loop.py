"""Equinox: one block read N times, eps from the rule, an optimiser per role: `python examples/jax/equinox_loop.py`.

Needs `pip install 'loopscale[jax]' equinox`. No torch is imported.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import loopscale.optax as lo

LAYERS, WIDTH, WORDS = 2, 32, 16


class Block(eqx.Module):
    """A residual branch: norm, up, down."""

    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        """Draw the weights; every branch starts alike, whatever the depth."""
        first, second = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.up = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=first)
        self.down = eqx.nn.Linear(2 * WIDTH, WIDTH, key=second)

    def __call__(self, x):
        """Give the branch's output for one token."""
        return self.down(jax.nn.gelu(self.up(self.norm(x))))


class Looped(eqx.Module):
    """Embedding, blocks that are visited N times, readout."""

    embedding: eqx.nn.Embedding
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, key):
        """Draw the weights."""
        first, last, *inner = jax.random.split(key, 2 + LAYERS)
        self.embedding = eqx.nn.Embedding(WORDS, WIDTH, key=first)
        self.blocks = [Block(key) for key in inner]
        self.head = eqx.nn.Linear(WIDTH, WORDS, key=last)

    def __call__(self, pair, loops, eps):
        """Give the stream after the last visit, and the logits; `eps` scales every branch."""

        def visit(x, _):
            for block in self.blocks:
                x = x + eps * block(x)
            return x, None

        x, _ = jax.lax.scan(visit, jax.vmap(self.embedding)(pair).mean(0), length=loops)
        return x, self.head(x)


def batch():
    """Give all pairs of numbers [256, 2]: their sum modulo 16 is asked for."""
    return jnp.stack(jnp.meshgrid(jnp.arange(WORDS), jnp.arange(WORDS)), axis=-1).reshape(-1, 2)


def make(seed=0):
    """Give the parameters and `forward(params, batch, loops)`, which returns (stream, loss)."""
    params, static = eqx.partition(Looped(jax.random.key(seed)), eqx.is_inexact_array)

    def forward(params, pairs, loops, eps=None):
        eps = lo.residual_scale(lo.Depth(loops, LAYERS)) if eps is None else eps
        stream, logits = jax.vmap(lambda pair: eqx.combine(params, static)(pair, loops, eps))(pairs)
        return stream, optax.softmax_cross_entropy_with_integer_labels(logits, pairs.sum(1) % WORDS).mean()

    return params, forward


def optimizer(params, loops, lr=2**-9):
    """Make AdamW with the rule's rate, epsilon and decay for each role."""
    scaling = lo.Scaling(lo.Depth(loops, LAYERS))
    return lo.multi_transform(lo.labels(params), lo.groups(scaling, lr))


def main():
    """Check that one step moves the stream alike at every N."""
    params, forward = make()
    return lo.check_parameterization(forward, params, batch(), optimizer=lambda loops: optimizer(params, loops))


if __name__ == "__main__":
    print(main())
