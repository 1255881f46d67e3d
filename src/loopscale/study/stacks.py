"""Trials that share a graph trained at once, as stacks of weights: on one device, or a stack in each local process.

A stack pays where a single trial leaves the device idle: small models on a GPU, and models so small that a CPU spends its
time between operations. On a CPU losses are bitwise those of each trial alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError
from loopscale.study.executor import checked
from loopscale.study.keys import content_hash
from loopscale.study.own import Own
from loopscale.study.pool import Job, cores, in_processes
from loopscale.study.stopping import stops
from loopscale.study.trial import record_of, run_trial, sections

if TYPE_CHECKING:
    from loopscale.batched import Stack
    from loopscale.train import TrainConfig

SIZE = 16  # trials in a stack: on a CPU the throughput hardly grows beyond (records/stacks.json)


class Stacks:
    """`workers` processes that each train up to `size` trials of one graph at once; the others run alone.

    workers: by default one per core, or one on a GPU. size: a stack that does not fit the memory is tried with half as
    many. device: what the configs will say ("auto", "cpu" or "cuda").
    say: told, once each, why trials run alone.

    Raises `UserError` for fewer than one worker or two trials in a stack, and when workers die again and again.

    >>> stacks = Stacks(workers=2, size=8)
    >>> stacks.slots, stacks.lanes
    (16, 2)
    """

    def __init__(
        self,
        workers: int | None = None,
        size: int | None = None,
        device: str = "cpu",
        say: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        self.workers = checked(workers, 1 if on_gpu(device) else cores())
        self.size = size or SIZE
        if size is not None and size < 2:
            raise UserError(f"a stack holds at least 2 trials, got {size}: use --executor local")
        self._say, self._said = say, set[str]()
        self._graphs: dict[str, str] = {}  # of a job's key
        self._limits: dict[str, int] = {}  # of a graph, once a stack of it was refused

    @property
    def slots(self) -> int:
        """A whole stack in each worker."""
        return self.workers * self.size

    @property
    def lanes(self) -> int:
        """The workers: the seconds of a trial are its share of its stack's."""
        return self.workers

    def run(self, next_jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        """Yield records as stacks end; ask `next_jobs` again after each."""
        for group, (records, refusal) in in_processes(self.workers, next_jobs, self._take, train_together):
            if refusal is not None:
                self._limit(self._graph(group[0]), refusal.limit, refusal.why)
            yield from records

    def _take(self, jobs: list[Job], running: set[str]) -> list[Job]:
        """The first job that waits and others of its graph, so many that all workers get as many of them."""
        waiting = [job for job in jobs if job[0] not in running]
        if not waiting:
            return []
        graph = self._graph(waiting[0])
        share = ceil(sum(self._graph(job) == graph for job in jobs) / self.workers)
        same = [job for job in waiting if self._graph(job) == graph]
        return same[: min(share, self._limits.get(graph, self.size))]

    def _graph(self, job: Job) -> str:
        key, _, config = job
        if key not in self._graphs:
            graph, why = graph_of(config)
            self._graphs[key] = graph
            if why is not None:
                self._limit(graph, 1, why)
        return self._graphs[key]

    def _limit(self, graph: str, limit: int, why: str) -> None:
        self._limits[graph] = max(1, limit)
        sentence = f"trials run {'alone' if limit < 2 else f'at most {limit} at once'}: {why}"
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


@dataclass(frozen=True)
class Refusal:
    """Why a stack was not trained to its end, and how many trials of its graph may be tried at once from now on."""

    limit: int
    why: str


def on_gpu(device: str) -> bool:
    """Whether a config's device is a GPU here."""
    import torch

    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def graph_of(config: dict[str, Any]) -> tuple[str, str | None]:
    """What the configs of a stack have in common, hashed; and, where it cannot be stacked, the reason as a clause."""
    from loopscale.batched import same_graph, why_not
    from loopscale.train import TrainConfig

    own, values, _ = sections(config)
    if own is None:
        house = TrainConfig.model_validate(values)
        return content_hash(same_graph(house)), why_not(house)
    free = ("lr", "weight_decay", "eps", "clip", "schedule", "warmup")
    optim = {name: value for name, value in values["optim"].items() if name not in free}
    train = {name: value for name, value in values["train"].items() if name != "seed"}
    why = "an objective trains what it likes" if own.kind == "objective" else None
    return content_hash({**values, "optim": optim, "train": train, "own": own.to_json()}), why


def train_together(jobs: list[Job]) -> tuple[list[dict[str, Any]], Refusal | None]:
    """Train jobs of one graph as a stack; the records of those that ended, and a refusal when not all did.

    A trial that is refused in a stack is not judged by it: it is to be run again in a smaller one, or alone.
    """
    import torch

    from loopscale.batched import UnstackableError
    from loopscale.train import describe

    if len(jobs) == 1:
        return [run_trial(*jobs[0])], None
    records: list[dict[str, Any]] = []
    try:
        for record in _trained(jobs):
            records.append(record)
        return records, None
    except UnstackableError as cause:
        return records, Refusal(1, str(cause))
    except (torch.OutOfMemoryError, MemoryError):
        return records, Refusal(len(jobs) // 2, f"a stack of {len(jobs)} does not fit the memory")
    except (Exception, SystemExit) as cause:
        if sections(jobs[0][2])[0] is None:
            raise
        return records, Refusal(1, f"the model failed in a stack ({describe(cause)})")


def _trained(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    from loopscale.batched import fit_stack

    began = time.perf_counter()
    stack = stack_of([config for _, _, config in jobs])
    share = (time.perf_counter() - began) / len(jobs)
    for place, fit in fit_stack(stack, [stops(sections(config)[2]) for _, _, config in jobs]):
        yield record_of(*jobs[place], fit, fit.seconds + share)


def stack_of(configs: list[dict[str, Any]]) -> Stack:
    """The trainings of configs that share a graph; raises as `house_stack` and `own_stack` do."""
    from loopscale.batched import house_stack, own_stack
    from loopscale.train import TrainConfig

    # An own model may use what torch batches by a loop: that it is slow is measured, and need not be told for each stack.
    warnings.filterwarnings("ignore", message=".*performance drop", category=UserWarning)
    own: Own | None = sections(configs[0])[0]
    plain: list[TrainConfig] = [TrainConfig.model_validate(sections(config)[1]) for config in configs]
    return house_stack(plain) if own is None else own_stack(own.place, plain)
