"""The page of one training run: loss, gradient norm, the stream over visits, speed, configuration."""

from __future__ import annotations

from pathlib import Path

from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.figures import log_axis, visit_axis
from loopscale.report.page import Section, Table, render_page, write_page
from loopscale.report.palette import MEASURED, SECOND, Look, number, sequential
from loopscale.report.run_info import RunInfo, Series, run_info
from loopscale.report.tables import provenance

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

    Raises `UserError` when the folder is missing or damaged.
    """
    return write_page(run_dir, page(run_info(run_dir)))


def page(run: RunInfo) -> str:
    """Return the run's page as HTML."""
    return render_page(f"Run {run.name}", _lead(run), sections(run), provenance(run.provenance), kind="loopscale run")


def sections(run: RunInfo) -> list[Section]:
    """Return a section for every quantity that the run recorded, then its configuration."""
    parts = [_loss(run)] if run.series["loss"] or run.series["val_loss"] else []
    for title, name, axis, log, reading in _PARTS:
        series = run.series[name]
        if series:
            height = log_axis(axis, [value for _, value in series]) if log else Axis(axis)
            marks = _line(axis, series)
            figure = Figure(name, f"{title} over steps.", Axis("step"), height, {axis: MEASURED}, marks)
            parts.append(Section(title, figure=figure, how_to_read=reading))
    if run.profiles:
        parts.insert(1, _stream(run))
    if run.config:
        parts.append(Section("Configuration", table=Table(("key", "value"), provenance(run.config))))
    return parts


def _lead(run: RunInfo) -> str:
    """Say the number first: what the training was for."""
    val, loss = run.series["val_loss"], run.series["loss"]
    best = min(val, key=lambda point: point[1]) if val else None
    if best:
        return f"{number(best[1])} nats is the best validation loss after {run.last_step} steps, at step {best[0]}."
    if loss:
        return f"{number(loss[-1][1])} nats is the training loss after {run.last_step} steps."
    return f"The run has {run.last_step} steps and recorded no finite loss."


def _loss(run: RunInfo) -> Section:
    series = {label: run.series[name] for label, name in (("training", "loss"), ("validation", "val_loss"))}
    marks = [mark for label, values in series.items() for mark in _line(label, values)]
    drawn = {label: look for label, look in (("training", MEASURED), ("validation", SECOND)) if series[label]}
    figure = Figure("loss", "Loss over steps.", Axis("step"), Axis("loss (nats)"), drawn, marks)
    reading = "Training goes well when both lines fall together; a widening gap between them is overfitting."
    return Section("Loss", figure=figure, how_to_read=reading)


def _line(label: str, series: Series) -> list[Mark]:
    bare = "none" if len(series) > 40 else ""
    return [
        Mark(
            step, value, label, {"what": label, "step": str(step), "value": number(value, 4)}, line="solid", shape=bare
        )
        for step, value in series
    ]


def _stream(run: RunInfo) -> Section:
    """Return the stream over visits at up to six steps of training."""
    count = len(run.profiles)
    shown = [run.profiles[i] for i in sorted({round(i * (count - 1) / 5) for i in range(6)})]
    inks = sequential(len(shown))
    marks = [
        Mark(visit, value, f"step {step}", {"step": str(step), "visit": str(visit), "RMS": number(value)}, line="solid")
        for step, rms in shown
        for visit, value in enumerate(rms)
        if value
    ]
    figure = Figure(
        "stream",
        "RMS of the residual stream after each visit, at several steps of training.",
        visit_axis(marks),
        log_axis("RMS of the stream", [mark.y for mark in marks if mark.y]),
        {f"step {step}": Look(ink) for (step, _), ink in zip(shown, inks, strict=True)},
        marks,
    )
    reading = (
        "Root mean square of the residual stream after each visit, from early steps to late ones. The scaling does its "
        "work when the stream stays of one order over the visits; steady growth means that visits add up unscaled."
    )
    return Section("Stream over visits", figure=figure, how_to_read=reading)
