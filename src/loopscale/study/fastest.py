"""Choose between trials alone and batched, by a few steps of both at a study's own size on its own device."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from statistics import median
from typing import Any, cast

from loopscale.errors import describe
from loopscale.study.batches import Batched, graph_of, on_gpu, stack_of
from loopscale.study.executor import Executor
from loopscale.study.local import LocalProcesses, spawned
from loopscale.study.trial import config_of

STEPS, ENOUGH = 14, 1.5  # steps that are timed at most; seconds after which four will do
LONG = 1.0  # seconds that a step of the batch may take, or it is measured, and used, with fewer trials
MARGIN = 1.05  # below this ratio the simpler one runs


class Fastest:
    """Stand for the faster of `LocalProcesses` and `Batched`, measured when the first job is there, for jobs like `config`.

    Both are measured with all their processes at work, on a CPU in CPU seconds. say: called with one sentence, which of
    them it is and the ratio.
    """

    def __init__(
        self,
        config: dict[str, Any],
        workers: int | None = None,
        say: Callable[[str], object] = lambda sentence: None,
        gpus: float = 0.0,
    ) -> None:
        self._config, self._say = config, say
        self._alone = LocalProcesses(workers, gpus)
        self._batched = Batched(workers, say=say, gpus=gpus)

    @classmethod
    def of(cls, *arguments: Any) -> Executor:
        """Make one, as the executor that it stands for."""
        return cast(Executor, cls(*arguments))

    def __getattr__(self, name: str) -> Any:
        """Do whatever an executor does as the faster one does it."""
        return getattr(self.chosen, name)

    @cached_property
    def chosen(self) -> Executor:
        """The faster one; measured the first time that it is asked for."""
        _, why = graph_of(self._config)
        if why is None:
            size, rates = measured(self._config, self._alone.slots, self._batched)
            if not isinstance(rates, str):
                ratio = rates[1] / rates[0]
                together = f"{size} at once in {self._batched.slots} process(es)"
                base = f"a trial in each of {self._alone.slots}"
                if ratio > MARGIN:
                    self._say(f"executor auto: {together}, {ratio:.2f} times the throughput of {base}")
                    self._batched.batch = size
                    return self._batched
                self._say(f"executor auto: {base} process(es); {together} have {ratio:.2f} times their throughput")
                return self._alone
            why = rates
        self._say(f"executor auto: a trial in each of {self._alone.slots} process(es), not batched: {why}")
        return self._alone


def measured(config: dict[str, Any], workers: int, batched: Batched) -> tuple[int, tuple[float, float] | str]:
    """Measure steps of trials per second, alone and batched, and the size of a batch; or say why there are no batches."""
    with spawned(workers, together=True) as pool:
        seconds = _each(pool, alone_seconds, workers, config)
        if isinstance(seconds, str):
            return batched.batch, seconds
        size = max(2, min(batched.batch, int(LONG / max(seconds))))
        found = _each(pool, stack_seconds, min(workers, batched.slots), config, size)
    if isinstance(found, str):
        return size, found
    return size, (sum(1 / s for s in seconds), sum(size / s for s in found))


def _each(
    pool: ProcessPoolExecutor, work: Callable[..., float | str], count: int, *arguments: Any
) -> list[float] | str:
    found = [future.result() for future in [pool.submit(work, *arguments) for _ in range(count)]]
    refused = [why for why in found if isinstance(why, str)]
    return refused[0] if refused else [seconds for seconds in found if not isinstance(seconds, str)]


def alone_seconds(config: dict[str, Any]) -> float | str:
    """Measure the seconds of a step of one trial in this process; or say why it has none, as a clause."""
    return _paced(config, lambda clock: _fit(_short(config), clock))


def stack_seconds(config: dict[str, Any], size: int) -> float | str:
    """Measure the seconds of a step of `size` trials at once in this process; or say why there are none, as a clause."""
    return _paced(config, lambda clock: _fit_stack([_short(config, seed) for seed in range(size)], clock))


def _paced(config: dict[str, Any], train: Callable[[_Clock], None]) -> float | str:
    import torch

    from loopscale.batched import UnstackableError

    clock = _Clock(time.perf_counter if on_gpu(config["train"]["device"]) else time.process_time)
    try:
        train(clock)
    except UnstackableError as cause:
        return str(cause)
    except (torch.OutOfMemoryError, MemoryError):
        return "it does not fit the memory"
    except (Exception, SystemExit) as cause:
        if "user_code" not in config:
            raise
        return f"the model failed ({describe(cause)})"  # the study will keep what its trials raise
    return clock.step if clock.ended else "it diverged within a few steps"


def _fit(config: dict[str, Any], clock: _Clock) -> None:
    from loopscale.train import fit

    fit(config_of(config), stop=lambda record: clock.over())


def _fit_stack(configs: list[dict[str, Any]], clock: _Clock) -> None:
    from loopscale.batched import fit_stack
    from loopscale.train import StepRecord

    def first(record: StepRecord) -> bool:
        return clock.over()

    def others(record: StepRecord) -> bool:
        return clock.ended

    for _ in fit_stack(stack_of(configs), [first, *[others] * (len(configs) - 1)]):
        pass


def _short(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return {**config, "train": {**config["train"], "steps": STEPS + 1, "eval_batches": 1, "seed": seed}}


class _Clock:
    """Notes when each step ended, until there are enough.

    now: on a CPU the time of the process, which stands still while others have the core; on a GPU the wall.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._at: list[float] = []
        self._now, self.ended = now, False

    def over(self) -> bool:
        self._at.append(self._now())
        many, late = len(self._at) == STEPS, self._at[-1] - self._at[0] > ENOUGH
        self.ended = many or (late and len(self._at) > 3)
        return self.ended

    @property
    def step(self) -> float:
        """The median of the steps after the first two, which pay for what is loaded lazily."""
        return median(after - before for before, after in zip(self._at[1:], self._at[2:], strict=False))
