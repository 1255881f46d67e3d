"""The trained model of a run folder, with its tokenizer: what sampling, export and evaluation begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loopscale.data import Tokenizer, tokenizer_from_json
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer
from loopscale.train import checkpoint
from loopscale.train.run import Run, Warn


@dataclass(frozen=True)
class Trained:
    """A run, the weights of its newest whole checkpoint, and the number of steps done there."""

    run: Run
    model: LoopedTransformer
    tokenizer: Tokenizer
    step: int


def load_trained(run: Run, warn: Warn) -> Trained:
    """Load the newest whole checkpoint, warning about damaged ones.

    Raises `UserError` when there is none, or the tokenizer is missing.
    """
    newest = run.newest_whole(warn)
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint to load: run loopscale train --resume {run.path}")
    tokenizer = load_tokenizer(run.path)
    model = LoopedTransformer(run.config.network(tokenizer.vocab_size))
    checkpoint.load_weights(newest, model)
    return Trained(run, model, tokenizer, checkpoint.step_of(newest))


def load_tokenizer(run: Path) -> Tokenizer:
    """Read the run's own tokenizer: sampling needs no data."""
    try:
        return tokenizer_from_json((run / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{run / 'tokenizer.json'} is missing or unreadable: restore it, or train again") from None
