"""Where loops pay: one layer looped, as many distinct layers, and the layer once, on text and on three tasks."""

from __future__ import annotations

import numpy as np
from outcome import Table, over_seeds
from search import Make, at_best, base, searched

import loopscale as ls

LOOPS, SEEDS, TEXT_STEPS, TASK_STEPS = 8, 4, 300, 1200
TASKS = {  # name and steps -> what it is
    ("text", TEXT_STEPS): "bytes of Python sources",
    ("addition", TASK_STEPS): "addition of two numbers of four digits",
    ("sorting", TASK_STEPS): "sorting eight symbols",
    ("walk", TASK_STEPS): "one to four steps along the edges of a graph",
}
ARMS = {f"1 layer, {LOOPS} loops": (1, LOOPS), f"{LOOPS} layers, once": (LOOPS, 1), "1 layer, once": (1, 1)}


def training(task: str, steps: int, layers: int, loops: int) -> Make:
    """Of a task under the rule `looped`."""
    if task == "text":
        return base(loops, layers=layers, steps=steps)
    return base(loops, layers=layers, steps=steps, batch=32, own=f"tasks/{task}.py:make_model")


def parameters(layers: int) -> int:
    """Weights of the core."""
    model = ls.LoopedTransformer(ls.ModelConfig(width=32, head_dim=16, layers=layers))
    return sum(p.numel() for p in model.core.parameters())


def table() -> Table:
    """Three rows a task: the loop, as much compute, as many parameters."""
    arms = {(task, arm): training(*task, *ARMS[arm]) for task in TASKS for arm in ARMS}
    found = {key: at_best(losses) for key, losses in searched("untied", arms, SEEDS).items()}
    first, column, rows = next(iter(ARMS)), f"minus the loop [95 % interval], n = {SEEDS}", []
    for (task, arm), losses in found.items():
        gap = over_seeds("", [a - b for a, b in zip(losses, found[task, first], strict=True)], (0.0, 0.0))
        rows.append(
            {
                "data": TASKS[task],
                "network": arm,
                "visits of a layer": str(ARMS[arm][0] * ARMS[arm][1]),
                "weights of the core": f"{parameters(ARMS[arm][0]):,}",
                "loss, nats": f"{np.mean(losses):.3f}",
                column: "" if arm == first else f"{gap.value:+.3f} [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]",
            }
        )
    sentence = (
        "Each network at its own best rate. Loss per byte of text, and per symbol of the answer in the tasks. The second "
        "row of each three has the same compute, the third the same parameters as the first."
    )
    setting = (
        f"d = 32, AdamW; text: {TEXT_STEPS} steps of 8 sequences of 32; tasks: {TASK_STEPS} steps of 32 fresh examples"
    )
    return Table("untied", sentence, rows, setting)
