"""Rate and strength carried over loops, layers and width at once, against a sweep at the target itself. Minutes."""

import math
from statistics import fmean

import pytest

from loopscale.study import LocalProcesses, content_hash, drive
from loopscale.train import make_config
from loopscale.tune import Size, TuneSettings, tune
from loopscale.tune.regret import TOLERANCE
from loopscale.tune.search import paired_noise

PROXY = Size(1, 1, 32, 100, 8)
TARGET = PROXY.replace(loops=16, layers=2, width=64)
SEEDS = range(4)
BASE = make_config(
    {
        "model": {"width": 32, "layers": 1, "head_dim": 16},
        "data": {"path": "stdlib", "context": 32, "batch_size": 8},
        "optim": {"schedule": "linear", "warmup": 0.1, "lr": 2.0**-6},
        "train": {"steps": 100, "eval_batches": 16, "device": "cpu"},
    }
)
PLAN, STEPS = (0, 0), ((1, 0), (-1, 0), (0, 1), (0, -1))  # octaves of (rate, strength) from the plan


def swept(chosen, center):
    """Cell -> seed -> loss at the target: from the plan downhill until the best cell has four worse neighbours."""
    table, best = {}, PLAN
    while True:
        around = [best, *((best[0] + x, best[1] + y) for x, y in STEPS)]
        table |= trained(chosen, center, [cell for cell in around if cell not in table])
        lowest = min(table, key=lambda cell: fmean(table[cell].values()))
        if lowest == best:
            return table, best
        best = lowest


def trained(chosen, center, cells):
    jobs, cell_of = {}, {}
    for cell in cells:
        rate, strength = 2.0 ** cell[0], 2.0 ** cell[1]
        values = {"lr": center["lr"] * rate, "strength": center["strength"] * strength}
        values["outer_lr"] = center["outer_lr"] / rate  # the rate of embedding and readout stays where it is
        for seed in SEEDS:
            config = chosen.config(TARGET, values, seed).model_dump(mode="json")
            key = content_hash(config)
            jobs[key], cell_of[key] = (key, {}, config), (cell, seed)
    found = {cell: {} for cell in cells}
    left = iter(jobs.values())

    def keep(record):
        cell, seed = cell_of[record["key"]]
        found[cell][seed] = math.inf if record["loss"] is None else record["loss"]

    drive(LocalProcesses(1), lambda: next(left, None), keep)
    return found


MISSED = pytest.mark.xfail(
    reason="measured with torch 2.13 on a CPU: from one loop the regret on four seeds is 0.0121 nats [0, 0.0286], above "
    "the 0.01 allowed; before the search walked to the valley it was 0.0556 [0.0332, 0.0779]"
)


@pytest.mark.slow
@pytest.mark.parametrize("loops", [pytest.param(1, marks=MISSED), 4])
def test_rate_and_strength_carried_over_three_axes_lose_nothing_at_the_target(loops, tmp_path):
    chosen = TuneSettings(BASE, PROXY.replace(loops=loops), TARGET, ("lr", "strength", "outer_lr"), trials=24)
    plan = tune(chosen, tmp_path / "t", executor=LocalProcesses(1))
    table, best = swept(chosen, plan["target"]["values"])
    regret = fmean(table[PLAN][seed] - table[best][seed] for seed in SEEDS)
    noise = paired_noise(list(table.values()))
    most = TOLERANCE
    error = 0.0 if best == PLAN else noise.error(len(SEEDS))
    said = (
        f"plan {plan['proxy']['values']}, best at (rate, strength) {best} octaves from it: regret {regret:.4f} nats "
        f"[{max(0.0, regret - error):.4f}, {regret + error:.4f}], allowed {most:.4f}; {table}"
    )
    print(said)
    assert regret <= most, said
