"""The numbers behind each figure as a table: the text alternative of the picture."""

from __future__ import annotations

from typing import Any

from loopscale.records import Optimum
from loopscale.report.info import StudyInfo, curves, seed_range, share, shares, streams, strength_curves
from loopscale.report.page import Table
from loopscale.report.palette import interval, number, power

_NB = "\N{NO-BREAK SPACE}"


def tables(study: StudyInfo) -> dict[str, Table]:
    """One table for every figure of a study, by the figure's name."""
    return {
        "loss-over-rate": loss_over_rate(study),
        "optimum-over-loops": optimum_over_loops(study),
        "loss-over-loops": loss_over_loops(study),
        "stream-over-visits": stream_over_visits(study),
        "diverged-cells": diverged_cells(study),
        "loss-over-strength": loss_over_strength(study),
    }


def loss_over_rate(study: StudyInfo) -> Table:
    """Every swept rate with its mean loss and range over seeds."""
    rows = []
    for name, rule in study.rules.items():
        for curve in curves(rule):
            for point in curve.points:
                cell, span = share(curve.loops, point), seed_range(point)
                lost = f"{cell.diverged} of {cell.seeds}" if cell.diverged else ""
                loss = number(point.loss, 4) if point.loss is not None else ""
                rows.append((name, str(curve.loops), power(point.lr), f"{point.lr:.4g}", loss, interval(span, 4), lost))
    return Table(("rule", "N", "rate", "rate (decimal)", "mean loss", "over seeds", "diverged"), rows)


def optimum_over_loops(study: StudyInfo) -> Table:
    """The fitted optima with their intervals."""
    rows = []
    for name, rule in study.rules.items():
        for loops, best in sorted(rule.optima.items()):
            span = interval(best.lr_interval, 5) or _why_none(best)
            edge = "yes" if best.edge else "no"
            rows.append((name, str(loops), power(best.lr), f"{best.lr:.5g}", span, str(best.n_seeds), edge))
    return Table(("rule", "N", "optimum", "decimal", "interval", "seeds", "at the edge of the sweep"), rows)


def _why_none(best: Optimum) -> str:
    """Why an optimum has no interval."""
    return "n/a, at the edge" if best.edge else "n/a, one seed" if best.n_seeds == 1 else "n/a, no noise"


def loss_over_loops(study: StudyInfo) -> Table:
    """The loss at each optimum with its interval."""
    return Table(
        ("rule", "N", "loss at the optimum", "interval"),
        [
            (name, str(loops), number(best.loss, 4), interval(best.loss_interval, 4) or _why_none(best))
            for name, rule in study.rules.items()
            for loops, best in sorted(rule.optima.items())
        ],
    )


def stream_over_visits(study: StudyInfo) -> Table:
    """RMS of the stream after each visit, before and after training."""
    rows = []
    for stream in streams(study):
        for visit in range(max(len(stream.initial), len(stream.final))):
            pair = [number(rms[visit]) if visit < len(rms) else "" for rms in (stream.initial, stream.final)]
            rows.append((stream.rule, str(stream.loops), power(stream.lr), str(visit), *pair))
    return Table(("rule", "N", "rate", "visit", "RMS at initialisation", "RMS after training"), rows)


def diverged_cells(study: StudyInfo) -> Table:
    """The cells of which a seed diverged."""
    return Table(
        ("rule", "N", "rate", "diverged seeds"),
        [
            (name, str(cell.loops), power(cell.lr), f"{cell.diverged} of {cell.seeds}")
            for name, rule in study.rules.items()
            for cell in shares(rule)
            if cell.diverged
        ],
    )


def loss_over_strength(study: StudyInfo) -> Table:
    """The best loss at each strength."""
    return Table(
        ("rule", "N", "strength", "best loss"),
        [
            (curve.rule, str(curve.loops), f"{strength:g}", number(loss, 4))
            for curve in strength_curves(study)
            for strength, loss in zip(curve.strengths, curve.losses, strict=True)
        ],
    )


def applied(study: StudyInfo) -> Table:
    """What each rule set, at every number of loops, and why; rules that set the same for the same reason share a row."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for rule_name, rule in study.rules.items():
        by_name: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        for loops, values in sorted(rule.applied.items()):
            for item in values:
                by_name.setdefault((item.name, item.why, item.source), []).append((loops, _value(item.value)))
        for (name, why, source), found in by_name.items():
            shared.setdefault((name, _over_loops(found), why, source), []).append(rule_name)
    rows = [(", ".join(rules), *row) for row, rules in shared.items()]
    return Table(("rule", "name", "value", "why", "source"), rows)


def _over_loops(found: list[tuple[int, str]]) -> str:
    """One value if it is the same at every number of loops, else each with its loops, unbroken."""
    if len({value for _, value in found}) == 1:
        return found[0][1]
    return ", ".join(f"{value}{_NB}(N{_NB}={_NB}{loops})" for loops, value in found)


def provenance(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a provenance record to rows of (dotted name, value).

    >>> provenance({"data": {"source": "text"}, "seeds": [0, 1]})
    [('data.source', 'text'), ('seeds', '0, 1')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            rows += provenance(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            rows.append((prefix + key, ", ".join(_value(item) for item in value)))
        else:
            rows.append((prefix + key, _value(value)))
    return rows


def _value(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
