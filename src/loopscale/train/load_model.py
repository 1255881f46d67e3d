"""The trained model of a run folder: what sampling, export, evaluation and diagnosis begin with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loopscale.data import Tokenizer, tokenizer_from_json
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer
from loopscale.train import checkpoint, sharded
from loopscale.train.run import Run, Warn, check_tied_entry, open_run
from loopscale.train.shape import check_memory


@dataclass(frozen=True)
class Trained:
    """A run, the model of its newest whole checkpoint, and the number of steps done there."""

    run: Run
    model: LoopedTransformer
    step: int

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer: sampling needs no data.

        Raises `UserError` when it is missing, damaged, or has tokens that the model does not know.
        """
        path = self.run.path / "tokenizer.json"
        try:
            tokenizer = tokenizer_from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{path} is missing or unreadable: restore it, or train again") from None
        if tokenizer.vocab_size > (known := self.model.config.vocab_size):
            raise UserError(f"{path} has {tokenizer.vocab_size} tokens and the model knows {known}: restore it")
        return tokenizer


def load_model(folder: str | Path, warn: Warn = lambda sentence: None, *, untrained: bool = False) -> Trained:
    """Load the newest whole checkpoint of a run folder, warning about damaged ones; the config must be its own.

    untrained: give the model at its initialisation where there is no checkpoint yet.

    Raises `UserError` when there is no checkpoint, or config.toml describes another model than was trained.
    """
    run = open_run(Path(folder))
    if run.config.model.factory is not None:
        run.config.network(256)  # says that it is a user model
    check_tied_entry(run, warn)
    newest = run.newest_whole(warn)
    if newest is None:
        if untrained:
            check_memory(run.config, training=False)
            network = run.config.network(run.config.model.vocab_size or 256)
            return Trained(run, LoopedTransformer(network, seed=run.config.train.seed), 0)
        raise UserError(f"{run.path} has no checkpoint to load: run loopscale train --resume {run.path}")
    checkpoint.check_model(newest, run.config, warn)
    embedding = sharded.stored(newest).get("embedding.weight")
    if embedding is None:
        raise UserError(f"{newest} holds no embedding.weight: it is of another kind of model")
    model = LoopedTransformer(run.config.network(embedding.shape[0]))
    checkpoint.load_weights(newest, model)
    return Trained(run, model, checkpoint.step_of(newest))
