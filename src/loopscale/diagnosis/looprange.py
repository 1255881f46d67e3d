"""N at test time: does the answer settle when the loop runs on, and where do output and loss stay as they are?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loopscale.diagnosis.branches import rms
from loopscale.diagnosis.gradients import loss_in, tokens_told
from loopscale.diagnosis.knob import Knob
from loopscale.diagnosis.setting import Setting, at_each
from loopscale.errors import UserError, expect, foreign
from loopscale.probe.batch import first_float, prepare
from loopscale.probe.tape import TooLong

LossOf = Callable[[Any, Any], Tensor]
# Within the safe range the output moves by at most a tenth, and the loss rises by at most a twentieth (nats for text).
OUTPUT, LOSS = 0.1, 0.05
# A loss that differs from that at most loops by no more than this has stopped changing.
STANDS = 0.01
# A second doubling that moves the answer by less than this share of the first has settled; by more than the other, drifts.
SETTLES, DRIFTS = 0.5, 0.75
# An answer that moves by less than this share of itself has settled, however the doublings compare.
STILL = 0.01


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

    Raises `UserError` when the model cannot be run on the data, or no loss can be told from the output.
    """
    low, high = span
    counts = sorted({knob.nearest(n) for n in (low, own, high, *(2**k for k in range(12))) if low <= n <= high} | {own})
    outputs = {n: output_of(there) for n, there in at_each(setting, knob, counts)}
    before = outputs[own]
    change: dict[int, float] = {}
    for n, after in outputs.items():
        if after is not None and before is not None and after.shape == before.shape:
            change[n] = rms(after - before) / max(rms(before), 1e-30)
    kept = [prepare(setting.model, batch, setting.extra) for batch in data or ()]
    if data is not None and not kept:
        raise UserError("data= holds no batch: give at least one")
    ran = [n for n in counts if outputs[n] is not None] if kept else []
    losses = {n: _mean_loss(there, kept, loss) for n, there in at_each(setting, knob, ran)} if ran else {}
    return LoopRange(own, change, losses, _safe(own, change, losses), _still(losses))


def _still(losses: dict[int, float]) -> int | None:
    """Return the fewest loops from which on the loss stays where it ends; None where it changes up to the end."""
    *counts, last = sorted(losses) or [0]
    still = list(takewhile(lambda n: abs(losses[n] - losses[last]) <= STANDS, reversed(counts)))
    return still[-1] if still else None


def settling(setting: Setting, knob: Knob, own: int) -> dict[str, Any] | None:
    """Run on to 2N and 4N: give the answer's change by each doubling and whether it settles, is marginal, or drifts.

    None where the model gives no answer of one shape at all three. The weights stay as they are: at random weights this
    says how the map behaves, of a trained model whether more loops at test time are safe.
    """
    counts = [own, 2 * own, 4 * own]
    found = {n: output_of(there) for n, there in at_each(setting, knob, counts)}
    first, second, third = (found.get(n) for n in counts)
    if first is None or second is None or third is None or not first.shape == second.shape == third.shape:
        return None
    changes = [rms(b - a) / max(rms(a), 1e-30) for a, b in ((first, second), (second, third))]
    ratio = changes[1] / max(changes[0], 1e-30)
    still = changes[1] < STILL or ratio < SETTLES
    return {
        "change": {str(n): change for n, change in zip(counts[1:], changes, strict=True)},
        "law": "settles" if still else "drifts" if ratio > DRIFTS else "marginal",
    }


def output_of(setting: Setting) -> Tensor | None:
    """Give the model's answer at this setting; None where it does not run."""
    try:
        value = first_float(setting.run()[1])
    except (RuntimeError, IndexError, ValueError, TooLong):  # embeddings of the visits may end
        return None
    return None if value is None else value.float()


def _mean_loss(setting: Setting, data: list[Any], loss: LossOf | None) -> float:
    try:
        outputs = [replace(setting, batch=batch).run()[1] for batch in data]
    except (RuntimeError, IndexError, ValueError):
        return float("nan")
    found = [float(loss_of(output, batch, loss)) for output, batch in zip(outputs, data, strict=True)]
    return sum(found) / len(found)


def loss_of(output: Any, batch: Any, loss: LossOf | None = None) -> Tensor:
    """Give `loss(output, batch)`, else the output's own loss, else the next token's when tokens in gave logits.

    Raises `UserError` when none of these is there.
    """
    if loss is not None:
        with foreign("loss= failed on the output of the model"):
            made = loss(output, batch)
            told = made.numel() == 1 if isinstance(made, Tensor) else isinstance(made, (int, float))
            expect(made, told, "one number from loss=", "such as a mean over the tokens")
        return torch.as_tensor(made)
    own, value = loss_in(output), first_float(output)
    if own is not None:
        return own
    tokens = None if value is None else tokens_told(value, batch)
    if value is not None and tokens is not None and value.shape[1] > 1:
        return F.cross_entropy(value[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())
    raise UserError("no loss can be told from the output: pass loss=lambda output, batch: ... with the data")


def _safe(own: int, change: dict[int, float], losses: dict[int, float]) -> tuple[int, int]:
    known, limit = (losses, losses.get(own, 0.0) + LOSS) if losses else (change, OUTPUT)
    below = takewhile(lambda n: known[n] <= limit, sorted((n for n in known if n < own), reverse=True))
    above = takewhile(lambda n: known[n] <= limit, sorted(n for n in known if n > own))
    return [own, *below][-1], [own, *above][-1]


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
