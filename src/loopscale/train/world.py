"""The processes that train together: who is there, what all must agree on, what is summed over them.

Started by torchrun, each process finds its rank in the environment. What may fail on one rank happens inside `together`:
all ranks then stop with the same sentence, and nobody waits for a rank that is gone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from loopscale.errors import UserError, first_line

PATIENCE = timedelta(days=1)  # rank 0 may pack data for hours; a dead rank is noticed by torchrun, not by this


class AgreedError(UserError):
    """A mistake that another rank reports, mostly rank 0; this one stays silent."""


@dataclass
class World:
    """One of `size` processes. The default is a process alone, for which everything here does nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None
    lost: bool = False  # another rank died
    _turns: Iterator[int] = field(default_factory=count)

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block on every rank; a `UserError` on one of them ends all, with the sentence of the lowest rank.

        Nothing inside may wait for another rank.
        """
        problem: UserError | None = None
        try:
            yield
        except UserError as raised:
            problem = raised
        if self.size == 1 and problem is not None:
            raise problem
        said = self.texts("" if problem is None else str(problem))
        first = next((rank for rank, text in enumerate(said) if text), None)
        if first is None:
            return
        same = all(text in ("", said[first]) for text in said) and all(said)
        text = said[first] if same or first == 0 else f"{said[first]} (rank {first})"
        raise (UserError(text) if self.main else AgreedError(text)) from problem

    def texts(self, own: str) -> list[str]:
        """Return the text of each rank, by rank. Goes over the store: works before devices are known."""
        if self.size == 1:
            return [own]
        turn = next(self._turns)
        self.store.set(f"{turn}/{self.rank}", own)
        return [self.store.get(f"{turn}/{rank}").decode() for rank in range(self.size)]

    def of_main(self, own: str) -> str:
        """Rank 0's text, on every rank."""
        return self.texts(own if self.main else "")[0]

    def same(self, what: str, values: dict[str, str], fix: str) -> None:
        """Raise `UserError` on every rank unless all have the same values; names the first key that differs."""
        lines = "\n".join(f"{key} = {value}" for key, value in sorted(values.items()))
        for rank, other in enumerate(said := self.texts(lines)):
            if other != said[0]:
                here, there = (dict(line.split(" = ", 1) for line in text.splitlines()) for text in (said[0], other))
                key = next(key for key in sorted({*here, *there}) if here.get(key) != there.get(key))
                text = f"the ranks disagree on {what}: {key} is {here.get(key, 'absent')} on rank 0 and "
                text += f"{there.get(key, 'absent')} on rank {rank}: {fix}"
                raise UserError(text) if self.main else AgreedError(text)

    def connect(self, device: torch.device) -> None:
        """Form the process group; raises `UserError` when this rank has no GPU of its own."""
        if self.size == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = PrefixStore("group", self.store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        # The group is never taken apart: DDP's destructor would do it holding Python's lock, for which gloo's thread, which
        # it waits for, waits too. Seen in one of eight processes (torch 2.13); the end of the process needs no destructor.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all ranks, on every rank."""
        return value if self.size == 1 else self.total(value) / self.size

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def highest(self, number: int, device: torch.device) -> int:
        """Return the largest of the ranks' numbers: a signal that reached one rank stops all after the same step."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def share(self, rows: int) -> slice:
        """Return the rows of a batch that are this rank's; `rows` is a multiple of the size."""
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


@contextmanager
def joined() -> Iterator[World]:
    """Give the world that torchrun started this process in, or it alone; raises `UserError` when ranks cannot meet."""
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield World()
        return
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    except (ValueError, RuntimeError) as cause:
        raise UserError(f"the ranks cannot meet ({first_line(cause)}): start them with torchrun") from None
    store.set_timeout(PATIENCE)
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), PrefixStore("loopscale", store))
    try:
        yield world
    finally:
        _leave(world)


def _leave(world: World) -> None:
    """Rank 0 goes last, since the store may live in it; not for ever, since a rank may be dead."""
    if world.lost:
        return
    try:
        if world.main:
            world.store.wait([f"left/{rank}" for rank in range(1, world.size)], timedelta(seconds=10))
        else:
            world.store.set(f"left/{world.rank}", "")
    except RuntimeError:
        pass  # the store, or a rank, is gone


@contextmanager
def noticing_lost_ranks(world: World, run: Path) -> Iterator[None]:
    """Turn what torch raises when a rank died into a `UserError`, that one rank reports; other errors pass."""
    try:
        yield
    except RuntimeError as cause:
        text = str(cause)
        lost = isinstance(cause, dist.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL", "TCPStore"))
        if world.size == 1 or not lost:
            raise
        world.lost = True
        again = f"continue from the last checkpoint with torchrun ... -m loopscale train --resume {run}"
        raise (UserError if _speaks_first(world) else AgreedError)(f"a rank was lost: {again}") from cause


def _speaks_first(world: World) -> bool:
    """Say whether no other rank has said yet that one was lost. Under torchrun the store outlives the ranks."""
    try:
        return bool(world.store.add("lost", 1) == 1)
    except RuntimeError:
        return True
