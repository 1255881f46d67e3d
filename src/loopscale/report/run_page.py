"""The page of one training run, from its folder: loss, gradient norm, the stream over visits, speed, configuration."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loopscale.errors import UserError
from loopscale.files import check_folder
from loopscale.records import Provenance, clean, content_hash, read_record, read_steps
from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.figures import log_axis, visit_axis
from loopscale.report.page import Section, Table, explained, provenance, render_page, write_page
from loopscale.report.palette import MEASURED, SECOND, Look, number, sequential

Series = tuple[tuple[int, float], ...]

MOST_POINTS = 300


@dataclass(frozen=True)
class RunInfo:
    """A run as read. `profiles` holds (step, RMS of the stream after each visit)."""

    name: str
    last_step: int
    series: dict[str, Series]
    profiles: tuple[tuple[int, tuple[float | None, ...]], ...]
    config: dict[str, Any]
    provenance: dict[str, Any]


def run_info(run_dir: Path) -> RunInfo:
    """Read metrics.jsonl, and config.toml and provenance.json where present.

    Raises `UserError` when the folder holds no run, or a record is damaged. A last line cut off by a killed run is
    ignored: that is the state in which a run may be resumed.
    """
    path = run_dir / "metrics.jsonl"
    check_folder(run_dir, "give the folder that `loopscale train` wrote")
    if not path.exists():
        raise UserError(f"{run_dir} holds no metrics.jsonl: give the folder that `loopscale train` wrote")
    lines = read_steps(path)
    if not lines:
        raise UserError(f"{path} holds no step yet: wait for the first step, or run `loopscale train` again")
    numbers = ("loss", "val_loss", "grad_norm", "tokens_per_second", "lr")
    profiles = tuple(
        (line["step"], tuple(_finite(rms) for rms in line["stream_rms"]))
        for line in lines
        if isinstance(line.get("stream_rms"), list) and line["stream_rms"]
    )
    fix = "restore it, or delete it to make the page without it"
    origin = run_dir / "provenance.json"
    provenance = read_record(origin, Provenance) if origin.exists() else Provenance()
    config = _config(run_dir / "config.toml", fix)
    if provenance.config is not None and config and content_hash(config) != provenance.config:
        raise UserError(
            f"{run_dir / 'config.toml'} was edited since the run was trained with it: {fix}, or resume the run"
        )
    return RunInfo(
        name=clean(run_dir.resolve().name),
        last_step=lines[-1]["step"],
        series={name: thinned(_series(lines, name), MOST_POINTS) for name in numbers},
        profiles=profiles,
        config=config,
        provenance=clean(provenance.model_dump(exclude_unset=True)),
    )


def thinned(series: Series, most: int) -> Series:
    """Keep at most `most` points: of each stretch the lowest and the highest, so that no spike is lost.

    >>> thinned(((0, 1.0), (1, 9.0), (2, 3.0), (3, 2.0), (4, 2.5), (5, 2.2)), 4)
    ((0, 1.0), (1, 9.0), (3, 2.0), (4, 2.5))
    """
    if len(series) <= most:
        return series
    stretches = most // 2
    bounds = [round(i * len(series) / stretches) for i in range(stretches + 1)]
    kept: set[tuple[int, float]] = set()
    for start, end in pairwise(bounds):
        kept |= {extreme(series[start:end], key=lambda point: point[1]) for extreme in (min, max)}
    return tuple(sorted(kept))


def _series(lines: Iterable[dict[str, Any]], name: str) -> Series:
    found = ((line["step"], _finite(line.get(name))) for line in lines)
    return tuple((step, value) for step, value in found if value is not None)


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _config(path: Path, fix: str) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return clean(tomllib.loads(path.read_text(encoding="utf-8")))  # type: ignore[no-any-return]
    except (OSError, ValueError) as cause:
        raise UserError(f"{path} is damaged (not valid TOML): {fix}") from cause


_PARTS = (  # name, axis, whether that is logarithmic
    ("grad_norm", "gradient norm", True),
    ("lr", "learning rate", False),
    ("tokens_per_second", "tokens per second", False),
)


def write_run_report(run_dir: Path) -> Path:
    """Write report.html into a run's folder; return its path. Raises `UserError` when it is missing or damaged."""
    return write_page(run_dir, page(run_info(run_dir)))


def page(run: RunInfo) -> str:
    """Return the run's page as HTML."""
    return render_page(f"Run {run.name}", _lead(run), sections(run), provenance(run.provenance), kind="loopscale run")


def sections(run: RunInfo) -> list[Section]:
    """Return a section for every quantity that the run recorded, then its configuration."""
    parts = [_loss(run)] if run.series["loss"] or run.series["val_loss"] else []
    for name, axis, log in _PARTS:
        series = run.series[name]
        if series:
            height, label = log_axis(axis, [value for _, value in series]) if log else Axis(axis), axis.capitalize()
            figure = Figure(name, f"{label} over steps.", Axis("step"), height, {axis: MEASURED}, _line(axis, series))
            parts.append(explained(figure))
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
    return explained(Figure("loss", "Loss over steps.", Axis("step"), Axis("loss (nats)"), drawn, marks))


def _line(label: str, series: Series) -> list[Mark]:
    bare = "none" if len(series) > 40 else ""
    said = [{"what": label, "step": str(step), "value": number(value, 4)} for step, value in series]
    return [Mark(*point, label, words, line="solid", shape=bare) for point, words in zip(series, said, strict=True)]


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
    return explained(figure)
