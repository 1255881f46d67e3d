"""One trial: train a cell's config, end it early where it is hopeless, and the record that is kept of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from statistics import fmean
from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError, describe
from loopscale.records import Trial, content_hash

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

    from loopscale.study.user_code import UserCode
    from loopscale.train import Fit, StepRecord, TrainConfig

MOST_SEEDS = 1000  # of a study


def start_worker(meeting: Barrier | None = None) -> None:
    """Begin a worker: one thread, at the lowest priority. Threads fight at these sizes.

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
    """End the worker with its study; the pool alone would leave it training for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def run_trial(key: str, cell: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; the returned record is what `trials/<key>.json` holds (see docs/architecture.md).

    What a user model or an objective raises is kept as the record's "error", and the trial counts as diverged.
    """
    from loopscale.train import Fit

    began = time.perf_counter()
    try:
        fit, error = _fit(config), None
    except (Exception, SystemExit) as cause:  # a script's sys.exit is no end of the study
        if sections(config)[0] is None:
            raise
        fit, error = Fit(None, None), str(cause) if isinstance(cause, UserError) else describe(cause)
    record = record_of(key, cell, config, fit, fit.seconds or time.perf_counter() - began)
    return record if error is None else {**record, "error": error}


def job_of(config: TrainConfig, user_code: UserCode | None) -> dict[str, Any]:
    """Give a trial as plain JSON: its config, and the user's model or objective where there is one."""
    values = config.model_dump(mode="json")
    return values if user_code is None else {**values, "user_code": user_code.to_json()}


def trial_key(job: dict[str, Any]) -> str:
    """Hash a trial. The user's code enters by its first name, `own`, so that the folders of older versions go on."""
    return content_hash({"own" if name == "user_code" else name: value for name, value in job.items()})


def sections(config: dict[str, Any]) -> tuple[UserCode | None, dict[str, Any], list[list[float]]]:
    """Take a job's config apart: the user's code if any, the values of a `TrainConfig`, the rows of early stopping."""
    from loopscale.study.user_code import UserCode

    values = dict(config)
    rows, older = values.pop("stop", []), values.pop("own", None)  # the user's code was once called `own`
    return UserCode.from_json(values.pop("user_code", older)), values, rows


def config_of(config: dict[str, Any]) -> TrainConfig:
    """Give a job's training: of a user model where the job names one."""
    from loopscale.train.load import stored_config

    code, values, _ = sections(config)
    house = stored_config(values, "the config of a trial", Trial.FIX)
    return house if code is None or code.kind == "objective" else house.using(code.place)


def trial_seconds(config: TrainConfig, user_code: UserCode | None = None) -> float:
    """Measure the seconds of one trial: a few steps here, one thread, counted up; an objective is called once."""
    import torch

    def timed(steps: int, eval_batches: int) -> float:
        short = config.replaced("train", steps=steps, eval_batches=eval_batches)
        began = time.perf_counter()
        run_trial("probe", {}, job_of(short, user_code))
        return time.perf_counter() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train = config.train
    try:
        if user_code is not None and user_code.kind == "objective":
            return timed(train.steps, train.eval_batches)
        timed(1, 1)  # the first step of a process pays for what is loaded lazily
        few = min(4, train.steps)
        return timed(few, 1) / (3 * few + 1) * (3 * train.steps + train.eval_batches)
    finally:
        torch.set_num_threads(threads)


def record_of(key: str, cell: dict[str, Any], config: dict[str, Any], fit: Fit, seconds: float) -> dict[str, Any]:
    """Return what is kept of a trial."""
    return {"key": key, "cell": cell, "config": config, **_measured(fit), "seconds": round(seconds, 3)}


def _fit(config: dict[str, Any]) -> Fit:
    from loopscale.study.user_code import judged
    from loopscale.train import fit

    code, _, rows = sections(config)
    if code is not None and code.kind == "objective":
        return judged(code.place, config_of(config))
    return fit(config_of(config), stop=stops(rows))


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


def _thin(curve: list[Any]) -> list[Any]:
    stride = max(1, len(curve) // 40)
    return [[step, _number(loss)] for step, loss in curve[::stride]]


def _finite(values: list[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """Round for JSON, which has no infinity: a non-finite number is null, the rest keeps six digits."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


RUNGS = (0.3, 0.6)  # shares of the steps at which a trial is looked at
NEEDED = 5  # finished trials before anything is stopped
MARGIN = 0.05  # nats


def smoothed(curve: Sequence[Sequence[float | None]], step: int, window: int = 10) -> float | None:
    """Return the mean training loss over the last recorded points up to `step`; None before the first."""
    seen = [loss for at, loss in curve if at is not None and at <= step and loss is not None]
    return fmean(seen[-window:]) if seen else None


def thresholds(trials: Iterable[Trial], steps: int) -> list[list[float]]:
    """Return [[step, loss], ...]: a trial whose smoothed loss is above `loss` at `step` may stop.

    The threshold is the worst loss at that step of the better half of the finished trials, plus a margin: whoever ended
    in the better half would not have been stopped. Curves are thinned, so the window of the mean is in recorded points.
    """
    whole = sorted((trial for trial in trials if trial.loss is not None), key=lambda trial: trial.height)
    if len(whole) < NEEDED:
        return []
    better = whole[: max(2, (len(whole) + 1) // 2)]
    rows = []
    for share in RUNGS:
        step = max(1, round(share * steps))
        seen = [loss for loss in (smoothed(trial.curve, step, 4) for trial in better) if loss is not None]
        if seen:
            rows.append([step, max(seen) + MARGIN])
    return rows


def stops(rows: Sequence[Sequence[float]]) -> Callable[[StepRecord], bool]:
    """Give what is shown each step's record and says whether to stop there."""
    recent: list[float] = []

    def stop(record: StepRecord) -> bool:
        recent.append(record.loss)
        del recent[:-10]
        return any(record.step == at and fmean(recent) > most for at, most in rows)

    return stop
