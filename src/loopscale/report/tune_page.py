"""The page of a tuning: the values at the target, the losses they rest on, what verification found and did not."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, median

from loopscale.errors import UserError
from loopscale.records import Journal, Plan, Proxy, Record, Row, Sweep, Trial, Verification, read_record
from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.page import Section, Table, explained, provenance, render_page, split, write_page
from loopscale.report.palette import ABOVE, MEASURED, TUNED, Look, nice_ticks, number, plain, power_ticks, sequential

MOST_POINTS, MARGIN = 600, 0.05  # around the points, as a share of their range
_UNVERIFIED = "Nothing of it has been verified yet."


class TuneInfo(Record):
    """A tuning as read."""

    name: str
    plan: Plan
    trials: tuple[Trial, ...]


def tune_info(folder: Path) -> TuneInfo:
    """Read plan.json and the trials of a tuning; raises `UserError` when there is none, or it is unfinished or damaged."""
    path = folder / "plan.json"
    if not (folder / "tune.json").exists():
        raise UserError(f"{folder} holds no tune.json: give the folder that `loopscale tune` wrote")
    if not path.exists():
        raise UserError(
            f"the tuning in {folder} has no plan yet: run `loopscale tune` again to finish it, or watch it with --serve"
        )
    plan, journal = read_record(path, Plan), Journal(folder)
    journal.check_count(plan.provenance.get("trials"), Plan.FIX)
    return TuneInfo(name=folder.resolve().name, plan=plan, trials=journal.by_key())


def write_tune_report(folder: Path) -> Path:
    """Write report.html into a tuning's folder; return its path. Raises `UserError` as `tune_info` does."""
    return write_page(folder, page(tune_info(folder)))


def page(tuning: TuneInfo) -> str:
    """Return the tuning's page as HTML."""
    found = tuning.plan.verification
    verified = f"Verified in between: {found.sentence[0].lower()}{found.sentence[1:]}" if found else _UNVERIFIED
    lead, rows = f"{tuning.plan.sentence} {verified}", provenance(tuning.plan.provenance)
    return render_page(f"Tuning {tuning.name}", lead, sections(tuning), rows, kind="loopscale tuning")


def sections(tuning: TuneInfo) -> list[Section]:
    """Return values, then the losses over each of them, verification, what the rule applies, cost."""
    plan = tuning.plan
    told = " ".join(filter(None, (*plan.says, plan.next, _moved(tuning))))
    parts = [Section("Values at the target", told, table=_values(tuning))]
    parts += [_explored(tuning, name) for name in plan.proxy.values]
    parts += [Section("Does looping pay?", plan.pays.sentence)] if plan.pays else []
    parts += _verified(plan.verification) if plan.verification else []
    changed, same = split(_applied(tuning))
    text = "Every number at the target that differs from 1, and why."
    parts.append(Section("What the rule applies", text, table=changed, more=same))
    parts.append(Section("Cost", table=Table(("what", "value"), provenance(plan.cost))))
    return parts


def _moved(tuning: TuneInfo) -> str:
    said = [f"{row.name} x {row.factor:.4g}: {row.why} ({row.source})." for row in tuning.plan.moved]
    return " ".join(["Moved to the target's steps and batch:", *said]) if said else ""


def _values(tuning: TuneInfo) -> Table:
    rows = [
        (row.name, plain(row.value), _span(row, tuning.plan.proxy), row.why)
        for row in tuning.plan.rows
        if row.source == "this tuning"
    ]
    return Table(("name", "value", "95 % interval", "from"), rows)


def _span(row: Row, proxy: Proxy) -> str:
    if row.interval is None:
        return "none, see above" if row.name in proxy.values else "n/a, not tuned"
    side = f", open {proxy.open[row.name]}" if row.name in proxy.open else ""
    return f"[{row.interval[0]:.2g}, {row.interval[1]:.2g}]{side}"


def _bar(name: str, proxy: Proxy) -> str:
    """Return what is said of the diamond's bar."""
    if not proxy.intervals.get(name):
        return f"without a bar: no interval is known ({proxy.interval_note.removeprefix('no intervals: ')})"
    if name in proxy.open:
        return f"and the bar its 95 % interval, open {proxy.open[name]}: it ends where the explored points do"
    return "and the bar its 95 % interval"


def _applied(tuning: TuneInfo) -> Table:
    rows = [
        (row.name, plain(row.value), "" if row.rate is None else plain(row.rate), row.why, row.source)
        for row in tuning.plan.rows
        if row.source != "this tuning"
    ]
    return Table(("name", "value", "as a rate", "why", "source"), rows)


def _explored(tuning: TuneInfo, name: str) -> Section:
    """Draw loss over one tuned value; colour shows the next one."""
    proxy, axis = tuning.plan.proxy, Axis(name.replace("_", " "), log=name != "warmup")
    names = list(proxy.values)
    other = names[(names.index(name) + 1) % len(names)]
    finished = lowest(
        [t for t in tuning.trials if t.cell.explored and t.loss is not None and name in t.cell.values], name
    )
    shade = None if other == name else _shade(other, [t.cell.values[other] for t in finished if other in t.cell.values])
    top = _ceiling([t.loss for t in finished if t.loss is not None] or [proxy.loss])
    marks = [
        Mark(_place(name, t.cell.values[name]), min(t.loss, top), "explored", _told(t),
             shape=ABOVE if t.loss > top else "", shade=t.cell.values.get(other) if shade else None)
        for t in finished
        if t.loss is not None
    ]  # fmt: skip
    best, ends = _place(name, proxy.values[name]), proxy.intervals.get(name)
    said = {"what": "tuned", name: plain(proxy.values[name]), "loss": number(proxy.loss, 4)}
    across = (_place(name, ends[0]), _place(name, ends[1])) if ends else None
    marks.append(Mark(best, proxy.loss, "tuned", said, shape="diamond", across=across))
    if axis.log:
        low, high = span = _span_of([*(mark.x for mark in marks), *(across or ())])
        axis = Axis(axis.title, power_ticks(low, high), span)
    figure = Figure(
        f"loss-over-{name}",
        f"Loss over {name}, explored points and the tuned value.",
        axis,
        Axis("validation loss (nats)", None, _span_of([mark.y for mark in marks if mark.y is not None])),
        {"explored": MEASURED, "tuned": TUNED},
        marks,
        shade=shade,
    )
    shaded = f", and its colour is {shade.title}" if shade else ""
    return explained(figure, words="loss-over-value", value=name.replace("_", " "), bar=_bar(name, proxy), shade=shaded)


def _shade(name: str, values: list[float]) -> Axis:
    """Return the scale of colours of a value, its ends and middle named."""
    log, low, high = name != "warmup", min(values, default=1.0), max(values, default=1.0)
    middle = math.sqrt(low * high) if log else (low + high) / 2
    return Axis(name.replace("_", " "), dict.fromkeys(sorted({low, middle, high}), ""), log=log)


def _span_of(places: list[float]) -> tuple[float, float]:
    margin = MARGIN * (max(places) - min(places)) or MARGIN
    return min(places) - margin, max(places) + margin


def _ceiling(losses: list[float]) -> float:
    """Return where the axis of losses ends: those far above the better half would flatten the valley."""
    low = min(losses)
    return min(max(losses), low + max(5 * (median(losses) - low), 0.02))


def _place(name: str, value: float) -> float:
    """Return where a value stands on its axis, which is logarithmic but for the warm-up."""
    return value if name == "warmup" else math.log2(value)


def lowest(trials: list[Trial], name: str) -> list[Trial]:
    """Keep of very many trials those that tell: the ten lowest losses in each of 60 stretches of the axis."""
    if len(trials) <= MOST_POINTS:
        return trials
    places = [_place(name, trial.cell.values[name]) for trial in trials]
    low, wide = min(places), (max(places) - min(places)) / 60 or 1.0
    stretches: dict[int, list[Trial]] = {}
    for place, trial in zip(places, trials, strict=True):
        stretches.setdefault(int((place - low) / wide), []).append(trial)
    return [t for group in stretches.values() for t in sorted(group, key=lambda t: (t.loss or 0.0, t.cell.seed))[:10]]


def _told(trial: Trial) -> dict[str, str]:
    values = {name: plain(value) for name, value in trial.cell.values.items()}
    return {"what": "explored", **values, "seed": str(trial.cell.seed), "loss": number(trial.loss, 4)}


def _verified(found: Verification) -> list[Section]:
    header = ("where", "regret (nats)", "95 % interval", "in seed noise", "verdict")
    local = [(row.label, _regret(row.regret), _known(row.interval), _noise(row), row.verdict) for row in found.local]
    carried = [
        (f"{row.along} over {row.axis} to {row.at}, {row.rule}", _regret(row.regret), _known(row.interval),
         "n/a" if row.slope is None else number(row.slope, 2), row.verdict)
        for row in found.target
    ]  # fmt: skip
    last = ("carried to the target", *header[1:3], "octaves per doubling", "verdict")
    said = " ".join(filter(None, (found.sentence, *found.says, found.next)))
    parts = [
        explained(_sweeps(found), said, verdict=found.verdict),
        Section("Regret at each size", table=Table(header, local)),
        Section("Regret at the target", "Extrapolated, not trained.", table=Table(last, carried)),
    ]  # fmt: skip
    if found.pays is not None:
        parts.append(Section("Does looping pay?", found.pays.sentence))
    if found.exponents:
        rows = [(str(row.layers), _fixed(row.difference), _known(row.interval), row.says) for row in found.exponents]
        text = "The plan's loss under b = 1/2 (looped) minus that under b = 1 (looped-complete), paired over seeds."
        named = Table(("layers", "difference (nats)", "95 % interval", "the data say"), rows)
        parts.append(Section("Which b holds over layers", text, table=named))
    not_verified = Table(("no check has touched",), [(said,) for said in found.not_verified])
    return [*parts, Section("Not verified", table=not_verified)]


def _regret(regret: float | None) -> str:
    return "the plan diverged" if regret is None else _fixed(regret)


def _known(pair: tuple[float, float] | None) -> str:
    return "none: no noise is known" if pair is None else f"[{_fixed(pair[0])}, {_fixed(pair[1])}]"


def _fixed(value: float | None) -> str:
    """Return four decimals whatever the size: a regret of a millionth of a nat is none."""
    return "n/a" if value is None else number(round(value, 4), 4) if round(value, 4) else "0.0000"


def _noise(row: Sweep) -> str:
    return "n/a" if row.in_seed_noise is None else f"{row.in_seed_noise:.2g}"


def _sweeps(found: Verification) -> Figure:
    """Draw a line per size, a panel per tuned value: loss minus the plan's, over octaves from the plan."""
    labels = list(dict.fromkeys(_where(row) for row in found.local))
    marks = []
    for row in found.local:
        means = _means(row)
        plan = means[1]
        for octave, mean in zip((-1, 0, 1), means, strict=True):
            above = None if mean is None or plan is None else mean - plan
            loss = "diverged" if mean is None else number(mean, 4)
            said = {"where": row.label, "value": f"{row.along} x {2.0**octave:g}", "mean loss": loss}
            marks.append(Mark(octave, above, _where(row), said, row.along, "solid"))
    heights = [0.0, *(mark.y for mark in marks if mark.y is not None)]
    return Figure(
        "verification",
        "Loss of the plan's neighbours minus the plan's, at each size that was verified.",
        Axis("octaves from the plan", {-1: "\N{MINUS SIGN}1", 0: "0", 1: "+1"}),
        Axis("loss minus the plan's (nats)", {tick: f"{tick:g}" for tick in nice_ticks(min(heights), max(heights), 6)}),
        {label: Look(ink) for label, ink in zip(labels, sequential(len(labels)), strict=True)},
        marks,
        panels=list(dict.fromkeys(row.along for row in found.local)),
    )


def _means(row: Sweep) -> list[float | None]:
    columns = zip(*row.losses, strict=True)
    return [None if None in column else fmean(x for x in column if x is not None) for column in columns]


def _where(row: Sweep) -> str:
    return row.label.replace(f" ({row.along}", " (").replace("(, ", "(").removesuffix(" ()")
