"""Claim: tuning at few loops, with verification, costs a tenth of a sweep at N = 32 and loses nothing there.

python benchmarks/tune_cost.py STUDY_FOLDER [--stages direct,shots] [--out records/tune_cost.json]

Stop it anywhere and start it again: every trial that ended is kept. For each optimizer and data set it runs, at d = 64:

direct   a sweep over (rate, strength) at N = 32: factor-2 steps, extended until the best cell has all eight neighbours,
         then two more seeds for the three best cells; the same at N = 1, for the figure side by side
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopscale.atomic import write_json, write_text
from loopscale.train import TrainConfig, make_config
from loopscale.transfer import Arm, Cell, LocalProcesses, StudyPlan

CENTER_LOG2_LR = {"adamw": -6, "muon": -5}
TARGET = 32
Point = tuple[int, int]  # log2 rate, log2 strength


def english(folder: Path) -> Path:
    """Text that is not Python code and is on every machine: the reference manual inside Python's own documentation."""
    path = folder / "english.txt"
    if not path.exists():
        from pydoc_data.topics import topics

        write_text(path, "\n\n".join(topics[name] for name in sorted(topics)))
    return path


def base(optimizer: str, data: str) -> TrainConfig:
    return make_config(
        {
            "model": {"width": 64, "layers": 1, "loops": 1, "head_dim": 32, "base_layers": 1},
            "data": {"path": data, "context": 64, "batch_size": 8},
            "optim": {"optimizer": optimizer, "schedule": "linear", "warmup": 0.1},
            "train": {"steps": 100, "eval_batches": 16, "device": "cpu"},
        }
    )


class Setting:
    """One optimizer on one data set: its trials, in a folder."""

    def __init__(self, root: Path, optimizer: str, name: str, data: str) -> None:
        self.name, self.optimizer = f"{optimizer}-{name}", optimizer
        self.folder = root / self.name
        self.plan = StudyPlan(base=base(optimizer, data), rules=("looped", "sqrt", "none"), loops=(1, TARGET))
        self.trials: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / "trials").glob("*.json")):
            trial = json.loads(path.read_text())
            self.trials[name_of(trial["cell"])] = trial

    def loss(self, rule: str, loops: int, point: Point, seed: int) -> float | None:
        trial = self.trials.get(name_of(as_json(cell(rule, loops, point, seed))))
        if trial is None:
            return None
        return math.inf if trial["diverged"] else float(trial["loss"])

    def run(self, wanted: Callable[[], list[Cell]], workers: int | None) -> None:
        def jobs() -> list[Any]:
            missing = {name_of(as_json(c)): c for c in wanted()}
            return [
                (name, as_json(c), self.plan.config(c).model_dump(mode="json"))
                for name, c in missing.items()
                if name not in self.trials
            ]

        for trial in LocalProcesses(workers).run(jobs):
            write_json(self.folder / "trials" / f"{trial['key']}.json", trial)
            self.trials[name_of(trial["cell"])] = trial
            at = trial["cell"]
            print(self.name, at["rule"], at["loops"], at["lr"], at["strength"], at["seed"], trial["loss"], flush=True)


def as_json(cell: Cell) -> dict[str, Any]:
    return {**asdict(cell.arm), "lr": cell.lr, "seed": cell.seed}


def name_of(cell: dict[str, Any]) -> str:
    """What a trial is called here: a later version with more config keys still finds it."""
    return "{rule}-N{loops}-lr{lr:.6g}-s{strength:.6g}-seed{seed}".format(**cell)


def cell(rule: str, loops: int, point: Point, seed: int) -> Cell:
    return Cell(Arm(rule, 2.0 ** point[1], loops), 2.0 ** point[0], seed)


def grid(setting: Setting, loops: int) -> list[Cell]:
    """The cells of the direct sweep that are wanted now, in the coordinates of the rule `looped`."""
    center = (CENTER_LOG2_LR[setting.optimizer], 0)
    while True:
        around = [(center[0] + a, center[1] + b) for a, b in itertools.product((-1, 0, 1), repeat=2)]
        losses = {p: setting.loss("looped", loops, p, 0) for p in around}
        missing = [p for p in around if losses[p] is None]
        if missing:
            return [cell("looped", loops, p, 0) for p in missing]
        best = min(around, key=lambda p: losses[p] if losses[p] is not None else math.inf)
        if best == center:
            top = sorted(around, key=lambda p: losses[p] or math.inf)[:3]
            return [cell("looped", loops, p, seed) for p in top for seed in (1, 2)]
        center = best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", default="direct")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    data = {"python": "stdlib", "english": str(english(options.folder)), "permutation": "synthetic:permutation"}
    for optimizer, (name, path) in itertools.product(("adamw", "muon"), data.items()):
        setting = Setting(options.folder, optimizer, name, path)
        setting.plan.base.load_data()
        if "direct" in options.stages:
            setting.run(lambda s=setting: grid(s, 1) + grid(s, TARGET), options.workers)


if __name__ == "__main__":
    main()
