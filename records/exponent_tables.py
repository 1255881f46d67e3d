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
    """The power, where it changes, what carrying from there costs, the rate, and the powers elsewhere."""
    result = load()
    bent = [said for said in result["says"] if said.startswith("The power is not one number")]
    rate = next(said for said in result["says"] if said.startswith("The best hidden rate"))
    again = [
        f"{name}, at half the size: N^-{_told(other['a'])}; N^-{_told(early)} from N = 2 to 8 and N^-{_told(late)} from "
        "N = 8 to 32."
        for name, other in _elsewhere()
        for early, late, _ in [powers(other)]
    ]
    return "\n".join(f"- {said}" for said in [result["sentence"], *bent, carried_again(), rate, *again])


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


ELSEWHERE = {
    "exponent_english": "English (Python's manual)",
    "exponent_muon": "Muon",
    "exponent_four": "four layers",
}


def elsewhere() -> str:
    """The same experiment with one thing changed, at half the size: a row each, and the two questions asked of them."""
    rows = [("Python, AdamW, one layer (full size)", load()), *_elsewhere()]
    lines = [
        "| setting | a, N = 2 to 32 | 2 to 8 | 8 to 32 | change of the power | g | 1/N - 1/sqrt(N), nats | regret of 1/N "
        "| so |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in rows:
        early, late, change = powers(result)
        regret = next(row["regret"] for row in result["carried"] if row["way"] == "looped")
        lines.append(
            f"| {name} | {_told(result['a'])} | {_told(early)} | {_told(late)} | {_told(change, '+.2f')} | "
            f"{_told(result['g'])} | {_told(result['differences'].get('looped - sqrt'), '+.3f')} | "
            f"{_told(regret, '+.3f')} | {result['verdict']}; rate {result['rate_verdict']} |"
        )
    return "\n".join(lines + [f"\nThe law of layers: {said}" for said in over_layers(dict(rows))])


def _elsewhere() -> list[tuple[str, dict[str, Any]]]:
    places = [(name, RECORD.parent / f"{stem}.json") for stem, name in ELSEWHERE.items()]
    return [(name, json.loads(place.read_text())) for name, place in places if place.exists()]


def powers(result: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The power from the first to the second N, from the second to the third, and late - early, paired over seeds."""
    logs = [[math.log(eps) for eps in valley["eps"]["by_seed"]] for valley in result["valleys"]]
    over = [math.log(result["loops"][k + 1] / result["loops"][k]) for k in range(2)]
    early, late = ([(a - b) / over[k] for a, b in zip(logs[k], logs[k + 1], strict=True)] for k in range(2))
    return tuple(_over_seeds(values) for values in (early, late, [b - a for a, b in zip(early, late, strict=True)]))


def over_layers(rows: dict[str, dict[str, Any]]) -> list[str]:
    """How the best eps falls from one layer to four, eps ~ L^-b: the mean over N of each seed that both have."""
    four = rows.get(ELSEWHERE["exponent_four"])
    if four is None:
        return []
    pairs = zip(load()["valleys"], four["valleys"], strict=True)
    falls = [
        [
            math.log(one / other) / math.log(4)
            for one, other in zip(a["eps"]["by_seed"], b["eps"]["by_seed"], strict=False)
        ]
        for a, b in pairs
    ]
    b = _over_seeds([sum(seed) / len(seed) for seed in zip(*falls, strict=True)])
    low, high = b["interval"]
    so = "holds" if 0.25 <= low <= 0.5 <= high <= 0.75 else "is undecided" if low <= 0.5 <= high else "is refuted"
    return [f"the best eps falls as L^-b with b = {_told(b)}, so 1/sqrt(L) {so} here."]


def _over_seeds(values: list[float]) -> dict[str, Any]:
    from loopscale.transfer.estimate import over_seeds

    found = over_seeds(values)
    return {"value": found.value, "interval": found.interval}


def _told(measured: dict[str, Any] | None, digits: str = ".2f") -> str:
    return "" if measured is None else f"{measured['value']:{digits}}{_ends(measured, digits)}"


BLOCKS = {"exponent": exponent, "elsewhere": elsewhere, "outer": outer}
