"""The page of a tuning: the values at the target, the losses they rest on, what verification found and did not."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from loopscale.files import write_text
from loopscale.records import Proxy, Row, Sweep, Trial, Verification
from loopscale.report.chart import Axis, Chart, LegendEntry, Trace, on_panel, power_ticks
from loopscale.report.page import Section, Table, render_page
from loopscale.report.palette import Ink, nice_ticks, number, plain, sequential, whole_ticks
from loopscale.report.tables import provenance
from loopscale.report.tune_info import TuneInfo, tune_info

_POINT, _BEST = Ink("#0b7a75", "#3fd0c4"), Ink("#a85b00", "#f2b04a")
_UNVERIFIED = "Nothing of it has been verified yet."
_VERDICTS = {
    "holds": "Verified in between: the plan holds.",
    "fails": "Verified in between: the plan fails.",
    "undecided": "Verified in between: the data do not decide whether the plan holds.",
}
_EXPLORED = (
    "Every explored point that finished, with one seed; the large diamond is the tuned value at its mean over seeds, "
    "{bar}. The tuning is sound when the points fall towards the diamond from both sides; one at the end of the points is "
    "a bound, not an optimum."
)
_SWEPT = (
    "At each size: the plan and its neighbours an octave below and above, as the difference of loss to the plan, mean over "
    "seeds. The plan holds when the middle is the lowest, or close to it, at every size."
)


def write_tune_report(folder: Path) -> Path:
    """Write report.html into a tuning's folder; return its path.

    Raises `UserError` when the folder is missing, unfinished or damaged, `MissingExtraError` without plotly.
    """
    text = page(tune_info(folder))
    write_text(folder / "report.html", text)
    return folder / "report.html"


def page(tuning: TuneInfo) -> str:
    """The tuning's page as HTML."""
    found = tuning.plan.verification
    lead = f"{tuning.plan.headline} {_VERDICTS.get(found.verdict, found.verdict) if found else _UNVERIFIED}"
    rows = provenance(tuning.plan.provenance)
    return render_page(f"Tuning {tuning.name}", lead, sections(tuning), rows, kind="loopscale tuning")


def sections(tuning: TuneInfo) -> list[Section]:
    """Values, then the losses over each of them, verification, what the rule applies, cost."""
    plan = tuning.plan
    told = f"{plan.sentence} {_moved(tuning)}"
    parts = [Section("Values at the target", told, table=_values(tuning))]
    parts += [_explored(tuning, name) for name in plan.proxy.values]
    parts += _verified(plan.verification) if plan.verification else []
    parts.append(Section("What the rule applies", "Every number at the target, and why.", table=_applied(tuning)))
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
    """What is said of the diamond's bar."""
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
    proxy, linear = tuning.plan.proxy, name == "warmup"
    finished = [t for t in tuning.trials if t.cell.explored and t.loss is not None and name in t.cell.values]

    def at(value: float) -> float:
        return value if linear else math.log2(value)

    xs, ys = [at(t.cell.values[name]) for t in finished], [t.loss for t in finished if t.loss is not None]
    best, ends = at(proxy.values[name]), proxy.intervals.get(name)
    diamond: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [best],
        "y": [proxy.loss],
        "marker": {"color": _BEST.light, "size": 12, "symbol": "diamond"},
        "hoverinfo": "text",
        "hovertext": [f"<b>tuned</b><br>{name} {plain(proxy.values[name])}<br>loss {number(proxy.loss, 4)}"],
        "legendgroup": "tuned",
    }
    if ends:
        low, high = (abs(best - at(end)) for end in ends)
        diamond["error_x"] = {"type": "data", "symmetric": False, "array": [high], "arrayminus": [low], "thickness": 2}
    points: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": xs,
        "y": ys,
        "marker": {"color": _POINT.light, "size": 7},
        "hoverinfo": "text",
        "hovertext": [_told(trial) for trial in finished],
        "legendgroup": "explored",
    }
    ticks = None if linear else power_ticks(whole_ticks(min([*xs, best]) - 0.5, max([*xs, best]) + 0.5))
    chart = Chart(
        f"loss-over-{name}",
        f"Loss over {name}, explored points and the tuned value.",
        Axis(name.replace("_", " "), ticks),
        Axis("validation loss (nats)"),
        [points, diamond],
        legend=[LegendEntry("explored", "explored", _POINT), LegendEntry("tuned", "tuned", _BEST)],
    )
    rows = [(plain(t.cell.values[name]), number(t.loss, 4), str(t.cell.seed)) for t in finished]
    return Section(
        f"Loss over {name.replace('_', ' ')}",
        figure=chart,
        how_to_read=_EXPLORED.format(bar=_bar(name, proxy)),
        table=Table((name, "loss", "seed"), sorted(rows, key=lambda row: float(row[0]))),
    )


def _told(trial: Trial) -> str:
    values = "<br>".join(f"{name} {plain(value)}" for name, value in trial.cell.values.items())
    return f"{values}<br>seed {trial.cell.seed}: loss {number(trial.loss, 4)}"


def _verified(found: Verification) -> list[Section]:
    header = ("where", "regret (nats)", "95 % interval", "in seed noise", "verdict")
    local = [(row.label, _regret(row.regret), _known(row.interval), _noise(row), row.verdict) for row in found.local]
    carried = [
        (f"{row.along} over {row.axis} to {row.at}, {row.rule}", _regret(row.regret), _known(row.interval),
         "n/a" if row.slope is None else number(row.slope, 2), row.verdict)
        for row in found.target
    ]  # fmt: skip
    last = ("carried to the target", *header[1:3], "octaves per doubling", "verdict")
    parts = [
        Section(f"Verification: {found.verdict}", found.sentence, figure=_sweeps(found), how_to_read=_SWEPT,
                table=_losses(found)),
        Section("Regret at each size", table=Table(header, local)),
        Section("Regret at the target", "Extrapolated, not trained.", table=Table(last, carried)),
    ]  # fmt: skip
    if found.exponents:
        rows = [
            (
                str(row.layers),
                "n/a" if row.difference is None else _fixed(row.difference),
                _known(row.interval),
                row.says,
            )
            for row in found.exponents
        ]
        text = "The plan's loss under b = 1/2 (looped) minus that under b = 1 (looped-complete), paired over seeds."
        named = Table(("layers", "difference (nats)", "95 % interval", "the data say"), rows)
        parts.append(Section("Which b holds over layers", text, table=named))
    not_verified = Table(("no check has touched",), [(said,) for said in found.not_verified])
    return [*parts, Section("Not verified", table=not_verified)]


def _regret(regret: float | None) -> str:
    return "the plan diverged" if regret is None else _fixed(regret)


def _known(pair: tuple[float, float] | None) -> str:
    return "none: no noise is known" if pair is None else f"[{_fixed(pair[0])}, {_fixed(pair[1])}]"


def _fixed(value: float) -> str:
    """Four decimals whatever the size: a regret of a millionth of a nat is none."""
    return number(round(value, 4), 4) if round(value, 4) else "0.0000"


def _noise(row: Sweep) -> str:
    return "n/a" if row.in_seed_noise is None else f"{row.in_seed_noise:.2g}"


def _sweeps(found: Verification) -> Chart:
    """A line a size, a panel a tuned value: loss minus the plan's, over octaves from the plan."""
    alongs = list(dict.fromkeys(row.along for row in found.local))
    labels = list(dict.fromkeys(_where(row) for row in found.local))
    inks = dict(zip(labels, sequential(len(labels)), strict=True))
    traces, heights = [], [0.0]
    for row in found.local:
        means = _means(row)
        plan = means[1]
        shown = [] if plan is None else [(o, m - plan) for o, m in zip((-1, 0, 1), means, strict=True) if m is not None]
        heights += [y for _, y in shown]
        where, ink = _where(row), inks[_where(row)]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [x for x, _ in shown],
                "y": [y for _, y in shown],
                "line": {"color": ink.light, "width": 1.6},
                "marker": {"color": ink.light, "size": 7},
                "hoverinfo": "text",
                "hovertext": [f"<b>{where}</b><br>{row.along} x {2.0**x:g}: {number(y, 4)} nats" for x, y in shown],
                "legendgroup": where,
                **on_panel(alongs.index(row.along) + 1),
            }
        )
    ticks = {tick: f"{tick:g}" for tick in nice_ticks(min(heights), max(heights), 6)}
    return Chart(
        "verification",
        "Loss of the plan's neighbours minus the plan's, at each size that was verified.",
        Axis("octaves from the plan", {-1: "\N{MINUS SIGN}1", 0: "0", 1: "+1"}),
        Axis("loss minus the plan's (nats)", ticks),
        traces,
        panels=alongs,
        legend=[LegendEntry(label, label, inks[label]) for label in labels],
    )


def _means(row: Sweep) -> list[float | None]:
    columns = zip(*row.losses, strict=True)
    return [None if None in column else fmean(x for x in column if x is not None) for column in columns]


def _losses(found: Verification) -> Table:
    rows = [
        (row.label, *("diverged" if mean is None else number(mean, 4) for mean in _means(row))) for row in found.local
    ]
    return Table(("where", "mean loss an octave below", "at the plan", "an octave above"), rows)


def _where(row: Sweep) -> str:
    return row.label.replace(f" ({row.along}", " (").replace("(, ", "(").removesuffix(" ()")
