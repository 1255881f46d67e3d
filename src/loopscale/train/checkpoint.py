"""Checkpoints: one folder a step, written aside and renamed, with checksums; a damaged one is noticed, never loaded.

checkpoints/step-000100/
  model.safetensors       the model's state_dict
  optimizer.safetensors   the tensors of the optimizer's state_dict
  state.json              the rest of it, and the step
  SHA256SUMS              `sha256sum -c` reads it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loopscale.atomic import disk_error
from loopscale.errors import UserError
from loopscale.train.pack import pack, unpack
from loopscale.train.training import Training

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
SUMS = "SHA256SUMS"


def save(folder: Path, training: Training, keep: int) -> Path:
    """Write `folder`/step-NNNNNN and drop all but the last `keep`; give its path.

    Raises `UserError` when the disk is full or not writable; older checkpoints are then untouched.
    """
    target = folder / f"step-{training.done:06d}"
    aside = folder / f".{target.name}.{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        _write(aside, training)
        if target.exists():
            shutil.rmtree(target)
        os.rename(aside, target)
        _sync(folder)
    except SafetensorError as cause:
        raise disk_error(target, _os_error(cause)) from cause
    except OSError as cause:
        raise disk_error(target, cause) from cause
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    # Not counted: what a killed writer left, and damaged later checkpoints that a resumed run has yet to replace.
    whole = [path for path in listed(folder) if step_of(path) <= training.done]
    for old in [*whole[keep:], *folder.glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


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
    for name in FILES:
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
    tensors = load_file(checkpoint / "optimizer.safetensors")
    load_weights(checkpoint, training.model)
    try:
        training.optimizer.load_state_dict(unpack(state["optimizer"], tensors))
    except (ValueError, KeyError):
        raise _misfit(checkpoint, "optimizer") from None
    training.done = int(state["step"])


def load_weights(checkpoint: Path, model: Any) -> None:
    """Put the weights of a whole checkpoint into `model`; raises `UserError` when they are of another network."""
    try:
        model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    except RuntimeError:
        raise _misfit(checkpoint, "model") from None


def _misfit(checkpoint: Path, part: str) -> UserError:
    return UserError(f"{checkpoint} does not fit the {part} of config.toml: restore the run's own config")


def _write(folder: Path, training: Training) -> None:
    weights: dict[str, Tensor] = pack(training.model.state_dict())[1]
    packed, tensors = pack(training.optimizer.state_dict())
    save_file({name.removeprefix("state."): tensor for name, tensor in weights.items()}, folder / FILES[0])
    save_file(tensors, folder / FILES[1])
    state = json.dumps({"step": training.done, "optimizer": packed}, allow_nan=False)
    (folder / FILES[2]).write_text(state, encoding="utf-8")
    sums = "".join(f"{_digest(folder / name)}  {name}\n" for name in FILES)
    (folder / SUMS).write_text(sums, encoding="utf-8")
    for name in (*FILES, SUMS):
        _sync(folder / name)


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
