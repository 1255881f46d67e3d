"""The folder of a run: what is in it, how it is made, opened and found damaged.

RUN/
  config.toml       every value, defaults included; written last, so a folder with it is a run
  provenance.json   versions, commit, hardware, date, seed, the data; one entry in "resumed" for each continuation
  tokenizer.json    turns prompts into tokens
  metrics.jsonl     one line a step
  checkpoints/      see `checkpoint`
  trackers/         what `train.trackers` wrote, if any
  .lock             held by the process that trains
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from loopscale.errors import UserError
from loopscale.files import LOCK, alone, new_folder, no_link, write_text, writing
from loopscale.records import Provenance, content_hash, read_record, read_steps, step_line, write_record
from loopscale.trackers import check_trackers, following
from loopscale.train import checkpoint
from loopscale.train.config import TrainConfig
from loopscale.train.load import load_config
from loopscale.train.origin import provenance
from loopscale.train.training import Training
from loopscale.train.world import World

Warn = Callable[[str], object]


@dataclass(frozen=True)
class Run:
    """A folder and the config in it."""

    path: Path
    config: TrainConfig

    @property
    def metrics(self) -> Path:
        """The file with a line a step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def check_same(self, config: TrainConfig) -> None:
        """Raise `UserError` unless this run is the one that `config` asks for."""
        old, now = self.config.flat(), config.flat()
        if now["train.precision"] == "auto":
            now["train.precision"] = old["train.precision"]
        for key in sorted({*old, *now}):
            if old.get(key) != now.get(key):
                raise UserError(
                    f"--continue: {self.path} holds a run with {key} = {old.get(key, 'absent')}, asked for is "
                    f"{now.get(key, 'absent')}: name another folder with --out"
                )

    def newest_whole(self, warn: Warn) -> Path | None:
        """Give the newest undamaged checkpoint, None without any; raises `UserError` when all are damaged."""
        found = checkpoint.listed(self.checkpoints)
        problem = None
        for candidate in found:
            problem = checkpoint.damage(candidate)
            if problem is None:
                return candidate
            warn(f"checkpoint {candidate.name} is damaged ({problem}): the one before it is used")
        if found:
            raise UserError(
                f"no checkpoint in {self.path} is whole ({found[-1].name}: {problem}): "
                f"train again with loopscale train {self.path / 'config.toml'} --out another folder"
            )
        return None


def open_run(path: Path) -> Run:
    """Open a run folder; raises `UserError` when it is none or its config is damaged."""
    if not (path / "config.toml").is_file():
        what = "there is no such folder" if not path.exists() else "it has no config.toml"
        raise UserError(f"{path} is not a run folder ({what}): give the folder that loopscale train wrote")
    return Run(path, load_config(path / "config.toml"))


def check_new(path: Path) -> None:
    """Raise `UserError` unless a new run may be written to `path`: it is absent or an empty folder."""
    if (path / "config.toml").exists():
        raise UserError(
            f"{path} already holds a run: continue it with loopscale train --resume {path}, "
            "or name another folder with --out"
        )
    if path.exists() and (not path.is_dir() or not all(_left_by_us(file) for file in path.iterdir())):
        raise UserError(f"{path} already exists and is no empty folder: name another folder with --out")


def _left_by_us(file: Path) -> bool:
    """Say whether a process that was killed while it made the folder left this file: config.toml comes last."""
    name = file.name.lstrip(".")
    return name.startswith(("provenance.json", "tokenizer.json")) or file.name.startswith((".config.toml.", LOCK))


def create_run(path: Path, training: Training) -> Run:
    """Make the folder of a new run, one process at a time; raises `UserError`, nothing left behind, when that cannot be."""
    check_new(path)
    check_trackers(training.config.train.trackers)
    run = Run(path, training.config)
    with new_folder(path), exclusive(run):
        check_new(path)  # again, now that no other process can be making it
        try:
            entry = _tied_entry(run)
            origin = {**_origin(training), **({} if entry is None else {"tied_entry": entry}), "resumed": []}
            write_record(path / "provenance.json", _provenance(run, origin))
            if training.dataset is not None:
                write_text(path / "tokenizer.json", training.dataset.tokenizer.to_json())
            write_text(path / "config.toml", training.config.to_toml())
        except UserError:
            for file in path.iterdir():
                if _left_by_us(file):
                    file.unlink()
            raise
    return run


def check_tied_entry(run: Run, warn: Warn) -> None:
    """Warn of a run with a tied readout from before its embedding was multiplied: the same weights are another network."""
    model, file = run.config.model, run.path / "provenance.json"
    if model.tied_readout and model.factory is None and file.exists():
        origin = read_record(file, Provenance)
        if origin.tied_entry is None:
            made = (origin.model_extra or {}).get("commit") or "the version that made it"
            warn(
                f"{run.path} is of a version in which a tied readout's embedding was not multiplied: its stream enters "
                f"{_tied_entry(run):.3g} times as large here, which is another network: train it again, or use {made}"
            )


def _tied_entry(run: Run) -> float | None:
    """Return the factor on the embedding of a house model with a tied readout; None for any other."""
    model = run.config.model
    return float((model.base_width or model.width) ** 0.5) if model.tied_readout and model.factory is None else None


@contextmanager
def kept_once_begun(run: Run, world: World) -> Iterator[None]:
    """Remove the folder of a new run that fails before it has a line of metrics or a checkpoint."""
    try:
        yield
    except Exception:
        if world.main:
            _take_back(run)
        raise


def _take_back(run: Run) -> None:
    try:
        trained = run.metrics.exists() and b"\n" in run.metrics.read_bytes()
        if trained or checkpoint.listed(run.checkpoints):
            return
        for file in run.path.iterdir():
            if _left_by_us(file) or file.name in ("config.toml", run.metrics.name):
                file.unlink()
        for folder in (run.checkpoints, run.path / "trackers", run.path):
            if folder.exists():
                folder.rmdir()
    except OSError:  # it was moved away, or holds something else: that stays
        return


def _provenance(run: Run, more: dict[str, Any]) -> Provenance:
    return Provenance(**{**provenance(), **more, "config": content_hash(run.config.to_dict())})


def check_source(run: Run, now: Mapping[str, Any], changed: Warn | None = None) -> None:
    """Raise `UserError` unless the run began with the same model code: comments and blank lines do not count.

    `now` has `source` and `sha256`. changed: called with a sentence, instead of the error, for code that changed since.
    """
    then = read_record(run.path / "provenance.json", Provenance).model
    sources = [model.get("source", "the house model") for model in (then, now)]
    same_function = sources[0].rpartition(":")[2] == sources[1].rpartition(":")[2]
    if same_function and then.get("sha256") == now.get("sha256"):
        return
    if sources[0] != sources[1]:
        raise UserError(f"{run.path} is a run of {sources[0]}, not of {sources[1]}: name another folder with --out")
    since = f"{sources[1]} has changed since {run.path} began, comments aside"
    if changed is None:
        raise UserError(f"{since}: restore the file, or begin a new run with --out")
    changed(f"{since}: it may compute something else than what was trained")


def note_resumption(run: Run, training: Training, warn: Warn) -> None:
    """Add a continuation to provenance.json, warning of another torch; raises `UserError` when the data changed."""
    file = run.path / "provenance.json"
    origin = read_record(file, Provenance)
    here = provenance()
    if origin.data.get("sha256") != _origin(training)["data"].get("sha256"):
        raise UserError(f"the data of {run.path} have changed since it began: restore them, or begin a new run")
    if origin.torch != here["torch"]:
        warn(f"the run began with torch {origin.torch}, this is {here['torch']}: losses may differ in the last digits")
    resumed = [*origin.resumed, {"step": training.done, **here}]
    write_record(file, _provenance(run, {**origin.model_dump(mode="json", exclude_unset=True), "resumed": resumed}))


def cut_metrics(run: Run, done: int) -> None:
    """Keep the lines of steps 1 to `done`; raises `UserError` when one of them is missing or damaged."""
    kept = read_steps(run.metrics, last=done)
    if [line["step"] for line in kept] != list(range(1, done + 1)):
        raise UserError(f"{run.metrics} is damaged: it does not hold one line for each of the steps 1 to {done}")
    write_text(run.metrics, "".join(step_line(line) for line in kept))


def begin_with(path: Path, model: nn.Module, warn: Warn) -> None:
    """Put the weights of another run into `model`; raises `UserError` when there are none, or they do not fit."""
    run = open_run(path)
    newest = run.newest_whole(warn)
    if newest is None:
        raise UserError(f"{path} has no checkpoint to begin with: run loopscale train --resume {path}")
    try:
        checkpoint.load_weights(newest, model)
    except UserError as cause:
        raise UserError(
            f"the weights of {path} do not fit this model: --init-from needs a run of the same shapes"
        ) from cause


@contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Keep a second process out of the run; raises `UserError` when one is at work. A killed one leaves no lock."""
    with alone(
        run.path / LOCK, f"another process is training {run.path} ({{process}}): wait until it ends, or stop it"
    ):
        yield


@contextmanager
def metrics_writer(run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that appends one line and sends it to `train.trackers`.

    Each is flushed, so that a killed run loses at most the last.

    Raises `UserError` when the disk is full, the folder was moved away, or a tracker is not installed.
    """
    # A full disk may be noticed at the close.
    with (
        writing(run.metrics),
        open(run.metrics, "a", encoding="utf-8", opener=no_link) as handle,
        following(run.path, run.config.train.trackers) as track,
    ):

        def write(line: dict[str, Any]) -> None:
            with writing(run.metrics):
                if not run.metrics.exists() or not os.path.samestat(os.fstat(handle.fileno()), run.metrics.stat()):
                    raise UserError(
                        f"{run.path} was moved or removed while it was trained: the training ends; if it was moved, "
                        "continue it where it lies now with loopscale train --resume"
                    )
                handle.write(step_line(line))
                handle.flush()
            track(line)

        yield write


def _origin(training: Training) -> dict[str, Any]:
    return {"seed": training.config.train.seed, **training.task.origin}
