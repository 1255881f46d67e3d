"""What verification trains at sizes between proxy and target, and what it finds: regrets, exponents, what is left open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from loopscale.errors import UserError
from loopscale.records import Size, Trial
from loopscale.train import trial_flops
from loopscale.transfer.verdict import Beside, does_looping_pay
from loopscale.tune.advice import in_seed_noise, nats
from loopscale.tune.beside import SHARE
from loopscale.tune.plan import at_lower_end
from loopscale.tune.regret import TOLERANCE, Local, as_json, extrapolate, read_local, verdict
from loopscale.tune.search import PairedNoise, paired_noise
from loopscale.tune.settings import TuneSettings

Values = dict[str, float]
NEIGHBOURS = (-1.0, 0.0, 1.0)  # octaves
LAYER_RULES = ("looped", "looped-complete")


@dataclass(frozen=True)
class Checks:
    """What to verify: sizes between proxy and target, with how many seeds, and for how much.

    budget_seconds: time to spend; by default tuning and verifying together take at most `share` of a sweep at the target.
    tolerance: the regret in nats up to which a plan holds.
    """

    loops: Sequence[int] = ()
    layers: Sequence[int] = ()
    widths: Sequence[int] = ()
    joint: bool = False
    seeds: int = 1
    budget_seconds: float | None = None
    share: float = SHARE
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise UserError(f"a tolerance is a positive number of nats, got {self.tolerance:g}")

    def sizes(self) -> dict[str, Any]:
        """Return the sizes as the report keeps them."""
        return {
            "loops": list(self.loops),
            "layers": list(self.layers),
            "widths": list(self.widths),
            "joint": self.joint,
        }


@dataclass(frozen=True)
class Probe:
    """One local sweep: along one value (`along`), at one size, under one rule."""

    axis: str
    size: Size
    rule: str
    along: str

    @property
    def label(self) -> str:
        """The size on the axis that moved, in words."""
        axes = {
            "loops": f"N = {self.size.loops}",
            "layers": f"L = {self.size.layers}",
            "width": f"d = {self.size.width}",
        }
        where = axes.get(self.axis, ", ".join(axes.values()))
        return f"{where} ({self.along}{', b = 1' if self.axis == 'layers' and self.rule == LAYER_RULES[1] else ''})"

    def values(self, center: Values) -> list[Values]:
        """Return the plan's values and their neighbours along one of them."""
        return [{**center, self.along: center[self.along] * 2.0**octaves} for octaves in NEIGHBOURS]


def probes(
    settings: TuneSettings, loops: Sequence[int], layers: Sequence[int], widths: Sequence[int], joint: bool
) -> list[Probe]:
    """Return the local sweeps asked for, those along the rate before those along the strength, cheap before dear.

    The proxy comes first: where its own optimum lies is the anchor of every trend. On the layer axis both exponents b are
    swept. `joint` adds the largest asked for on every axis at once.

    Raises `UserError` for no size, and for one outside proxy..target.
    """
    proxy, found = settings.proxy, []
    for axis, counts in (("loops", loops), ("layers", layers), ("width", widths)):
        for count in sorted(set(counts)):
            low, high = getattr(proxy, axis), getattr(settings.target, axis)
            if not low < count <= high:
                raise UserError(f"--{axis} {count} is not above the proxy's {low} and at most the target's {high}")
            rules = LAYER_RULES if axis == "layers" and settings.rule in LAYER_RULES else (settings.rule,)
            found += [(axis, proxy.replace(**{axis: count}), rule) for rule in rules]
    if joint:
        largest = {"loops": max(loops, default=proxy.loops), "layers": max(layers, default=proxy.layers)}
        found.append(("joint", proxy.replace(**largest, width=max(widths, default=proxy.width)), settings.rule))
    if not found:
        raise UserError("nothing to verify: name sizes between proxy and target, such as --loops 4,8")
    found.insert(0, ("proxy", proxy, settings.rule))
    along = [name for name in ("lr", "strength") if name in settings.tuned]
    return [Probe(axis, size, rule, name) for name in along for axis, size, rule in found]


def jobs_of(settings: TuneSettings, probe: Probe, center: Values, seeds: int) -> dict[str, tuple[Any, Any]]:
    """Return key -> (cell, job config) of the trials that a probe needs."""
    jobs = (
        settings.job(settings.config(probe.size, values, seed, probe.rule), values)
        for values in probe.values(center)
        for seed in range(seeds)
    )
    return {key: (cell, record) for key, cell, record in jobs}


def flops_of(settings: TuneSettings, probe: Probe, center: Values, vocab_size: int) -> float:
    """Return FLOPs of one trial of the probe."""
    config = settings.config(probe.size, center, 0, probe.rule)
    return trial_flops(config, vocab_size, settings.user_code is not None)


Rows = list[list[float]]  # per seed: losses below, at and above the plan; inf where training diverged
Trials = Mapping[str, Trial]


def findings(
    plan: dict[str, Any],
    checks: Checks,
    taken: list[Probe],
    left: list[tuple[Probe, float]],
    trials: Trials,
    share: float,
) -> dict[str, Any]:
    """Read the report off the trials of the probes that were taken; those `left` did not fit the budget."""
    settings = TuneSettings.from_json(plan["settings"])
    center, seed_noise = dict(plan["proxy"]["values"]), plan["proxy"]["seed_noise"]
    tables = {probe: _table(settings, probe, center, checks.seeds, trials) for probe in taken}
    noises = {
        along: known_noise(plan, [rows for probe, rows in tables.items() if probe.along == along])
        for along in dict.fromkeys(probe.along for probe in taken)
    }
    reads = {probe: read_local(rows, noises[probe.along][0], seed) for seed, (probe, rows) in enumerate(tables.items())}
    local = [
        {
            "axis": probe.axis,
            "along": probe.along,
            "rule": probe.rule,
            "label": probe.label,
            "size": vars(probe.size),
            "losses": [[loss if math.isfinite(loss) else None for loss in row] for row in tables[probe]],
            "inside": read.inside,
            **as_json(read, seed_noise, checks.tolerance),
        }
        for probe, read in reads.items()
    ]
    found: dict[str, Any] = {
        "noise": {
            along: {"paired": None if noise is None else noise.size, "from": source}
            for along, (noise, source) in noises.items()
        },
        "allowed_regret": checks.tolerance,
        "local": local,
        "target": trends(settings, reads, checks.tolerance),
        "exponents": exponents(tables, noises["lr"][0] if "lr" in noises else None),
        "not_verified": _not_verified(settings, taken, left),
    }
    found |= _pays(settings, tables, plan["proxy"]["values"])
    found["verdict"] = _overall(settings, found)
    found["bound"] = _bound(settings, found)
    found["sentence"] = _headline(found)
    found["says"] = _caveats(settings, found, seed_noise, share)
    return found


def _pays(settings: TuneSettings, tables: dict[Probe, Rows], values: dict[str, float]) -> dict[str, Any]:
    """Compare the largest N that was verified with one loop, both with the plan's values, where the proxy has one."""
    at_plan = {
        probe.size.loops: [row[1] for row in rows]
        for probe, rows in tables.items()
        if probe.along == "lr" and probe.rule == settings.rule and probe.axis in ("proxy", "loops")
    }
    last = max(at_plan, default=1)
    if last == 1 or 1 not in at_plan:
        return {}
    beside = Beside(
        last,
        settings.proxy.steps,
        at_plan[last],
        at_plan[1],
        at_lower_end=at_lower_end(settings, values),
        each="both with the values of the plan",
    )
    return {"pays": does_looping_pay(beside).model_dump(mode="json", exclude_unset=True)}


def _table(settings: TuneSettings, probe: Probe, center: dict[str, float], seeds: int, trials: Trials) -> Rows:
    rows: Rows = [[] for _ in range(seeds)]
    for key, (cell, _) in jobs_of(settings, probe, center, seeds).items():
        rows[cell["seed"]].append(trials[key].height)
    return rows


def known_noise(plan: dict[str, Any], tables: list[Rows]) -> tuple[PairedNoise | None, str]:
    """Return the noise of a paired difference, and where it comes from.

    These checks' seeds, else the tuning's, else its fit. `tables` are the sweeps along one value: an octave of the rate
    moves a seed's loss more than an octave of the strength does.
    """
    pairs = [paired_noise([dict(enumerate(column)) for column in zip(*rows, strict=True)]) for rows in tables]
    known = [pair for pair in pairs if pair is not None]
    if known:
        freedom = sum(pair.freedom for pair in known)
        size = math.sqrt(sum(pair.freedom * pair.size**2 for pair in known) / freedom)
        return PairedNoise(size, freedom), "the seeds of these checks"
    proxy = plan["proxy"]
    if proxy["paired_noise"] is not None:
        return PairedNoise(proxy["paired_noise"], proxy["paired_freedom"]), "the seeds of the tuning"
    if proxy["surface"] is not None:
        # One trial's residual: a difference of two has sqrt(2) of it.
        return PairedNoise(
            math.sqrt(2) * proxy["surface"]["noise"], proxy["surface"]["freedom"]
        ), "the tuning's fitted surface"
    return None, "nowhere: one seed, and no surface was fitted"


def trends(settings: TuneSettings, reads: dict[Probe, Local], allowed: float = TOLERANCE) -> list[dict[str, Any]]:
    """Return the optimum's trend over each axis, from the proxy on, carried to the target."""
    sizes: dict[tuple[str, str, str], dict[int, Local]] = {}
    anchors = {probe.along: read for probe, read in reads.items() if probe.axis == "proxy"}
    for probe, read in reads.items():
        if probe.axis in ("loops", "layers", "width"):
            key = (probe.axis, probe.along, probe.rule)
            start = {getattr(settings.proxy, probe.axis): anchors[probe.along]} if probe.along in anchors else {}
            sizes.setdefault(key, start)[getattr(probe.size, probe.axis)] = read
    rows = []
    for (axis, along, rule), found in sizes.items():
        far = extrapolate(found, getattr(settings.target, axis))
        bowls = all(local.inside for local in found.values())
        rows.append(
            {
                "axis": axis,
                "along": along,
                "rule": rule,
                "at": getattr(settings.target, axis),
                "from": sorted(found),
                "regret": far.regret,
                "interval": None if far.interval is None else list(far.interval),
                "slope": far.slope,
                "verdict": verdict(far.regret, far.interval, allowed) if far.regret is None or bowls else "undecided",
            }
        )
    return rows


def exponents(tables: dict[Probe, Rows], noise: PairedNoise | None) -> list[dict[str, Any]]:
    """Return, over layers, the plan's loss under b = 1/2 (`looped`) minus b = 1 (`looped-complete`), paired."""
    at = {
        (probe.size.layers, probe.rule): [row[1] for row in rows]
        for probe, rows in tables.items()
        if probe.axis == "layers" and probe.along == "lr"
    }
    rows = []
    for count in sorted({layers for layers, _ in at}):
        half, one = (at.get((count, rule)) for rule in LAYER_RULES)
        if half is not None and one is not None:
            rows.append({"layers": count, **_compared(half, one, noise)})
    return rows


def _compared(half: list[float], one: list[float], noise: PairedNoise | None) -> dict[str, Any]:
    lost = {"b = 1/2": not all(map(math.isfinite, half)), "b = 1": not all(map(math.isfinite, one))}
    if any(lost.values()):
        said = " and ".join(name for name, diverged in lost.items() if diverged)
        return {"difference": None, "interval": None, "says": f"{said} diverged"}
    difference = fmean(a - b for a, b in zip(half, one, strict=True))
    if noise is None:
        return {"difference": difference, "interval": None, "says": "no noise is known, so the data do not decide"}
    error = noise.error(len(half))
    better = "b = 1" if difference > error else "b = 1/2" if difference < -error else None
    said = "the data do not decide" if better is None else f"{better} is better by {abs(difference):.4f} nats"
    return {"difference": difference, "interval": [difference - error, difference + error], "says": said}


def _not_verified(settings: TuneSettings, taken: list[Probe], left: list[tuple[Probe, float]]) -> list[str]:
    said = [f"{probe.label}: it did not fit the budget" for probe, _ in left]
    proxy, target = settings.proxy, settings.target
    moved = [axis for axis in ("loops", "layers", "width") if getattr(target, axis) != getattr(proxy, axis)]
    for axis in moved:
        if not any(probe.axis == axis for probe in taken):
            said.append(f"{axis} from {getattr(proxy, axis)} to {getattr(target, axis)}: carried by rule alone")
    for axis in ("steps", "batch"):
        here, there = getattr(proxy, axis), getattr(target, axis)
        if here != there:
            said.append(f"{axis} from {here} to {there}: carried by a published rule alone")
    if len(moved) > 1 and not any(probe.axis == "joint" for probe in taken):
        said.append(f"{' and '.join(moved)} together: each axis was looked at alone")
    swept = {probe.along for probe in taken if probe.axis != "proxy"}
    untouched = [name for name in settings.tuned if name not in swept]
    if untouched:
        said.append(f"{', '.join(untouched)}: tuned at the proxy, not swept at another size")
    if not any(probe.size == target for probe in taken):
        said.append(f"the target itself ({target}): its regret is extrapolated")
    return said


def _overall(settings: TuneSettings, found: dict[str, Any]) -> str:
    """Fail only where a size or its trend certainly does; a trend fails on no better ground than the sizes under it.

    What is extrapolated from sizes that are all undecided is undecided.
    """
    mine = [row for row in found["local"] if row["rule"] == settings.rule]
    verdicts = {row["verdict"] for row in mine}
    if verdicts != {"undecided"}:
        verdicts |= {row["verdict"] for row in found["target"] if row["rule"] == settings.rule}
    return "fails" if "fails" in verdicts else "undecided" if "undecided" in verdicts or not verdicts else "holds"


def _bound(settings: TuneSettings, found: dict[str, Any]) -> float | None:
    """Return the largest upper end of a regret, measured or extrapolated; None where one of them has none."""
    local, far = ([row for row in found[where] if row["rule"] == settings.rule] for where in ("local", "target"))
    ends = [row["interval"] for row in (*local, *far)]
    if None in ends or not far or not all(row["inside"] for row in local):
        return None
    return float(max(high for _, high in ends))


SAID = {
    "holds": "The plan holds",
    "fails": "The plan fails",
    "undecided": "The data do not decide whether the plan holds",
}


def _headline(found: dict[str, Any]) -> str:
    """Say the verdict, and what the plan loses at most where that is known: a person can decide by it."""
    said, most = SAID[found["verdict"]], found["bound"]
    if most is None or found["verdict"] == "fails":
        return f"{said}."
    allowed = f", and {found['allowed_regret']:g} is allowed" if found["verdict"] == "undecided" else ""
    return f"{said}: it loses at most {most:.2g} nats (95 %){allowed}."


def _caveats(settings: TuneSettings, found: dict[str, Any], seed_noise: float | None, share: float) -> list[str]:
    mine = [row for row in found["target"] if row["rule"] == settings.rule]
    expected = [
        f"Expected regret at the target, {row['along']} over {row['axis']} to {row['at']}: {_told(row, seed_noise)}."
        for row in mine
    ]
    return [
        *(expected or ["Nothing was carried to the target."]),
        f"A plan holds to at most {found['allowed_regret']:g} nats.",
        f"Cost: {share:.1%} of the FLOPs of a sweep at the target, tuning included.",
    ]


def _told(row: dict[str, Any], seed_noise: float | None) -> str:
    if row["regret"] is None:
        return "the plan diverged on the way"
    return f"{nats(row['regret'], row['interval'])}, {in_seed_noise(row['regret'], seed_noise)}"
