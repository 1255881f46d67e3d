"""A made-up study and run that follow the record formats of docs/architecture.md; no training happens here."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

LOOPS = (1, 2, 4, 8, 16)
RATES = tuple(2.0**e for e in (-9, -8, -7, -6, -5, -4, -3))
SEEDS = (0, 1)
STRENGTHS = (0.35, 0.5, 1.0)
# drift of the optimum per doubling of the loops, change of the loss per doubling, exponent of the residual scale
SHAPES = {"looped": (0.0, -0.018, 1.0), "sqrt": (-0.45, 0.05, 0.5), "none": (-0.55, 0.07, 0.0)}


def cell_loss(rule: str, loops: int, lr: float, strength: float, seed: int) -> float | None:
    """A parabola in log2(rate) around the rule's optimum; far above it training diverges."""
    drift, rise, _ = SHAPES.get(rule, SHAPES["none"])
    depth = math.log2(loops)
    away = math.log2(lr) - (-6.0 + drift * depth)
    if away > 4.2 - 0.45 * depth * (drift != 0) or (away > 2.9 and depth == 4 and seed == 1):
        return None
    noise = random.Random(f"{rule if loops > 1 else ''}{loops}{lr}{seed}").gauss(0, 0.004)
    steep = 0.055 if away < 0 else 0.035
    return 2.287 + rise * depth + steep * away**2 + 0.05 * math.log2(strength / 0.5) ** 2 + noise


def trial(rule: str, loops: int, lr: float, strength: float, seed: int) -> dict[str, Any]:
    """One trial record."""
    loss = cell_loss(rule, loops, lr, strength, seed)
    growth = 1.0 - SHAPES.get(rule, SHAPES["none"])[2]
    initial = [round(0.9 * (1 + visit) ** growth, 4) for visit in range(loops + 1)]
    cell = {"rule": rule, "loops": loops, "lr": lr, "strength": strength, "seed": seed}
    return {
        "key": hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:16],
        "cell": cell,
        "config": {"model": {"width": 64}},
        "loss": loss,
        "diverged": loss is None,
        "diverged_at": 41 if loss is None else None,
        "seconds": 2.5,
        "steps": 150,
        "curve": [[0, 5.5], [75, 2.9], [150, 2.3]],
        "stream_rms": {"initial": initial, "final": [2.2 * x for x in initial] if loss else [None] * (loops + 1)},
    }


def rule_record(rule: str, loops: tuple[int, ...] = LOOPS) -> dict[str, Any]:
    """A rule's part of result.json, consistent with the trials."""
    drift, rise, power = SHAPES.get(rule, SHAPES["none"])
    points, optima, applied = {}, {}, {}
    for n in loops:
        swept = []
        for lr in RATES:
            losses = [cell_loss(rule, n, lr, 0.5, seed) for seed in SEEDS]
            done = [loss for loss in losses if loss is not None]
            swept.append({"lr": lr, "loss": sum(done) / len(done) if done else None, "losses": losses})
        points[str(n)] = swept
        best, loss = -6.0 + drift * math.log2(n), 2.287 + rise * math.log2(n)
        optima[str(n)] = {
            "lr": 2**best,
            "lr_interval": [2 ** (best - 0.18), 2 ** (best + 0.2)],
            "loss": loss,
            "loss_interval": [loss - 0.006, loss + 0.007],
            "n_seeds": len(SEEDS),
            "edge": rule == "none" and n == 16,
        }
        why = "visits add coherently" if power == 1 else "the untied rule on the unrolled depth" if power else "no rule"
        value = {"name": "residual_scale", "value": 0.5 / n**power, "why": why, "source": "arXiv:2606.18524"}
        applied[str(n)] = [value, {"name": "lr", "value": 1.0, "why": "no factor N", "source": "arXiv:2606.18524"}]
    verdict = "transfers" if drift == 0 else "drifts"
    sentences = {
        "transfers": "The best rate moves by less than a fifth of a step from N = 1 to 16; the loss falls by 0.072.",
        "drifts": f"The best rate falls by a factor of {2 ** (-4 * drift):.1f} from N = 1 to 16; the loss rises.",
    }
    return {
        "claims_transfer": drift == 0,
        "verdict": verdict,
        "sentence": sentences[verdict],
        "strength": 0.5,
        "slope": drift + 0.0123,
        "slope_interval": [drift - 0.061, drift + 0.083],
        "regret": 0.0021 + 0.2 * drift**2,
        "regret_interval": [0.0005, 0.0041 + 0.4 * drift**2],
        "optima": optima,
        "points": points,
        "applied": applied,
    }


def result(rules: tuple[str, ...] = tuple(SHAPES), loops: tuple[int, ...] = LOOPS) -> dict[str, Any]:
    """result.json."""
    return {
        "schema": 1,
        "preset": "demo",
        "sentence": "With eps = \u03bb / (N \u221aL) the learning rate tuned at one loop is right at sixteen and the "
        "loss falls; with 1/\u221aN or no scaling it drifts down and the loss rises.",
        "rules": {rule: rule_record(rule, loops) for rule in rules},
        "strengths": list(STRENGTHS),
        "loops": list(loops),
        "provenance": {
            "loopscale": "0.1.0",
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "hardware": "2 CPU cores",
            "platform": "Linux",
            "date": "2026-01-01",
            "seeds": list(SEEDS),
            "data": {"source": "embedded text", "sha256": "a" * 64},
            "model": {"width": 64, "layers": 1},
            "seconds": 612.4,
            "trials": sum(len(strengths_at(n)) for n in loops) * len(rules) * len(RATES) * len(SEEDS),
        },
    }


def strengths_at(loops: int) -> tuple[float, ...]:
    """The strengths that are swept at this N."""
    return STRENGTHS if loops in (1, 16) else (0.5,)


def write_study(folder: Path, rules: tuple[str, ...] = tuple(SHAPES), loops: tuple[int, ...] = LOOPS) -> Path:
    """A complete study folder."""
    (folder / "trials").mkdir(parents=True)
    (folder / "study.json").write_text("{}")
    (folder / "result.json").write_text(json.dumps(result(rules, loops)))
    for rule in rules:
        for n in loops:
            for lr in RATES:
                for seed in SEEDS:
                    for strength in strengths_at(n):
                        record = trial(rule, n, lr, strength, seed)
                        (folder / "trials" / f"{record['key']}.json").write_text(json.dumps(record))
    return folder


def write_run(folder: Path, steps: int = 400) -> Path:
    """A training run's folder."""
    folder.mkdir(parents=True)
    noise = random.Random(0)
    lines = []
    for step in range(1, steps + 1):
        line: dict[str, Any] = {
            "step": step,
            "loss": 2.2 + 3.3 * math.exp(-step / 60) + noise.gauss(0, 0.03),
            "lr": 0.0156 * min(1, step / 20),
            "grad_norm": 0.4 + 2 * math.exp(-step / 30) + abs(noise.gauss(0, 0.05)),
            "tokens_per_second": 21000 + noise.gauss(0, 600),
        }
        if step % 50 == 0 or step == 1:
            line["stream_rms"] = [1 + 0.1 * visit * step / steps for visit in range(9)]
            line["val_loss"] = 2.25 + 3.3 * math.exp(-step / 60)
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.toml").write_text('[model]\nwidth = 64\nloops = 8\n[optim]\nlr = 0.0156\nrule = "looped"\n')
    (folder / "provenance.json").write_text(json.dumps({"loopscale": "0.1.0", "commit": "abc", "seed": 0}))
    return folder
