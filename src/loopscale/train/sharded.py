"""Checkpoints of a sharded training: torch's distributed format, each rank writes its part, any number of ranks reads it.

The tensors are named "model/NAME" and "optimizer/NAME/KEY"; state.json lists the keys of the optimizer's state.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

from loopscale.errors import UserError
from loopscale.files import disk_error

INDEX = ".metadata"  # torch's name for the list of what lies where


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are spread over ranks."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def optimizer_keys(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    """Which tensors the optimizer keeps for each parameter."""
    return {
        name: [key for key, value in optimizer.state.get(p, {}).items() if isinstance(value, Tensor)]
        for name, p in model.named_parameters()
    }


def save_parts(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this rank's part; every rank calls it. Raises `UserError` when the disk of one of them is full."""
    state = {f"model/{name}": p.detach() for name, p in model.state_dict().items()}
    named = dict(model.named_parameters())
    for name, keys in optimizer_keys(model, optimizer).items():
        state |= {f"optimizer/{name}/{key}": optimizer.state[named[name]][key] for key in keys}
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        save(state, checkpoint_id=folder, storage_writer=FileSystemWriter(folder, overwrite=True))
    except CheckpointException as cause:
        raise _sentence(folder, cause) from cause
    except OSError as cause:
        raise disk_error(folder, cause) from cause


def load_parts(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, keys: dict[str, list[str]]
) -> None:
    """Put a sharded checkpoint into the model (and the optimizer), sharded otherwise or not at all."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    state: dict[str, Tensor] = {f"model/{name}": value for name, value in weights.items()}
    moments: dict[str, dict[str, Tensor]] = {}
    if optimizer is not None:
        for name, p in model.named_parameters():
            moments[name] = {key: _room_for(key, p) for key in keys.get(name, [])}
            state |= {f"optimizer/{name}/{key}": value for key, value in moments[name].items()}
    alone = not torch.distributed.is_initialized()
    try:
        load(state, checkpoint_id=folder, no_dist=alone)
    except (CheckpointException, RuntimeError, ValueError):
        raise UserError(f"{folder} does not fit the model of config.toml: restore the run's own config") from None
    if optimizer is not None:
        for name, p in model.named_parameters():
            optimizer.state[p] = dict(moments[name])


def spread(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put whole tensors into a sharded model: each rank keeps its part."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(part_of(weights[name], p))


def spread_optimizer(optimizer: torch.optim.Optimizer, packed: dict[str, Any]) -> None:
    """Put a whole optimizer state_dict into the optimizer of a sharded model; parameters go by their order in it."""
    order = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in packed["state"].items():
        p = order[int(index)]
        optimizer.state[p] = {
            key: part_of(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
            for key, value in kept.items()
        }


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, laid out as `like`."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _room_for(key: str, p: Tensor) -> Tensor:
    """Empty space of the kind that a key of the state has: torch's optimizers count steps in a 0-dim fp32 tensor."""
    return torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(p.detach())


def _sentence(folder: Path, cause: CheckpointException) -> UserError:
    for failure in cause.failures.values():
        if isinstance(failure[0], OSError):
            return disk_error(folder, failure[0])
    reason = next((str(failure[0]).splitlines()[0] for failure in cause.failures.values()), "unknown")
    return UserError(f"cannot write {folder} ({reason}): look at the disk, then continue the run with --resume")
