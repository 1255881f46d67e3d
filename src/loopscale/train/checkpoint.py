"""Checkpoints: one folder a step, written aside and renamed, with checksums; a damaged one is noticed, never loaded.

checkpoints/step-000100/
  model.safetensors       the model's state_dict
  optimizer.safetensors   "optimizer/PARAMETER/KEY" for each tensor that the optimizer keeps
  state.json              the step, the config, the place in the data, and what the optimizer keeps besides tensors
  SHA256SUMS              `sha256sum -c` reads it
A sharded training (train.strategy = "fsdp") writes a pair of safetensors files per rank, read by any number of ranks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loopscale.errors import UserError
from loopscale.files import file_sha256, writing
from loopscale.planning.work import MOMENTS
from loopscale.train import sharded
from loopscale.train.config import TrainConfig
from loopscale.train.needs import size_of
from loopscale.train.training import Training

STATE, SUMS = "state.json", "SHA256SUMS"
SLACK = 2**20  # bytes of a checkpoint besides its tensors
# What may change between a run and its continuation without making it another training.
FREE = {
    *("train.checkpoint_every", "train.keep", "train.eval_every", "train.stream_every", "train.device"),
    *("train.strategy", "train.accumulate", "train.recompute", "train.recompute_keep"),
    *("train.loss_rows", "train.init_from", "model.factory", "data.path", "data.prefetch"),
}


def save(folder: Path, training: Training, keep: int) -> Path:
    """Write `folder`/step-NNNNNN and drop all but the last `keep`; give its path. All ranks of a world call it.

    Replicas are equal, so rank 0 writes for all; of shards every rank writes its own.
    Raises `UserError` when the disk is full or not writable; older checkpoints are then untouched.
    """
    world = training.world
    target = folder / f"step-{training.done:06d}"
    # Not the process id: in a container it is the same for every process, and a killed one may have left its folder.
    aside = folder / world.of_main(f".{target.name}.{secrets.token_hex(4)}")
    parted = any(map(sharded.is_spread, training.model.parameters()))
    try:
        with world.together():
            if world.main:
                with writing(target):
                    folder.mkdir(exist_ok=True)  # not its parents: the run may have been moved away
                    aside.mkdir()
        sums: dict[str, str] = {}
        with world.together():
            if parted or world.main:
                sums = _write(aside, target, training, (world.rank, world.size) if parted else (0, 1))
        parts = world.texts(json.dumps(sums))
        with world.together():
            if world.main:
                with writing(target):
                    _write_sums(aside, {name: digest for part in parts for name, digest in json.loads(part).items()})
                    if target.exists():
                        shutil.rmtree(target)
                    os.rename(aside, target)
                    _sync(folder)
                drop_old(folder, training.done, keep)
    finally:
        if world.main:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def drop_old(folder: Path, done: int, keep: int) -> None:
    """Remove all but the last `keep` checkpoints, and what a killed writer left, also halfway through removing one."""
    # Not counted: damaged later checkpoints that a resumed run has yet to replace.
    whole = [path for path in listed(folder) if step_of(path) <= done]
    for old in [*whole[keep:], *folder.glob(".step-*")]:
        shutil.rmtree(old, ignore_errors=True)


def checkpoint_bytes(training: Training) -> int:
    """Count the bytes of one checkpoint: weights and moments."""
    weights = sum(p.numel() * p.element_size() for p in training.model.parameters())
    return weights * (1 + MOMENTS[training.config.optim.optimizer]) + SLACK


def check_room(folder: Path, training: Training) -> None:
    """Raise `UserError` when the disk of `folder` cannot take the checkpoints that are yet to be written.

    While one is written the last `keep` are still there: keep + 1 at a time, less those there are.
    """
    settings = training.config.train
    left = 1 if settings.checkpoint_every == 0 else -(-settings.steps // settings.checkpoint_every)
    most = min(settings.keep + 1, left)
    needed = max(1, most - len(listed(folder / "checkpoints"))) * checkpoint_bytes(training)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {size_of(free)} free and the next checkpoints need {size_of(needed)}: "
            "free some space, lower train.keep, or name another place with --out"
        )


def listed(folder: Path) -> list[Path]:
    """Give the checkpoints of a run, the newest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Give the number of steps done at a checkpoint, from its name."""
    return int(checkpoint.name[5:])


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint; None when it is whole. Raises `UserError` for one in a pickled format."""
    sharded.refuse_pickled(checkpoint)
    try:
        lines = (checkpoint / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError):
        return f"{SUMS} is missing or unreadable"
    for name in sorted({*sums, STATE, *(path.name for path in checkpoint.glob("*.safetensors"))}):
        try:
            digest = file_sha256(checkpoint / name)
        except OSError:
            return f"{name} is missing or unreadable"
        if digest != sums.get(name):
            return f"{name} does not match its checksum"
    return None


def load(checkpoint: Path, training: Training) -> None:
    """Put a whole checkpoint into the training; raises `UserError` when it is of a different network or optimizer."""
    state = read_state(checkpoint)
    _check_config(checkpoint, state["config"], training.config)
    load_weights(checkpoint, training.model)
    _load_optimizer(checkpoint, training, state)
    training.done = state["step"]
    if training.dataset is not None:
        training.dataset.restore(state.get("data"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read state.json; raises `UserError`, naming the field, when it is not what `save` writes."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{checkpoint / STATE} is missing or unreadable: remove {checkpoint}") from None
    for key, kind in {"step": int, "config": dict}.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise UserError(f"{checkpoint / STATE} is damaged (its {key!r}): remove {checkpoint}")
    return dict(state)


def changes(checkpoint: Path, training: Training) -> list[str]:
    """Say which config values are others than when the checkpoint was written: "optim.lr was 0.1 and is now 0.2"."""
    differing = _differing(read_state(checkpoint)["config"], training.config)
    return [f"{key} was {then} and is now {now}" for key, then, now in differing]


def check_model(checkpoint: Path, config: TrainConfig, warn: Callable[[str], object]) -> None:
    """Refuse a checkpoint of another model than `config` describes (the rule and the strength are in no shape).

    What else differs is warned about. Raises `UserError` that names the first differing key, its value there and here.
    """
    then = read_state(checkpoint)["config"]
    _check_config(checkpoint, then, config, ("model.",))
    for key, old, new in _differing(then, config):
        warn(f"config.toml was edited since this checkpoint was written: {key} was {old} and is now {new}")


def _check_config(
    checkpoint: Path, then: dict[str, Any], now: TrainConfig, keys: tuple[str, ...] = ("model.", "optim.optimizer")
) -> None:
    for key, old, new in _differing(then, now):
        if key.startswith(keys):
            kind = "optimizer" if key.startswith("optim") else "model"
            raise UserError(
                f"{checkpoint} is of another {kind}: {key} is {old} there and {new} in config.toml: "
                "restore the run's own config"
            )


def _differing(then: dict[str, Any], now: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Return (key, value in the checkpoint, value now); the rule first. A key that did not exist then had its default."""
    default, current = TrainConfig().flat(), now.flat()
    sections = {name: section for name, section in then.items() if isinstance(section, dict)}
    old = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    rows = [(key, old.get(key, default.get(key)), current.get(key)) for key in {*old, *current}]
    return sorted(
        ((key, before, after) for key, before, after in rows if before != after and key not in FREE),
        key=lambda row: (row[0] != "model.rule", row[0]),
    )


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Put the weights of a whole checkpoint into `model`; raises `UserError` when they are of another network."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    there = sharded.stored(checkpoint)
    for name in sorted({*weights, *(name for name in there if not _of_optimizer(name))}):
        shapes = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (there, weights)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{checkpoint} does not fit the model of config.toml ({name} is {shapes[0]} there and {shapes[1]} by "
                "the config): restore the run's own config"
            )
    sharded.read_tensors(checkpoint, weights)


def _load_optimizer(checkpoint: Path, training: Training, state: dict[str, Any]) -> None:
    """Put back what the optimizer keeps; rates, decay and the like are those of the config."""
    packed, names = training.optimizer.state_dict(), _ordered(training)
    room: dict[str, Tensor] = {}
    kept: dict[int, dict[str, Any]] = {}
    try:
        for key, there in sharded.stored(checkpoint).items():
            if _of_optimizer(key):
                index, field = _position(key, names)
                like = training.parameters[index].detach()
                same = there.shape == like.shape
                room[key] = torch.zeros_like(like if same else there, dtype=there.dtype, device=None if same else "cpu")
                kept.setdefault(index, {})[field] = room[key]
        for name, values in state.get("optimizer_values", {}).items():
            kept.setdefault(names.index(name), {}).update(values)
        sharded.read_tensors(checkpoint, room)
        training.optimizer.load_state_dict({"state": kept, "param_groups": packed["param_groups"]})
    except (ValueError, KeyError, IndexError, AttributeError) as cause:
        if isinstance(cause, UserError):
            raise
        fix = "restore the run's own config"
        raise UserError(f"{checkpoint} does not fit the optimizer of config.toml: {fix}") from None


def _of_optimizer(key: str) -> bool:
    return key.startswith(("optimizer/", "state.state."))


def _position(key: str, names: list[str]) -> tuple[int, str]:
    """Return which parameter a tensor of the optimizer belongs to, and as what; 0.3 wrote "state.state.0.exp_avg"."""
    if key.startswith("state.state."):
        index, _, field = key.removeprefix("state.state.").partition(".")
        return int(index), field
    name, _, field = key.removeprefix("optimizer/").rpartition("/")
    return names.index(name), field


def _ordered(training: Training) -> list[str]:
    names = {id(p): name for name, p in training.model.named_parameters()}
    return [names[id(p)] for p in training.parameters]


def _optimizer_state(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split what the optimizer keeps by parameter into tensors and plain values."""
    names, tensors, plain = _ordered(training), dict[str, Tensor](), dict[str, dict[str, Any]]()
    for index, values in training.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{names[index]}/{key}"] = value
            else:
                plain.setdefault(names[index], {})[key] = value
    return tensors, plain


def _write(folder: Path, target: Path, training: Training, ranks: tuple[int, int]) -> dict[str, str]:
    """Write this rank's part, the first rank state.json too; give the checksums of what it wrote."""
    tensors, plain = _optimizer_state(training)
    weights = training.model.state_dict()
    _check_tensors(weights)
    files = [sharded.write_tensors(folder, "model", weights, ranks=ranks)]
    files.append(sharded.write_tensors(folder, "optimizer", tensors, ranks=ranks))
    with writing(target):
        if ranks[0] == 0:
            config, bookmark = training.config.to_dict(), training.bookmark()
            state = {"step": training.done, "config": config, "data": bookmark, "optimizer_values": plain}
            files.append(folder / STATE)
            files[-1].write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        return {file.name: file_sha256(file) for file in files if file.exists()}


def _check_tensors(weights: Mapping[str, Any]) -> None:
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(f"the model's state_dict holds {name!r}, a {kind}: let it hold tensors alone")


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    for name in (*sums, SUMS):
        _sync(folder / name)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
