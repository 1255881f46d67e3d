"""The monitor as a Hugging Face `TrainerCallback`."""

from __future__ import annotations

from typing import Any

from loopscale.diagnosis.monitor import Monitor, Sample
from loopscale.errors import require
from loopscale.optim import watch_groups


def trainer_callback(every: int = 50) -> Any:
    """Return a callback for `Trainer(callbacks=[...])`; its `samples` fill while training, one every `every` steps.

    Raises `MissingExtraError` without transformers, and `UserError` for `every` < 1 when training begins.

    >>> trainer_callback(every=100).samples  # doctest: +SKIP
    []
    """
    base = require("transformers", "hf").TrainerCallback

    class LoopMonitor(base):  # type: ignore[misc, valid-type]
        """Holds a `Monitor` from the beginning of training to its end."""

        def __init__(self) -> None:
            self.samples: list[Sample] = []
            self.monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            """Put the first hooks in place, and watch for an optimizer without the rule's groups."""
            watch_groups(model)
            self.monitor = Monitor(model, every)
            self.samples = self.monitor.samples

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Count a step of the optimiser."""
            if self.monitor is not None:
                self.monitor.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Remove the hooks."""
            if self.monitor is not None:
                self.monitor.close()

    return LoopMonitor()
