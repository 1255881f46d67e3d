"""The trained model of a run folder: what sampling, export, evaluation and diagnosis begin with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from loopscale.data import Tokenizer, tokenizer_from_json
from loopscale.errors import UserError
from loopscale.nn import LoopedTransformer
from loopscale.train import checkpoint, sharded
from loopscale.train.config import TrainConfig
from loopscale.train.needs import check_memory
from loopscale.train.place import fingerprint
from loopscale.train.run import Run, Warn, check_source, check_tied_entry, open_run
from loopscale.train.user import UserModel, user_model


@dataclass(frozen=True)
class Trained:
    """A run, the model of its newest whole checkpoint, and the number of steps done there.

    `model` is a `LoopedTransformer`, or what the user's factory built; `user` then is that factory's.
    """

    run: Run
    model: Any
    step: int
    user: UserModel | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; raises `UserError` when it is missing, damaged, or larger than the model's vocabulary."""
        tokenizer = _tokenizer(self.run)
        if self.user is None and tokenizer.vocab_size > (known := self.model.config.vocab_size):
            path = self.run.path / "tokenizer.json"
            raise UserError(f"{path} has {tokenizer.vocab_size} tokens and the model knows {known}: restore it")
        return tokenizer


def load_model(
    folder: str | Path,
    warn: Warn = lambda sentence: None,
    *,
    untrained: bool = False,
    model: str | None = None,
    loops: int | None = None,
) -> Trained:
    """Load the newest whole checkpoint of a run folder, warning about damaged ones; the config must be its own.

    untrained: give the model at its initialisation where there is no checkpoint yet. model: the place of the user's
    factory, which a run of a user model needs: a folder may come from anywhere, so the code that it names runs only when
    the caller names it too. loops: build the model with so many, instead of the training's.

    Raises `UserError` when there is no checkpoint, config.toml describes another model than was trained, or the factory is
    not named or not the run's.
    """
    run = open_run(Path(folder))
    check_named(run, model)
    check_tied_entry(run, warn)
    newest = run.newest_whole(warn)
    if newest is None and not untrained:
        raise UserError(f"{run.path} has no checkpoint to load: run loopscale train --resume {run.path}")
    if newest is not None:
        checkpoint.check_model(newest, run.config, warn)
    config = run.config if loops is None else run.config.replaced("model", loops=loops)
    step = 0 if newest is None else checkpoint.step_of(newest)
    if model is not None:
        check_source(run, {"source": model, "sha256": fingerprint(model)}, warn)
        tokens = (run.path / "tokenizer.json").exists()
        user = user_model(model, config.using(model), vocab_size=_tokenizer(run).vocab_size if tokens else None)
        trained = Trained(run, user.model.eval(), step, user)
    else:
        trained = Trained(run, _house(config, newest), step)
    if newest is not None:
        checkpoint.load_weights(newest, trained.model)
    return trained


def check_named(run: Run, model: str | None) -> None:
    """Raise `UserError` unless `model` names code exactly where the run needs code that is not ours."""
    factory = run.config.model.factory
    if factory is not None and model is None:
        raise UserError(f"{run.path} trains {factory}, code that runs only where you name it: add --model {factory}")
    if factory is None and model is not None:
        raise UserError(f"{run.path} is a run of the house model: leave --model out")


def _house(config: TrainConfig, newest: Path | None) -> LoopedTransformer:
    if newest is None:
        check_memory(config, training=False)
        return LoopedTransformer(config.network(config.model.vocab_size or 256), seed=config.train.seed)
    embedding = sharded.stored(newest).get("embedding.weight")
    if embedding is None:
        raise UserError(f"{newest} holds no embedding.weight: it is of another kind of model")
    return LoopedTransformer(config.network(embedding.shape[0]))


def _tokenizer(run: Run) -> Tokenizer:
    path = run.path / "tokenizer.json"
    try:
        return tokenizer_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        if run.config.model.factory is not None and not path.exists():
            raise UserError(f"{run.path} was trained on make_batch, so it has no tokenizer and knows no text") from None
        raise UserError(f"{path} is missing or unreadable: restore it, or train again") from None
