"""The page of a diagnosis: the verdict, a figure for each finding, how to read it, all numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopscale.diagnosis import Diagnosis, Finding
    from loopscale.report.chart import Chart
    from loopscale.report.page import Section, Table

_READINGS = {
    "norms": "The size of the stream before the first visit and after each. A straight climb means that visits add up "
    "coherently; a straight line on this logarithmic axis means that every visit multiplies; level is healthy.",
    "ratios": "How much a branch adds at every visit, against the stream it adds to. Below 0.004 a bf16 stream rounds it "
    "away.",
    "gradients": "The gradient that each visit deposits in the shared weights. Visits of similar height share the "
    "learning.",
}


def page(target: str, found: Diagnosis) -> str:
    """The page as HTML; raises `MissingExtraError` without plotly."""
    from loopscale.report.page import Section, render_page

    sections = [_finding(finding, found) for finding in found.findings]
    if not sections and found.looped:
        sections = [Section("Stream over visits", figure=_chart("norms", found), how_to_read=_READINGS["norms"])]
    sections.append(Section("Numbers", table=_numbers(found)))
    return render_page(f"Diagnosis of {target}", found.verdict, sections, _provenance(), kind="loopscale diagnosis")


def _finding(finding: Finding, found: Diagnosis) -> Section:
    from loopscale.report.page import Section

    text = f"At {finding.where}. Seen: {finding.evidence}. Cause: {finding.cause}. What to try: {finding.remedy}."
    kind = {"bf16-absorbed": "ratios", "dead-branch": "ratios", "untied": "gradients"}.get(finding.code, "norms")
    chart = _chart(kind, found)
    title = f"{finding.code} ({finding.severity})"
    return Section(title, text, figure=chart, how_to_read=_READINGS[kind] if chart else "")


def _chart(kind: str, found: Diagnosis) -> Chart | None:
    from loopscale.report.chart import Axis, Chart

    lines = _lines(kind, found)
    positive = [value for _, values in lines for value in values if value > 0]
    if not positive:
        return None
    labels = {"norms": "RMS of the stream", "ratios": "update / stream", "gradients": "gradient of the shared weights"}
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(range(start, start + len(values))),
            "y": list(values),
            "hoverinfo": "text",
            "hovertext": [f"{name}: {value:.4g}" for value in values],
        }
        for start in [0 if kind == "norms" else 1]
        for name, values in lines
    ]
    label = f"{labels[kind]} over visits."
    return Chart(kind, label, Axis("visit"), Axis(labels[kind], log=True), traces)


def _lines(kind: str, found: Diagnosis) -> list[tuple[str, Sequence[float]]]:
    details = found.to_json()["details"]
    if kind == "ratios":
        return [(b["where"], _numbers_in(b["update_ratio"])) for b in details.get("branches", [])[:8]]
    name = {"norms": "norms", "gradients": "gradient_by_visit"}[kind]
    return [(kind, _numbers_in(details.get(name, [])))]


def _numbers_in(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _numbers(found: Diagnosis) -> Table:
    from loopscale.report.page import Table

    data = found.to_json()
    names = (
        "looped",
        "loops",
        "layers",
        "tied",
        "growth",
        "gain",
        "growth_over_loops",
        "effective_scale",
        "prescribed_scale",
        "kappa",
        "spectral_radius",
        "loops_argument",
    )
    rows = [(name, "not measured" if data[name] is None else str(data[name])) for name in names]
    changes = ((data["details"].get("over_loops") or {}).get("output_change") or {}).items()
    return Table(("what", "value"), [*rows, *((f"output change at N = {n}", f"{c:.3g}") for n, c in changes)])


def _provenance() -> list[tuple[str, str]]:
    import torch

    import loopscale

    return [("loopscale", loopscale.__version__), ("torch", torch.__version__)]
