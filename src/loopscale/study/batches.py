"""Train trials that share a graph at once, as batched weights: on one device, or in each local process.

It pays where a single trial leaves the device idle: small models on a GPU, and models so small that a CPU spends its
time between operations. On a CPU losses are bitwise those of each trial alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError, describe
from loopscale.records import content_hash
from loopscale.study.executor import Job
from loopscale.study.local import LocalProcesses
from loopscale.study.trial import config_of, record_of, run_trial, sections, stops

if TYPE_CHECKING:
    from loopscale.batched import Stack

SIZE = 16  # trials at once: on a CPU the throughput hardly grows beyond (records/stacks.json)


class Batched(LocalProcesses):
    """Local processes that each train up to `size` trials of one graph at once; trials without company run alone.

    size: what does not fit the memory is tried with half as many. workers and gpus: as in `LocalProcesses`.
    say: called with a sentence, once each, when trials run alone.

    Raises `UserError` for fewer than one worker or two trials at once, and when workers die again and again.

    >>> batched = Batched(workers=2, size=8)
    >>> batched.slots, batched.batch
    (2, 8)
    """

    def __init__(
        self,
        workers: int | None = None,
        size: int | None = None,
        say: Callable[[str], object] = lambda sentence: None,
        gpus: float = 0.0,
    ) -> None:
        super().__init__(workers, gpus)
        self.batch = size or SIZE
        if size is not None and size < 2:
            raise UserError(f"batched trains at least 2 trials at once, got {size}: use --executor local")
        self._say, self._said = say, set[str]()
        self._graphs: dict[str, str] = {}  # of a job's key
        self._limits: dict[str, int] = {}  # of a graph, once a batch of it was refused

    def pack(self, waiting: list[Job], running: list[Job]) -> list[Job]:
        """Take the first job and others of its graph, so many that all workers get as many of them."""
        graph = self._graph(waiting[0])
        same = [job for job in waiting if self._graph(job) == graph]
        share = ceil((len(same) + sum(self._graph(job) == graph for job in running)) / self.slots)
        return same[: min(share, self._limits.get(graph, self.batch))]

    def start(self, jobs: list[Job]) -> Future[Any]:
        """Train them at once."""
        return self.submit(train_together, jobs)

    def records(self, jobs: list[Job], found: Any) -> list[dict[str, Any]]:
        """Note a refusal, so that the jobs without a record run again in fewer or alone."""
        records, refusal = found
        if refusal is not None:
            self._limit(self._graph(jobs[0]), refusal.limit, refusal.why)
        return list(records)

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
    """Say why a batch was not trained to its end, and how many trials of its graph may be tried at once from now on."""

    limit: int
    why: str


def on_gpu(device: str) -> bool:
    """Tell whether a config's device is a GPU here."""
    import torch

    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def graph_of(config: dict[str, Any]) -> tuple[str, str | None]:
    """Hash what the configs of a batch have in common; where it cannot be batched, also give the reason as a clause."""
    from loopscale.batched import same_graph, why_not
    from loopscale.train import TrainConfig

    code, values, _ = sections(config)
    if code is None:
        house = TrainConfig.model_validate(values)
        return content_hash(same_graph(house)), why_not(house)
    free = ("lr", "weight_decay", "eps", "clip", "schedule", "warmup")
    optim = {name: value for name, value in values["optim"].items() if name not in free}
    train = {name: value for name, value in values["train"].items() if name != "seed"}
    why = "an objective runs its own training loop, so it cannot be batched" if code.kind == "objective" else None
    return content_hash({**values, "optim": optim, "train": train, "code": code.to_json()}), why


def train_together(jobs: list[Job]) -> tuple[list[dict[str, Any]], Refusal | None]:
    """Train jobs of one graph at once; return the records of those that ended, and a refusal when not all did.

    A trial that is refused in a batch is not judged by it: it is to be run again in a smaller one, or alone.
    """
    import torch

    from loopscale.batched import UnstackableError

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
        return records, Refusal(len(jobs) // 2, f"{len(jobs)} at once do not fit the memory")
    except (Exception, SystemExit) as cause:
        if sections(jobs[0][2])[0] is None:
            raise
        return records, Refusal(1, f"the model failed when batched ({describe(cause)})")


def _trained(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    from loopscale.batched import fit_stack

    began = time.perf_counter()
    stack = stack_of([config for _, _, config in jobs])
    share = (time.perf_counter() - began) / len(jobs)
    for place, fit in fit_stack(stack, [stops(sections(config)[2]) for _, _, config in jobs]):
        yield record_of(*jobs[place], fit, fit.seconds + share)


def stack_of(configs: list[dict[str, Any]]) -> Stack:
    """Stack the trainings of configs that share a graph; raises as `house_stack` and `user_stack` do."""
    from loopscale.batched import house_stack, user_stack

    # A user model may use what torch batches by a loop: that it is slow is measured, and need not be said for each stack.
    warnings.filterwarnings("ignore", message=".*performance drop", category=UserWarning)
    trainings = [config_of(config) for config in configs]
    return house_stack(trainings) if trainings[0].model.factory is None else user_stack(trainings)
