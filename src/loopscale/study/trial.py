"""One trial: train a cell's config, and the record that is kept of it. Runs in a worker process with one thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from loopscale.study.own import Own
    from loopscale.train import Fit, TrainConfig


def start_worker(meeting: Barrier | None = None) -> None:
    """Called first in every worker: one thread each, at the lowest priority. Threads fight at these sizes.

    meeting: where the workers wait for each other before they begin.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the study, which then ends its workers
    os.nice(5)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    if meeting is not None:
        meeting.wait()


def _end_with_the_parent() -> None:
    """A study that is killed takes its workers along; the pool alone would leave them training for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def run_trial(key: str, cell: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; the returned record is what `trials/<key>.json` holds (see docs/architecture.md).

    What a user model or an objective raises is kept as the record's "error", and the trial counts as diverged.
    """
    began = time.perf_counter()
    own = config.get("own")
    try:
        fit, error = _fit(config), None
    except (Exception, SystemExit) as cause:  # a script's sys.exit is no end of the study
        if own is None:
            raise
        fit, error = _failed(), _said(cause)
    record = record_of(key, cell, config, fit, fit.seconds or time.perf_counter() - began)
    return record if error is None else {**record, "error": error}


def sections(config: dict[str, Any]) -> tuple[Own | None, dict[str, Any], list[list[float]]]:
    """Take a job's config apart: the user's code if any, the values of a `TrainConfig`, the rows of early stopping."""
    from loopscale.study.own import Own

    values = {name: section for name, section in config.items() if name not in ("own", "stop")}
    return Own.from_json(config.get("own")), values, config.get("stop", [])


def config_of(config: dict[str, Any]) -> TrainConfig:
    """Give a job's training: of a user model where the job names one."""
    from loopscale.train import TrainConfig

    own, values, _ = sections(config)
    house = TrainConfig.model_validate(values)
    return house if own is None or own.kind == "objective" else house.using(own.place)


def record_of(key: str, cell: dict[str, Any], config: dict[str, Any], fit: Fit, seconds: float) -> dict[str, Any]:
    """What is kept of a trial: `trials/<key>.json`."""
    return {"key": key, "cell": cell, "config": config, **_measured(fit), "seconds": round(seconds, 3)}


def _fit(config: dict[str, Any]) -> Fit:
    from loopscale.study.own import judged
    from loopscale.study.stopping import stops
    from loopscale.train import fit

    own, _, rows = sections(config)
    if own is not None and own.kind == "objective":
        return judged(own.place, config_of(config))
    return fit(config_of(config), stop=stops(rows))


def _failed() -> Fit:
    from loopscale.train import Fit

    return Fit(None, None, [], [], [], 0.0, 0, False, None)


def _said(cause: BaseException) -> str:
    from loopscale.errors import UserError
    from loopscale.train import describe

    return str(cause) if isinstance(cause, UserError) else describe(cause)


def _measured(result: Fit) -> dict[str, Any]:
    return {
        "loss": result.val_loss,
        "diverged": result.val_loss is None and not result.stopped,
        **({"stopped": True, "train_loss": result.train_loss} if result.stopped else {}),
        "diverged_at": result.diverged_at,
        "steps": result.steps,
        "curve": _thin(result.curve),
        "stream_rms": {"initial": _finite(result.stream_initial), "final": _finite(result.stream_final)},
    }


def _thin(curve: list[Any], most: int = 40) -> list[Any]:
    stride = max(1, len(curve) // most)
    return [[step, _number(loss)] for step, loss in curve[::stride]]


def _finite(values: list[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """JSON has no infinity: a non-finite number is null, the rest keeps six digits."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None
