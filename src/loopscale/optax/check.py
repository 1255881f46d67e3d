"""Measure over loops how far a step moves a network that is a function of (params, batch, loops)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loopscale.errors import UserError, require
from loopscale.parameterization import CheckRow, ParameterizationCheck
from loopscale.parameterization.flat import counts_to_check


def check_parameterization(
    forward: Callable[[Any, Any, int], Any],
    params: Any,
    batch: Any,
    loops: Sequence[int] = (1, 2, 4, 8),
    steps: int = 10,
    optimizer: Any = None,
) -> ParameterizationCheck:
    """Fit slopes over log N of the stream's RMS and of its change by training, as `loopscale.check_parameterization` does.

    `forward(params, batch, loops)` returns the stream after the last visit, or the pair (stream, loss); without a loss a
    random direction of the stream is trained. It applies eps of `loops` itself. `optimizer` is an optax transformation, or
    a function of `loops` that makes one; default: Adam at 2^-10.

    Raises `UserError` for fewer than two numbers of loops, for a forward pass that returns neither, and without jax.
    """
    rows = [_row(forward, params, batch, count, steps, optimizer) for count in counts_to_check(loops, steps)]
    return ParameterizationCheck.of("the network", steps, rows)


def _row(forward: Callable[..., Any], params: Any, batch: Any, count: int, steps: int, optimizer: Any) -> CheckRow:
    jax, optax = require("jax", "jax"), require("optax", "jax")

    def loss_and_stream(weights: Any) -> tuple[Any, Any]:
        return _parted(forward(weights, batch, count))

    def one_step(weights: Any, state: Any) -> tuple[Any, Any, Any]:
        gradients, stream = jax.grad(loss_and_stream, has_aux=True)(weights)
        updates, state = own.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state, stream

    step = jax.jit(one_step)
    own = optax.adam(2.0**-10) if optimizer is None else optimizer
    own = own if hasattr(own, "update") else own(count)
    weights, state, streams = params, own.init(params), []
    for _ in range(steps + 1):
        weights, state, stream = step(weights, state)
        streams.append(stream)
    return CheckRow(count, _rms(streams[0]), _rms(streams[1] - streams[0]), _rms(streams[-1] - streams[0]))


def _parted(output: Any) -> tuple[Any, Any]:
    """Give (loss, stream) of what `forward` returned."""
    jax = require("jax", "jax")
    stream, loss = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(stream, jax.Array) or stream.ndim < 1 or (loss is not None and getattr(loss, "ndim", 1) != 0):
        raise UserError(
            f"forward returned {type(output).__name__}: it returns the stream, an array, or the pair (stream, loss)"
        )
    if loss is None:
        direction = jax.random.normal(jax.random.key(2), stream.shape)
        loss = (stream * direction).sum() / stream.size**0.5
    return loss, stream


def _rms(values: Any) -> float:
    return float((values.astype("float32") ** 2).mean() ** 0.5)
