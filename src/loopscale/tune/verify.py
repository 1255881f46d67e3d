"""Test a plan at sizes between proxy and target within a stated budget, and say what was not tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loopscale.atomic import write_json
from loopscale.errors import UserError
from loopscale.transfer import Executor, LocalProcesses
from loopscale.transfer.executor import Job
from loopscale.tune.probes import Probe, flops_of, jobs_of, probes
from loopscale.tune.regret import Local, as_json, extrapolate, read_local, verdict
from loopscale.tune.run import read_json
from loopscale.tune.settings import TuneSettings

OnRecord = Callable[[dict[str, Any], int], None]
SHARE = 0.1  # of the FLOPs of a direct sweep, tuning included


def verify(
    folder: Path,
    *,
    loops: Sequence[int] = (),
    layers: Sequence[int] = (),
    widths: Sequence[int] = (),
    joint: bool = False,
    seeds: int = 1,
    budget_seconds: float | None = None,
    share: float = SHARE,
    executor: Executor | None = None,
    on_record: OnRecord = lambda record, count: None,
) -> dict[str, Any]:
    """Verify the plan in `folder`; returns, and adds to `plan.json`, what was found.

    At each size the plan is trained beside rates (then strengths) an octave below and above; the regret is read off the
    parabola, paired over seeds, and its trend over the axis is carried to the target. The checks that do not fit the budget
    (seconds, or by default: tuning and verifying together a tenth of a sweep at the target) are listed, not skipped.

    Raises `UserError`: no plan in the folder, a size outside proxy..target, a budget that holds no check (says its cost).
    """
    plan = read_json(folder / "plan.json")
    settings, center = TuneSettings.from_json(plan["settings"]), dict(plan["proxy"]["values"])
    asked = probes(settings, loops, layers, widths, joint)
    records = _known(folder)
    taken, left, spent, allowance = _affordable(plan, settings, center, asked, seeds, budget_seconds, share, records)
    _run(folder, settings, center, taken, seeds, executor or LocalProcesses(), on_record, records)
    found = _read(plan, settings, center, taken, seeds, records)
    report = {
        "sizes": {"loops": list(loops), "layers": list(layers), "widths": list(widths), "joint": joint},
        "seeds": seeds,
        "local": found["local"],
        "target": found["target"],
        "not_verified": _not_verified(settings, taken, left),
        "flops": spent,
        "allowed_flops": allowance,
        "share_of_direct": (spent + plan["cost"]["tune_flops"]) / plan["cost"]["direct_flops"],
    }
    report["verdict"], report["sentence"] = _conclude(plan, settings, report)
    plan["verification"] = report
    write_json(folder / "plan.json", plan)
    return report


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in ("trials", "verify"):
        for path in sorted((folder / kind).glob("*.json")):
            record = read_json(path)
            if not record.get("stopped"):
                found[path.stem] = record
    return found


def _affordable(
    plan: dict[str, Any],
    settings: TuneSettings,
    center: dict[str, float],
    asked: list[Probe],
    seeds: int,
    budget_seconds: float | None,
    share: float,
    records: dict[str, Any],
) -> tuple[list[Probe], list[tuple[Probe, float]], float, float]:
    """The probes that fit, in order; those that do not, with their FLOPs; what is spent; what was allowed."""
    cost = plan["cost"]
    if budget_seconds is None:
        allowance = share * cost["direct_flops"] - cost["tune_flops"]
    else:
        allowance = budget_seconds * cost["tune_flops"] / max(cost["seconds"], 1e-9)
    taken, left, spent, counted = [], [], 0.0, set[str]()
    for probe in asked:
        keys = set(jobs_of(settings, probe, center, seeds)) - counted
        price = len(keys) * flops_of(settings, probe, center, cost["vocab_size"])
        if spent + price <= allowance:
            taken.append(probe)
            spent += price
            counted |= keys
        else:
            left.append((probe, price))
    if all(probe.axis == "proxy" for probe in taken):
        probe, price = min((pair for pair in left if pair[0].axis != "proxy"), key=lambda pair: pair[1])
        seconds = price * cost["seconds"] / cost["tune_flops"]
        share_needed = (price + cost["tune_flops"]) / cost["direct_flops"]
        raise UserError(
            f"the budget holds no check: the cheapest, {probe.label}, takes about {seconds:.0f} s, "
            f"with tuning {share_needed:.0%} of a sweep at the target: raise --budget or --share"
        )
    return taken, left, spent, allowance


def _run(
    folder: Path,
    settings: TuneSettings,
    center: dict[str, float],
    taken: list[Probe],
    seeds: int,
    executor: Executor,
    on_record: OnRecord,
    records: dict[str, Any],
) -> None:
    wanted: dict[str, tuple[Any, Any]] = {}
    for probe in taken:
        wanted.update(jobs_of(settings, probe, center, seeds))

    def next_jobs() -> list[Job]:
        return [(key, cell, config) for key, (cell, config) in wanted.items() if key not in records]

    for record in executor.run(next_jobs):
        write_json(folder / "verify" / f"{record['key']}.json", record)
        records[record["key"]] = record
        on_record(record, sum(key in records for key in wanted))


def _read(
    plan: dict[str, Any],
    settings: TuneSettings,
    center: dict[str, float],
    taken: list[Probe],
    seeds: int,
    records: dict[str, Any],
) -> dict[str, Any]:
    proxy = plan["proxy"]
    noise = proxy["paired_noise"] or (proxy["surface"] or {}).get("noise") or 0.0
    local: list[dict[str, Any]] = []
    anchors: dict[str, Local] = {}
    trends: dict[tuple[str, str, str], dict[int, Local]] = {}
    for probe in taken:
        read = read_local(_table(settings, probe, center, seeds, records), noise)
        row = {"axis": probe.axis, "along": probe.along, "rule": probe.rule, "label": probe.label}
        local.append({**row, "size": vars(probe.size), **as_json(read, proxy["seed_noise"])})
        if probe.axis == "proxy":
            anchors[probe.along] = read
        elif probe.axis != "joint":
            trends.setdefault((probe.axis, probe.along, probe.rule), {})[getattr(probe.size, probe.axis)] = read
    for (axis, along, _), sizes in trends.items():
        if along in anchors:
            sizes[getattr(settings.proxy, axis)] = anchors[along]
    target = [_trend(settings, key, found, proxy["seed_noise"]) for key, found in trends.items()]
    return {"local": local, "target": target}


def _table(
    settings: TuneSettings, probe: Probe, center: dict[str, float], seeds: int, records: dict[str, Any]
) -> list[list[float]]:
    """seed -> losses below, at and above the plan."""
    rows: list[list[float]] = [[] for _ in range(seeds)]
    for key, (cell, _) in jobs_of(settings, probe, center, seeds).items():
        loss = records[key]["loss"]
        rows[cell["seed"]].append(math.inf if loss is None else loss)
    return rows


def _trend(
    settings: TuneSettings, key: tuple[str, str, str], found: dict[int, Local], noise: float | None
) -> dict[str, Any]:
    axis, along, rule = key
    far = extrapolate(found, getattr(settings.target, axis))
    return {
        "axis": axis,
        "along": along,
        "rule": rule,
        "at": getattr(settings.target, axis),
        "from": sorted(found),
        "regret": far.regret,
        "interval": None if far.interval is None else list(far.interval),
        "slope": far.slope,
        "verdict": verdict(far.regret, far.interval, noise),
    }


def _not_verified(settings: TuneSettings, taken: list[Probe], left: list[tuple[Probe, float]]) -> list[str]:
    said = [f"{probe.label}: it did not fit the budget" for probe, _ in left]
    proxy, target = settings.proxy, settings.target
    for axis in ("loops", "layers", "width"):
        if getattr(target, axis) != getattr(proxy, axis) and not any(probe.axis == axis for probe in taken):
            said.append(f"{axis} from {getattr(proxy, axis)} to {getattr(target, axis)}: carried by rule alone")
    for axis in ("steps", "batch"):
        if getattr(target, axis) != getattr(proxy, axis):
            said.append(
                f"{axis} from {getattr(proxy, axis)} to {getattr(target, axis)}: carried by a published rule alone"
            )
    moved = [axis for axis in ("loops", "layers", "width") if getattr(target, axis) != getattr(proxy, axis)]
    if len(moved) > 1 and not any(probe.axis == "joint" for probe in taken):
        said.append(f"{' and '.join(moved)} together: each axis was looked at alone")
    if not any(probe.along == "strength" for probe in taken) and "strength" in settings.tuned:
        said.append("the strength: only the rate was swept")
    said.append(f"the target itself ({target}): its regret is extrapolated")
    return said


def _conclude(plan: dict[str, Any], settings: TuneSettings, report: dict[str, Any]) -> tuple[str, str]:
    rows = [row for row in report["target"] if row["rule"] == settings.rule]
    rows += [row for row in report["local"] if row["axis"] == "joint"]
    verdicts = [row["verdict"] for row in (*rows, *report["local"]) if row["rule"] == settings.rule]
    overall = "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts else "holds"
    says = {
        "holds": "The plan holds",
        "fails": "The plan fails",
        "undecided": "The data do not decide whether the plan holds",
    }[overall]
    parts = [
        f"{row['along']} over {row['axis']} to {row['at']}: "
        + ("the plan diverged on the way" if row["regret"] is None else _nats(row["regret"], row["interval"], plan))
        for row in report["target"]
    ]
    share = f"{report['share_of_direct']:.1%} of the FLOPs of a sweep at the target, tuning included"
    return overall, f"{says}: expected regret at the target, {'; '.join(parts)}. Cost: {share}."


def _nats(regret: float, interval: list[float], plan: dict[str, Any]) -> str:
    noise = plan["proxy"]["seed_noise"]
    units = f", {regret / noise:.2g} of the seed noise" if noise else ""
    return f"{regret:.4f} nats [{interval[0]:.4f}, {interval[1]:.4f}]{units}"
