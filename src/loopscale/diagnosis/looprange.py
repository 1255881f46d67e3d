"""The safe range of loops: what becomes of the output, and of the loss on data, when N is changed at test time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.setting import Setting, at_each
from loopscale.errors import UserError
from loopscale.probe.batch import first_float
from loopscale.probe.tape import TooLong, tensors_in

LossOf = Callable[[Any, Any], Tensor]
# Within the safe range the output moves by at most a tenth, and the loss rises by at most a twentieth (nats for text).
OUTPUT, LOSS = 0.1, 0.05
# A loss that differs from that at most loops by no more than this has stopped changing.
STANDS = 0.01


@dataclass(frozen=True)
class LoopRange:
    """`change[n]` = |y_n - y| / |y| against the model's own N; `loss[n]` on the data, where given; `safe`: N from, to.

    `still_from`: the N from which on the loss has stopped changing.
    """

    own: int
    change: dict[int, float]
    loss: dict[int, float]
    safe: tuple[int, int]
    still_from: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "own_loops": self.own,
            "output_change": self.change,
            "loss": self.loss,
            "safe": list(self.safe),
            "safe_by": "loss" if self.loss else "output",
            "still_from": self.still_from,
        }


def loop_range(
    setting: Setting,
    knob: Knob,
    own: int,
    span: tuple[int, int],
    data: Iterable[Any] | None = None,
    loss: LossOf | None = None,
) -> LoopRange:
    """Run at `own`, at both ends of `span` and at the powers of two between; with `data` the mean loss over its batches.

    Raises `UserError` when there are data and no loss can be told from the output.
    """
    low, high = span
    counts = sorted({knob.nearest(n) for n in (low, own, high, *(2**k for k in range(12))) if low <= n <= high} | {own})
    outputs = {n: output_of(there) for n, there in at_each(setting, knob, counts)}
    before = outputs[own]
    change: dict[int, float] = {}
    for n, after in outputs.items():
        if after is not None and before is not None and after.shape == before.shape:
            change[n] = rms(after - before) / max(rms(before), 1e-30)
    kept = list(data) if data is not None else []
    losses = {n: _mean_loss(there, kept, loss) for n, there in at_each(setting, knob, counts)} if kept else {}
    return LoopRange(own, change, losses, _safe(own, change, losses), _still(losses))


def _still(losses: dict[int, float]) -> int | None:
    """Return the fewest loops from which on the loss stays where it ends; None where it changes up to the end."""
    counts = sorted(losses)
    still = None
    for n in reversed(counts[:-1]):
        if not abs(losses[n] - losses[counts[-1]]) <= STANDS:
            break
        still = n
    return still


def output_of(setting: Setting) -> Tensor | None:
    """Give the model's answer at this setting; None where it does not run."""
    try:
        value = first_float(setting.run()[1])
    except (RuntimeError, IndexError, ValueError, TooLong):  # embeddings of the visits may end
        return None
    return None if value is None else value.float()


def _mean_loss(setting: Setting, data: list[Any], loss: LossOf | None) -> float:
    try:
        found = [loss_of(replace(setting, batch=batch).run()[1], batch, loss) for batch in data]
    except (RuntimeError, IndexError, ValueError):
        return float("nan")
    return sum(float(value) for value in found) / len(found)


def loss_of(output: Any, batch: Any, loss: LossOf | None = None) -> Tensor:
    """Give `loss(output, batch)`, else the output's own loss, else the next token's when tokens in gave logits.

    Raises `UserError` when none of these is there.
    """
    if loss is not None:
        return loss(output, batch)
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.ndim == 0:
        return own
    value = first_float(output)
    tokens = next((t for t in tensors_in(batch) if not t.is_floating_point() and t.ndim == 2), None)
    if value is not None and tokens is not None and value.ndim == 3 and value.shape[:2] == tokens.shape:
        if value.shape[1] > 1 and value.shape[2] > int(tokens.max()):
            return F.cross_entropy(value[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
    raise UserError("no loss can be told from the output: pass loss=lambda output, batch: ... with the data")


def _safe(own: int, change: dict[int, float], losses: dict[int, float]) -> tuple[int, int]:
    known, limit = (losses, losses.get(own, 0.0) + LOSS) if losses else (change, OUTPUT)
    counts = sorted(known)
    good = [n for n in counts if known[n] <= limit]
    low = high = own
    for n in reversed([n for n in counts if n < own]):
        if n not in good:
            break
        low = n
    for n in [n for n in counts if n > own]:
        if n not in good:
            break
        high = n
    return low, high


def byte_batches(content: bytes, vocabulary: int, length: int = 64, count: int = 4) -> list[Tensor]:
    """Return tokens from a file's bytes, `count` batches of 4 x `length`.

    Raises `UserError` when they do not fit the model.
    """
    if vocabulary < 256:
        raise UserError(
            f"bytes need a vocabulary of at least 256, the model has {vocabulary}: give --data tokens (.pt)"
        )
    if len(content) < 4 * length:
        raise UserError(f"the data hold {len(content)} bytes: give at least {4 * length}")
    tokens = torch.frombuffer(bytearray(content[: 4 * length * count]), dtype=torch.uint8).long()
    return list(tokens[: len(tokens) // (4 * length) * 4 * length].view(-1, 4, length))
