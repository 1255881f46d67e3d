"""Claim: tuning at few loops, with verification, costs a tenth of a sweep at N = 32 and loses nothing there.

python benchmarks/tune_cost.py STUDY_FOLDER [--out records/tune_cost.json]

Stop it anywhere and start it again: every trial that ended is kept. For each optimizer and data set it runs, at d = 64:

tune     rate and strength at N = 1 and, apart from that, at N = 2; then verification at N = 4 and 8
direct   a sweep over (rate, strength) at N = 32: factor-2 steps, extended until the best cell has four worse neighbours
shots    the tuned values at N = 32, under the rule `looped`, and under `sqrt` and `none`, side by side

Cost is held against as many trials at N = 32 as tuning took, and against the direct sweep as it was run, which is coarser.
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

from loopscale.errors import UserError
from loopscale.files import write_json, write_text
from loopscale.records import Journal, Trial
from loopscale.study import LocalProcesses, drive
from loopscale.train import TrainConfig, make_config
from loopscale.transfer import Arm, Cell, StudyPlan
from loopscale.tune.regret import TOLERANCE

CENTER_LOG2_LR = {"adamw": -6, "muon": -5}
TARGET, PROXIES = 32, (1, 2)
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
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder)
        for kept in self.journal.by_key():
            trial = kept.model_dump()
            self.trials[name_of(trial["cell"])] = trial

    def loss(self, rule: str, loops: int, point: Point, seed: int) -> float | None:
        trial = self.trials.get(name_of(as_json(cell(rule, loops, point, seed))))
        if trial is None:
            return None
        return math.inf if trial["diverged"] else float(trial["loss"])

    def run(self, wanted: Callable[[], list[Cell]], workers: int | None) -> None:
        given = set[str]()

        def next_job() -> Any:
            for name, c in ((name_of(as_json(c)), c) for c in wanted()):
                if name not in self.trials and name not in given:
                    given.add(name)
                    return name, as_json(c), self.plan.config(c).model_dump(mode="json")
            return None

        def keep(trial: dict[str, Any]) -> None:
            self.journal.append(Trial.model_validate(trial))
            self.trials[name_of(trial["cell"])] = trial
            at = trial["cell"]
            print(self.name, at["rule"], at["loops"], at["lr"], at["strength"], at["seed"], trial["loss"], flush=True)

        drive(LocalProcesses(workers), next_job, keep)


def as_json(cell: Cell) -> dict[str, Any]:
    return {**asdict(cell.arm), "lr": cell.lr, "seed": cell.seed}


def name_of(cell: dict[str, Any]) -> str:
    """What a trial is called here: a later version with more config keys still finds it."""
    return "{rule}-N{loops}-lr{lr:.6g}-s{strength:.6g}-seed{seed}".format(**cell)


def cell(rule: str, loops: int, point: Point, seed: int) -> Cell:
    return Cell(Arm(rule, 2.0 ** point[1], loops), 2.0 ** point[0], seed)


def direct(setting: Setting) -> list[Cell]:
    """The cells of the sweep at N = 32 that are wanted now, in the coordinates of the rule `looped`."""
    center = (CENTER_LOG2_LR[setting.optimizer], 0)
    while True:
        around = [center, *((center[0] + a, center[1] + b) for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1)))]
        losses = {p: setting.loss("looped", TARGET, p, 0) for p in around}
        missing = [p for p in around if losses[p] is None]
        if missing:
            return [cell("looped", TARGET, p, 0) for p in missing]
        best = min(around, key=lambda p: losses[p] if losses[p] is not None else math.inf)
        if best == center:
            return [cell("looped", TARGET, center, 1)]
        center = best


def tuned(setting: Setting, loops: int, workers: int | None) -> dict[str, Any]:
    """Tune at `loops` and verify at N = 4 and 8, within a tenth of a sweep of as many trials at N = 32."""
    from loopscale.tune import Checks, Size, TuneSettings, tune, verify

    first = setting.plan.base.model_dump(mode="json")
    # The search starts where a user might: a rate four times too low, so that an optimum at the start proves nothing.
    first["optim"]["lr"] = 2.0 ** (CENTER_LOG2_LR[setting.optimizer] - 2)
    first["model"]["loops"] = loops
    proxy = Size(loops, 1, 64, 100, 8)
    settings = TuneSettings(make_config(first), proxy, proxy.replace(loops=TARGET), trials=15)
    folder = setting.folder / f"tune{loops}"
    plan = tune(settings, folder, executor=LocalProcesses(workers))
    if "verification" not in plan:
        try:
            plan["verification"] = verify(folder, Checks(loops=(4, 8)), executor=LocalProcesses(workers))
        except UserError as problem:  # a tenth of a sweep holds no check
            spent = plan["cost"]["tune_flops"] / plan["cost"]["direct_flops"]
            plan["verification"] = {"sentence": str(problem), "share_of_direct": spent, "not_verified": ["all"]}
    return plan


def shots(setting: Setting, plan: dict[str, Any]) -> list[Cell]:
    """The tuned values at N = 32, untouched: under `looped` with two seeds, under `sqrt` and `none` with one."""
    values = plan["proxy"]["values"]
    return [
        Cell(Arm(rule, values["strength"], TARGET), values["lr"], seed)
        for rule, seed in (("looped", 0), ("looped", 1), ("sqrt", 0), ("none", 0))
    ]


def wanted(setting: Setting, plans: dict[int, dict[str, Any]]) -> list[Cell]:
    """All trials at N = 32 that are wanted now."""
    return direct(setting) + [c for plan in plans.values() for c in shots(setting, plan)]


def swept(setting: Setting) -> dict[tuple[float, float], list[float]]:
    """(rate, strength) -> losses of seeds 0 and 1 of the direct sweep at N = 32."""
    cells: dict[tuple[float, float], list[float]] = {}
    for trial in sorted(setting.trials.values(), key=lambda t: t["cell"]["seed"]):
        at = trial["cell"]
        if at["loops"] == TARGET and at["rule"] == "looped" and _on_grid(at) and at["seed"] < 2:
            cells.setdefault((at["lr"], at["strength"]), []).append(_loss(trial))
    return cells


def summary(setting: Setting, loops: int, plan: dict[str, Any]) -> dict[str, Any]:
    """What the record keeps of one tuning; the sweep's best cell and the tuned values are compared on equal seeds."""
    cells = swept(setting)
    best = min((at for at, losses in cells.items() if len(losses) == 2), key=lambda at: sum(cells[at]))
    shot = {
        rule: [_loss(setting.trials[name_of(as_json(c))]) for c in shots(setting, plan) if c.arm.rule == rule]
        for rule in ("looped", "sqrt", "none")
    }
    proxy, found, cost = plan["proxy"], plan["verification"], plan["cost"]
    noise, trials = proxy["seed_noise"], plan["provenance"]["trials"]
    direct = sum(map(len, cells.values()))
    first = min(losses[0] for losses in cells.values())
    return {
        "setting": setting.name,
        "tuned_at": loops,
        "tuned": {**proxy["values"], "intervals": proxy["intervals"], "loss": proxy["loss"]},
        "swept_at_32": {"lr": best[0], "strength": best[1], "losses": cells[best], "cells": len(cells)},
        "one_shot_at_32": shot,
        "regret": (sum(shot["looped"]) - sum(cells[best])) / 2,
        "allowed": TOLERANCE,
        "seed_noise": noise,
        "regret_of_other_rules": {rule: shot[rule][0] - first for rule in ("sqrt", "none")},
        "optimum_of_other_rules": {"sqrt": best[1] / TARGET**0.5, "none": best[1] / TARGET},
        "share_of_direct": found["share_of_direct"],
        "share_of_the_sweep_as_run": found["share_of_direct"] * cost["direct_flops"] / flops_at_target(plan) / direct,
        "trials": {"tune": trials, "direct": direct},
        "verification": {"sentence": found["sentence"], "not_verified": found["not_verified"]},
    }


def flops_at_target(plan: dict[str, Any]) -> float:
    """Of one training at N = 32."""
    return float(plan["cost"]["direct_flops"]) / int(plan["provenance"]["trials"])


def _at(trial: dict[str, Any]) -> tuple[float, float]:
    return trial["cell"]["lr"], trial["cell"]["strength"]


def _on_grid(at: dict[str, Any]) -> bool:
    return all(math.log2(at[name]) == round(math.log2(at[name])) for name in ("lr", "strength"))


def _loss(trial: dict[str, Any]) -> float:
    return math.inf if trial["loss"] is None else float(trial["loss"])


def write_record(path: Path, rows: list[dict[str, Any]]) -> None:
    from loopscale.train import provenance

    claim = (
        "tune at N = 1 or 2, verify at N = 4, 8: share of the FLOPs of as many trials at N = 32, regret in nats there"
    )
    identity = "rule none at strength s, N loops, is rule looped at strength s N; sqrt: s sqrt(N): one sweep serves all"
    model = "d = 64, L = 1, context 64, 8 sequences, 100 steps, linear decay; n = 2 seeds at N = 32"
    write_json(path, {"claim": claim, "model": model, "note": identity, "rows": rows, "provenance": provenance()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    data = {"python": "stdlib", "english": str(english(options.folder)), "permutation": "synthetic:permutation"}
    rows = []
    for optimizer, name in itertools.product(("adamw", "muon"), data):
        setting = Setting(options.folder, optimizer, name, data[name])
        if options.only not in setting.name:
            continue
        setting.plan.base.load_data()
        plans = {loops: tuned(setting, loops, options.workers) for loops in PROXIES}
        for loops, plan in plans.items():
            print(setting.name, loops, plan["sentence"], plan["verification"]["sentence"], flush=True)
        setting.run(lambda s=setting, p=plans: wanted(s, p), options.workers)
        rows += [summary(setting, loops, plan) for loops, plan in plans.items()]
        print(json.dumps(rows[-2:]), flush=True)
        if options.out:
            write_record(options.out, rows)


if __name__ == "__main__":
    main()
