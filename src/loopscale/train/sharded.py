"""Named tensors in safetensors files, through torch's distributed checkpoint: any number of ranks reads what any wrote.

A process alone writes NAME.safetensors, a rank of several NAME-00001-of-00002.safetensors. Nothing here is pickled.
torch's distributed checkpoint takes longer to import than a small training takes, so it is imported where it is used.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from loopscale.errors import UserError, first_line
from loopscale.files import disk_error, system_error

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException

PICKLED = ".metadata"  # torch's older format: reading it runs whatever it holds


def is_spread(tensor: Tensor) -> bool:
    """Say whether each rank holds a part of the tensor."""
    made = sys.modules.get("torch.distributed.tensor")  # without it there is no such tensor
    return made is not None and isinstance(tensor, made.DTensor)


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], *, ranks: tuple[int, int] = (0, 1)) -> Path:
    """Write `tensors` into `folder` and give the file; of several ranks (which, of how many) each writes its part.

    Raises `UserError` when the disk of one of them is full.
    """
    rank, count = ranks
    part = f"-{rank + 1:05d}-of-{count:05d}" if count > 1 else ""
    path = folder / f"{name}{part}.safetensors"
    try:
        if count == 1:
            save_file({key: tensor.cpu() for key, tensor in _apart(tensors).items()}, path, {"format": "pt"})
        else:
            _write_part(folder, path, tensors, rank)
    except SafetensorError as cause:
        raise disk_error(path, system_error(cause) or OSError(5, str(cause))) from cause
    except OSError as cause:
        raise disk_error(path, cause) from cause
    return path


def _write_part(folder: Path, path: Path, tensors: Mapping[str, Tensor], rank: int) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    try:
        save(_apart(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as cause:
        raise _sentence(path, cause) from cause
    written = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"  # torch's name
    if written.exists():  # not where the other ranks hold all
        written.rename(path)


def stored(folder: Path) -> dict[str, Tensor]:
    """Give an empty tensor (meta device) for each that the files hold; raises `UserError` when they cannot be read."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    refuse_pickled(folder)
    try:
        known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as cause:
        raise UserError(f"{folder} cannot be read ({cause}): remove it, and the checkpoint before it is used") from None
    return {
        name: torch.empty(value.size, dtype=value.properties.dtype, device="meta")
        for name, value in known.items()
        if isinstance(value, TensorStorageMetadata)
    }


def refuse_pickled(folder: Path) -> None:
    """Raise `UserError` for a checkpoint whose index is a pickle, or that holds links out of the folder."""
    if (folder / PICKLED).exists() or any(folder.glob("*.distcp")):
        raise UserError(
            f"{folder} is in a pickled format, which could run a program and is not read: if you trust it, convert it "
            'once (docs/training.md, "Checkpoints of older versions")'
        )
    if folder.is_symlink() or any(path.is_symlink() for path in folder.iterdir()):
        raise UserError(f"{folder} holds links to other places and is not read: copy the files themselves into it")


def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill the tensors of `into`, sharded or not, by name; raises `UserError` when one is absent or cannot be read."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    alone = not torch.distributed.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (CheckpointException, SafetensorError, OSError, RuntimeError, ValueError):
        raise UserError(f"{folder} does not fit the model of config.toml: restore the run's own config") from None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what is not contiguous or shares memory with a tensor before it: safetensors refuses both."""
    seen, apart = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        local = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
        place = local.data_ptr()
        fresh = place in seen or not local.is_contiguous()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if fresh and local.numel() else tensor
        seen.add(place)
    return apart


def _sentence(folder: Path, cause: CheckpointException) -> UserError:
    for failure in cause.failures.values():
        if isinstance(failure[0], OSError):
            return disk_error(folder, failure[0])
    reason = next((first_line(failure[0]) for failure in cause.failures.values()), "unknown")
    return UserError(f"cannot write {folder} ({reason}): look at the disk, then continue the run with --resume")
