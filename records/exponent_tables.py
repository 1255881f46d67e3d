"""Blocks of docs/exponent.md and of the experiment's page, from records/exponent.json alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RECORD = Path(__file__).resolve().parent / "exponent.json"


def load() -> dict[str, Any]:
    """Read the record."""
    return json.loads(RECORD.read_text())


def _ends(measured: dict[str, Any] | None, digits: str) -> str:
    ends = measured and measured.get("interval")
    return f" ({ends[0]:{digits}} to {ends[1]:{digits}})" if ends else ""


def exponent() -> str:
    """The sentences, the optimum at each N, what carrying costs, and where it comes from."""
    result = load()
    origin = result["provenance"]
    lines = [f"**{result['sentence']}**", "", *[f"- {said}" for said in result["says"]], ""]
    lines += ["| N | best eps | as a strength | best hidden rate | loss there (nats) |", "|---|---|---|---|---|"]
    for valley in result["valleys"]:
        eps, lr, loss = valley["eps"], valley["lr"], valley["loss"]
        strength = eps["value"] * valley["loops"] * math.sqrt(origin["model"]["layers"])
        lines.append(
            f"| {valley['loops']} | {eps['value']:.3g}{_ends(eps, '.3g')} | {strength:.2f} | "
            f"2^{math.log2(lr['value']):.2f} | {loss['value']:.3f}{_ends(loss, '.3f')} |"
        )
    last = result["loops"][-1]
    lines += ["", f"| carried from N = {result['loops'][0]} to {last} by | eps | hidden rate | loss (nats) | regret |"]
    lines.append("|---|---|---|---|---|")
    for row in result["carried"]:
        loss = row.get("loss")
        told = "a seed diverged" if loss is None else f"{loss['value']:.3f}"
        regret = row.get("regret")
        cost = "" if regret is None else f"{regret['value']:+.3f}{_ends(regret, '+.3f')}"
        lines.append(f"| {row['way']} | {row['eps']:.3g} | 2^{math.log2(row['lr']):.2f} | {told} | {cost} |")
    model, train = origin["model"], origin["train"]
    hours = origin["trial_seconds"] / 3600
    lines += [
        "",
        f"(95 % intervals in brackets; d = {model['width']}, L = {model['layers']}, {train['steps']} steps, "
        f"{len(origin['seeds'])} seeds and {len(origin['fresh_seeds'])} fresh ones, {origin['trials']} trials, "
        f"{hours:.1f} hours of trials on a shared machine; torch {origin['torch']}, {origin['hardware']}, "
        f"{origin['date'][:10]})",
    ]
    return "\n".join(lines)


def headline() -> str:
    """The power, where it changes, what carrying from there costs, and the rate."""
    result = load()
    bent = [said for said in result["says"] if said.startswith("The power is not one number")]
    rate = next(said for said in result["says"] if said.startswith("The best hidden rate"))
    return "\n".join(f"- {said}" for said in [result["sentence"], *bent, carried_again(), rate])


def carried_again() -> str:
    """What 1/N costs at the largest N, carried from either number of loops."""
    rows = json.loads((RECORD.parent / "paper" / "eight.json").read_text())["table"]
    costs = [f"{row['minus the optimum there [95 % interval]']} from N = {row['tuned at N']}" for row in rows]
    return f"Carried to N = {load()['loops'][-1]} by 1/N, in nats above the optimum there: {', '.join(costs)}."


def outer() -> str:
    """The pilot: loss over the outer rate."""
    points = load()["outer"]["points"]
    head = "| outer rate | " + " | ".join(f"2^{math.log2(point['lr']):.1f}" for point in points) + " |"
    loss = "| loss (nats), mean of two seeds | " + " | ".join(f"{point['loss']:.3f}" for point in points) + " |"
    return "\n".join([head, "|---|" + "---|" * len(points), loss])


BLOCKS = {"exponent": exponent, "outer": outer}
