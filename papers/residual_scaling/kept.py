"""What the studies train, kept piece by piece under runs/paper: on all cores, in stacks; started again it goes on."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from loopscale.batched import UnstackableError, fit_stack, house_stack, same_graph, user_stack
from loopscale.files import write_json
from loopscale.study import content_hash
from loopscale.train import TrainConfig, fit

HERE = Path(__file__).resolve().parent
RUNS = HERE.parents[1] / "runs" / "paper"
MOST = 16  # members of a stack: more gain nothing on a CPU
Batch = Mapping[str, Any]


def kept(study: str, work: Callable[[Batch], Batch], batches: Sequence[Batch]) -> dict[str, Any]:
    """key -> value of every job; `work(batch)` turns jobs by key into JSON values by key, in another process.

    A value is written when its batch ends, and is read instead of made ever after.
    """
    folder = RUNS / study
    left = [{k: job for k, job in batch.items() if not (folder / f"{k}.json").exists()} for batch in batches]
    for values, seconds in _side_by_side(work, [batch for batch in left if batch]):
        for key, value in values.items():
            write_json(folder / f"{key}.json", value)
        write_json(folder / "processor" / f"{min(values)}.json", round(seconds, 2))
    return {key: json.loads((folder / f"{key}.json").read_text()) for batch in batches for key in batch}


@dataclass(frozen=True)
class Training:
    """A config of the house model, or of the model that a factory makes: `own` is "file.py:name" beside this file."""

    config: TrainConfig
    own: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values: the identity of the training."""
        return {"config": self.config.model_dump(mode="json"), "own": self.own}


def losses(study: str, trainings: Sequence[Training]) -> list[float]:
    """The validation loss of each in nats, inf where it diverged. House models of one graph are trained as stacks."""
    keyed = {content_hash(training.to_json()): training for training in trainings}
    found = kept(study, _train, _batches(keyed))
    by_key = {key: math.inf if value is None else float(value) for key, value in found.items()}
    return [by_key[content_hash(training.to_json())] for training in trainings]


def forget(study: str) -> None:
    """Take away what a study that ended has kept, so that it runs anew; one that was stopped goes on."""
    if (RUNS / study / "ended").exists():
        shutil.rmtree(RUNS / study)


def processor_seconds(study: str) -> float:
    """Processor time of all that the study's other processes did, of earlier calls too."""
    return sum(json.loads(path.read_text()) for path in (RUNS / study / "processor").glob("*.json"))


def ended(study: str) -> None:
    """Note that the record of this study is written."""
    if (RUNS / study).exists():
        (RUNS / study / "ended").touch()


def _batches(keyed: Mapping[str, Training]) -> list[Batch]:
    """Stacks of one graph and of like size, an even number so that two cores end together; costly ones first."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, training in keyed.items():
        graph: dict[str, Any] = same_graph(training.config)
        if training.own is not None:  # its rule and strength are part of its graph
            graph |= {"own": training.own, "model": training.config.model.model_dump(mode="json")}
        groups[json.dumps(graph, sort_keys=True)][key] = training.to_json()
    out: list[Batch] = []
    for group in sorted(groups.values(), key=lambda group: -max(map(_visits, group.values()))):
        items = list(group.items())
        parts = max(1, math.ceil(len(items) / MOST))
        parts = min(len(items), parts + parts % 2)
        out += [dict(items[part::parts]) for part in range(parts)]
    return out


def _visits(job: Mapping[str, Any]) -> int:
    config = job["config"]
    return int(config["model"]["loops"] * config["model"]["layers"] * config["train"]["steps"])


def _train(batch: Batch) -> Batch:
    keys, own = list(batch), next(iter(batch.values()))["own"]
    configs = [TrainConfig.model_validate(batch[key]["config"]) for key in keys]
    if own is not None:
        configs = [config.using(str(HERE / own)) for config in configs]
    try:
        stack = house_stack(configs) if own is None else user_stack(configs)
        return {keys[place]: fit.val_loss for place, fit in fit_stack(stack)}
    except UnstackableError:  # gates that count their visits
        return {key: fit(config).val_loss for key, config in zip(keys, configs, strict=True)}


def _side_by_side(work: Callable[[Batch], Batch], batches: Sequence[Batch]) -> Iterator[tuple[Batch, float]]:
    """What `work` makes of each, as it ends, and its processor seconds; one process a core, one thread each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, min(cores, len(batches))), mp_context=context, initializer=_one_thread)
    try:
        for future in as_completed([pool.submit(_timed, work, batch) for batch in batches]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _timed(work: Callable[[Batch], Batch], batch: Batch) -> tuple[Batch, float]:
    began = time.process_time()
    return work(batch), time.process_time() - began


def _one_thread() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*batching rule.*")  # attention of a stack runs member by member
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A study that is killed takes its processes along; the pool alone would leave them training for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
