"""The page of one training run: loss, gradient norm, the stream over visits, speed, configuration."""

from __future__ import annotations

from pathlib import Path

from loopscale.files import write_text
from loopscale.report.chart import Axis, Chart, LegendEntry, Trace, log_axis
from loopscale.report.page import Section, Table, render_page
from loopscale.report.palette import Ink, number, sequential
from loopscale.report.run_info import RunInfo, Series, run_info, thinned
from loopscale.report.tables import provenance

_TRAIN, _VALID = Ink("#0b7a75", "#3fd0c4"), Ink("#a85b00", "#f2b04a")

_PARTS = (
    ("Gradient norm", "grad_norm", "gradient norm", True,
     "The norm of the gradient before clipping. A healthy run settles after warm-up; a norm that climbs for long "
     "precedes divergence."),
    ("Learning rate", "lr", "learning rate", False,
     "The rate of the schedule at every step, before the multipliers of the rule."),
    ("Speed", "tokens_per_second", "tokens per second", False,
     "Tokens trained per second. A run is undisturbed when the line is level; dips are evaluations and checkpoints."),
)  # fmt: skip


def write_run_report(run_dir: Path) -> Path:
    """Write report.html into a training run's folder; return its path.

    Raises `UserError` when the folder is missing or damaged, `MissingExtraError` without plotly.
    """
    text = page(run_info(run_dir))
    target = run_dir / "report.html"
    write_text(target, text)
    return target


def page(run: RunInfo) -> str:
    """The run's page as HTML."""
    return render_page(f"Run {run.name}", _lead(run), sections(run), provenance(run.provenance), kind="loopscale run")


def sections(run: RunInfo) -> list[Section]:
    """A section for every quantity that the run recorded, then its configuration."""
    parts = [_loss(run)] if run.series["loss"] or run.series["val_loss"] else []
    for title, name, axis, log, reading in _PARTS:
        series = run.series[name]
        if series:
            height = log_axis(axis, [value for _, value in series]) if log else Axis(axis)
            chart = Chart(name, f"{title} over steps.", Axis("step"), height, [_trace(axis, series, _TRAIN)])
            parts.append(Section(title, figure=chart, how_to_read=reading, table=_numbers(axis, series)))
    if run.profiles:
        parts.insert(1, _stream(run))
    if run.config:
        parts.append(Section("Configuration", table=Table(("key", "value"), provenance(run.config))))
    return parts


def _lead(run: RunInfo) -> str:
    val, loss = run.series["val_loss"], run.series["loss"]
    best = min(val, key=lambda point: point[1]) if val else None
    if best:
        return f"After {run.last_step} steps the best validation loss is {number(best[1])} nats, at step {best[0]}."
    if loss:
        return f"After {run.last_step} steps the training loss is {number(loss[-1][1])} nats."
    return f"The run has {run.last_step} steps and recorded no finite loss."


def _loss(run: RunInfo) -> Section:
    traces, legend = [], []
    for name, label, ink in (("loss", "training", _TRAIN), ("val_loss", "validation", _VALID)):
        if run.series[name]:
            traces.append(_trace(label, run.series[name], ink) | {"legendgroup": name})
            legend.append(LegendEntry(name, label, ink))
    chart = Chart("loss", "Loss over steps.", Axis("step"), Axis("loss (nats)"), traces, legend=legend)
    reading = "Training goes well when both lines fall together; a widening gap between them is overfitting."
    key = "val_loss" if run.series["val_loss"] else "loss"
    return Section("Loss", figure=chart, how_to_read=reading, table=_numbers(key, run.series[key]))


def _trace(label: str, series: Series, ink: Ink) -> Trace:
    few = len(series) <= 40
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "x": [step for step, _ in series],
        "y": [value for _, value in series],
        "line": {"color": ink.light, "width": 1.6},
        "marker": {"color": ink.light, "size": 6},
        "hoverinfo": "text",
        "hovertext": [f"step {step}<br>{label} {number(value, 4)}" for step, value in series],
    }


def _numbers(name: str, series: Series) -> Table:
    rows = [(str(step), number(value, 4)) for step, value in thinned(series, 25)]
    return Table(("step", name), rows)


def _stream(run: RunInfo) -> Section:
    """The stream over visits at up to six steps of training."""
    count = len(run.profiles)
    picked = sorted({round(i * (count - 1) / 5) for i in range(6)})
    shown = [run.profiles[i] for i in picked]
    inks = sequential(len(shown))
    traces = []
    for (step, rms), ink in zip(shown, inks, strict=True):
        points = tuple((visit, value) for visit, value in enumerate(rms) if value)
        texts = [f"<b>step {step}</b><br>visit {visit}: RMS {number(value)}" for visit, value in points]
        made = _trace("RMS", points, ink) | {"hovertext": texts, "legendgroup": str(step)}
        traces.append(made)
    legend = [LegendEntry(str(step), f"step {step}", ink) for (step, _), ink in zip(shown, inks, strict=True)]
    label = "RMS of the residual stream after each visit, at several steps of training."
    height = log_axis("RMS of the stream", [value for _, rms in shown for value in rms if value])
    chart = Chart("stream", label, Axis("visit (0 is the entry)"), height, traces, legend=legend)
    rows = [(str(step), str(visit), number(value)) for step, rms in shown for visit, value in enumerate(rms)]
    reading = (
        "Root mean square of the residual stream after each visit, from early steps to late ones. The scaling does its "
        "work when the stream stays of one order over the visits; steady growth means that visits add up unscaled."
    )
    return Section("Stream over visits", figure=chart, how_to_read=reading, table=Table(("step", "visit", "RMS"), rows))
