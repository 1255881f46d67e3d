"""What was changed in a model, and how it is taken back."""

from __future__ import annotations

from collections.abc import Callable


class Undo:
    """Steps back, in reverse order. Partials, not closures: a deepcopy of the model then undoes itself."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def run(self) -> None:
        """Take every change back; a step that raises is tried again by the next call."""
        while self.steps:
            self.steps[-1]()
            self.steps.pop()
