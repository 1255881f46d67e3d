"""Checkpoints: one folder a step, written aside and renamed, with checksums; a damaged one is noticed, never loaded.

checkpoints/step-000100/
  model.safetensors       the model's state_dict
  optimizer.safetensors   the tensors of the optimizer's state_dict
  state.json              the rest of it, and the step
  SHA256SUMS              `sha256sum -c` reads it
A sharded training (train.strategy = "fsdp") writes torch's distributed format in place of the two safetensors files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopscale.errors import UserError
from loopscale.files import disk_error
from loopscale.train import sharded
from loopscale.train.config import TrainConfig
from loopscale.train.pack import pack, unpack
from loopscale.train.training import Training

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
SUMS = "SHA256SUMS"
# What may change between a run and its continuation without making it another training.
FREE = {
    *("train.checkpoint_every", "train.keep", "train.eval_every", "train.stream_every", "train.device"),
    *("train.strategy", "train.accumulate", "train.recompute", "train.recompute_keep"),
    *("train.loss_rows", "data.path", "data.prefetch"),
}


def save(folder: Path, training: Training, keep: int) -> Path:
    """Write `folder`/step-NNNNNN and drop all but the last `keep`; give its path. All ranks of a world call it.

    Replicas are equal, so rank 0 writes for all; of shards every rank writes its own.
    Raises `UserError` when the disk is full or not writable; older checkpoints are then untouched.
    """
    world = training.world
    target = folder / f"step-{training.done:06d}"
    aside = folder / world.of_main(f".{target.name}.{os.getpid()}")
    try:
        if sharded.is_sharded(training.model):
            _write_parts(aside, target, training)
        else:
            with world.together():
                if world.main:
                    with _disk_errors(target):
                        aside.mkdir(parents=True)
                        _write(aside, training)
        with world.together():
            if world.main:
                _put_in_place(aside, target, training.done, keep)
    finally:
        if world.main:
            shutil.rmtree(aside, ignore_errors=True)
    return target


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as cause:
        raise disk_error(target, _os_error(cause)) from cause
    except OSError as cause:
        raise disk_error(target, cause) from cause


def _put_in_place(aside: Path, target: Path, done: int, keep: int) -> None:
    folder = target.parent
    with _disk_errors(target):
        if target.exists():
            shutil.rmtree(target)
        os.rename(aside, target)
        _sync(folder)
    # Not counted: what a killed writer left, and damaged later checkpoints that a resumed run has yet to replace.
    whole = [path for path in listed(folder) if step_of(path) <= done]
    for old in [*whole[keep:], *folder.glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)


def listed(folder: Path) -> list[Path]:
    """Give the checkpoints of a run, the newest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Give the number of steps done at a checkpoint, from its name."""
    return int(checkpoint.name[5:])


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint ("state.json does not match its checksum"), or None when it is whole."""
    try:
        lines = (checkpoint / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} is missing or unreadable"
    for name in sorted(sums) if sharded.INDEX in sums else FILES:
        try:
            digest = _digest(checkpoint / name)
        except OSError:
            return f"{name} is missing or unreadable"
        if digest != sums.get(name):
            return f"{name} does not match its checksum"
    return None


def load(checkpoint: Path, training: Training) -> None:
    """Put a whole checkpoint (see `damage`) into the training.

    Raises `UserError` when it belongs to another network or optimizer.
    """
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    _check_config(checkpoint, state.get("config"), training)
    if "optimizer_keys" in state:
        sharded.load_parts(checkpoint, training.model, training.optimizer, state["optimizer_keys"])
    else:
        load_weights(checkpoint, training.model)
        packed = unpack(state["optimizer"], load_file(checkpoint / "optimizer.safetensors"))
        try:
            if sharded.is_sharded(training.model):
                sharded.spread_optimizer(training.optimizer, packed)
            else:
                training.optimizer.load_state_dict(packed)
        except (ValueError, KeyError, IndexError):
            raise _misfit(checkpoint, "optimizer") from None
    training.done = int(state["step"])
    training.dataset.restore(state.get("data"))


def changes(checkpoint: Path, training: Training) -> list[str]:
    """Say which config values are others than when the checkpoint was written: "optim.lr was 0.1 and is now 0.2"."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return [f"{key} was {then} and is now {now}" for key, then, now in _differing(state.get("config"), training)]


def _check_config(checkpoint: Path, then: dict[str, Any] | None, training: Training) -> None:
    """Refuse, by name, a checkpoint of another model, rule or optimizer: shapes alone would not tell a rule."""
    for key, old, now in _differing(then, training):
        if key.startswith("model.") or key == "optim.optimizer":
            kind = "optimizer" if key.startswith("optim") else "model"
            raise UserError(
                f"{checkpoint} is of another {kind}: {key} is {old} there and {now} in config.toml: "
                "restore the run's own config"
            )


def _differing(config: dict[str, Any] | None, training: Training) -> list[tuple[str, Any, Any]]:
    """(key, value in the checkpoint, value now); the rule first. A key that did not exist then had its default."""
    if not config:
        return []
    default, now = TrainConfig().flat(), training.config.flat()
    then = {f"{name}.{key}": value for name, section in config.items() for key, value in section.items()}
    rows = [(key, then.get(key, default.get(key)), now.get(key)) for key in {*then, *now}]
    return sorted(
        ((key, old, new) for key, old, new in rows if old != new and key not in FREE),
        key=lambda row: (row[0] != "model.rule", row[0]),
    )


def load_weights(checkpoint: Path, model: Any) -> None:
    """Put the weights of a whole checkpoint into `model`; raises `UserError` when they are of another network."""
    if (checkpoint / sharded.INDEX).exists():
        sharded.load_parts(checkpoint, model, None, {})
        return
    weights = load_file(checkpoint / "model.safetensors")
    try:
        if sharded.is_sharded(model):
            sharded.spread(model, weights)
        else:
            model.load_state_dict(weights)
    except (RuntimeError, KeyError):
        raise _misfit(checkpoint, "model") from None


def _misfit(checkpoint: Path, part: str) -> UserError:
    return UserError(f"{checkpoint} does not fit the {part} of config.toml: restore the run's own config")


def _write(folder: Path, training: Training) -> None:
    weights: dict[str, Tensor] = pack(training.model.state_dict())[1]
    packed, tensors = pack(training.optimizer.state_dict())
    save_file({name.removeprefix("state."): tensor for name, tensor in weights.items()}, folder / FILES[0])
    save_file(tensors, folder / FILES[1])
    _write_state(folder, training, {"optimizer": packed})
    _write_sums(folder, {name: _digest(folder / name) for name in FILES})


def _write_state(folder: Path, training: Training, optimizer: dict[str, Any]) -> None:
    config = training.config
    bookmark = training.dataset.bookmark(training.done, config.data.batch_size, config.data.context)
    state = {"step": training.done, "config": config.to_dict(), "data": bookmark, **optimizer}
    (folder / "state.json").write_text(json.dumps(state, allow_nan=False), encoding="utf-8")


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    for name in (*sums, SUMS):
        _sync(folder / name)


def _write_parts(aside: Path, target: Path, training: Training) -> None:
    """Every rank writes its part and its checksums; rank 0 puts them together."""
    world = training.world
    with world.together():
        if world.main:
            with _disk_errors(target):
                aside.mkdir(parents=True)
    with world.together():
        sharded.save_parts(aside, training.model, training.optimizer)
    with world.together(), _disk_errors(target):
        mine = {path.name: _digest(path) for path in aside.glob(f"__{world.rank}_*")}
    parts = [json.loads(text) for text in world.texts(json.dumps(mine))]
    with world.together():
        if world.main:
            with _disk_errors(target):
                keys = sharded.optimizer_keys(training.model, training.optimizer)
                _write_state(aside, training, {"optimizer_keys": keys})
                own = {name: _digest(aside / name) for name in (sharded.INDEX, "state.json")}
                _write_sums(aside, {name: digest for part in (*parts, own) for name, digest in part.items()})


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _os_error(cause: Exception) -> OSError:
    """Read the number out of safetensors' text ("... (os error 28)"): its errors carry no errno."""
    digits = "".join(filter(str.isdigit, str(cause).rpartition("os error")[2]))
    number = int(digits) if digits else 5
    return OSError(number, os.strerror(number))
