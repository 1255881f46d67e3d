"""The page of a diagnosis: the verdict, a figure for each finding, how to read it, all numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loopscale.findings import BY_CODE
from loopscale.report.figure import Axis, Figure, Mark
from loopscale.report.figures import log_axis
from loopscale.report.page import Section, Table, escape, prose, render_page
from loopscale.report.palette import MEASURED, REFERENCE, looks, whole_ticks

if TYPE_CHECKING:
    from loopscale.diagnosis import Diagnosis, Finding

_READINGS = {
    "norms": "The size of the stream before the first visit and after each. Level, or a climb that flattens, is healthy; a "
    "straight climb means that visits add up coherently. Where every visit multiplies the axis is logarithmic, and the "
    "climb is straight on that.",
    "ratios": "How much a branch adds at every visit, against the stream it adds to. Below 0.004 a bf16 stream rounds it "
    "away; a branch that is missing here adds exactly nothing.",
    "gradients": "The gradient that each visit deposits in the shared weights. Visits of similar height share the "
    "learning.",
    "scales": "The measured eps of each branch. The dashed line is 1/(N sqrt(L)), what the rule prescribes at strength 1 "
    "(1/(N sqrt(L / base_layers)) where the model states base_layers); points far above it add coherently and make the "
    "stream grow with N.",
    "eigenvalues": "The largest eigenvalue moduli of the Jacobian of one visit. Above 1 (dashed) a difference grows from "
    "visit to visit, well below it is forgotten; at exactly 1 it is kept for ever.",
    "over_loops": "The stream's gain when the same model is run at other numbers of loops. Level: N is free to change. A "
    "climb: what was tuned at one N does not hold at another.",
    "range": "What changing N at test time does, against the model's own N. The safe range ends where the output moves by "
    "more than 0.1 of itself, or where the loss, if data were given, rises by more than 0.05.",
}
_LABELS = {
    "norms": ("visit", "RMS of the stream"),
    "ratios": ("visit", "update / stream"),
    "gradients": ("visit", "gradient of the shared weights"),
    "scales": ("branch (named in the table below)", "eps"),
    "eigenvalues": ("rank", "modulus"),
    "over_loops": ("loops N", "gain of the stream"),
    "range": ("loops N", "change of the output, or loss"),
}


def page(target: str, found: Diagnosis) -> str:
    """Write the page as HTML."""
    sections = [*_symptoms(found), *(_finding(finding, found) for finding in found.findings)]
    shown = {BY_CODE[finding.code].figure for finding in found.findings}
    titles = {
        "norms": "Stream over visits",
        "scales": "Scale of the branches",
        "gradients": "Gradients over visits",
        "over_loops": "Gain over the number of loops",
        "range": "Safe range of loops",
    }
    for kind, title in titles.items():
        chart = _chart(kind, found) if found.looped and kind not in shown else None
        if chart is not None:
            sections.append(Section(title, figure=chart, how_to_read=_READINGS[kind]))
    modules = _modules(found)
    if modules is not None:
        sections.append(modules)
    sections.append(Section("Numbers", table=_numbers(found)))
    return render_page(f"Diagnosis of {target}", found.verdict, sections, _provenance(), kind="loopscale diagnosis")


def _finding(finding: Finding, found: Diagnosis) -> Section:
    rows = {
        "at": finding.where,
        "seen": finding.evidence,
        "cause": finding.cause,
        "what to try": finding.remedy,
        "tried": f"on the model's own forward pass {finding.tried}" if finding.tried else "",
    }
    said = "".join(f"<dt>{name}</dt><dd>{prose(value)}</dd>\n" for name, value in rows.items() if value)
    code = "\n".join(escape(line) for line in finding.lines)
    kind = BY_CODE[finding.code].figure
    chart = _chart(kind, found, finding.code)
    title = f"{finding.code} ({finding.severity})"
    body = f'<dl class="finding">\n{said}</dl>\n' + (f"<pre>{code}</pre>\n" if code else "")
    return Section(title, "", body, figure=chart, how_to_read=_READINGS[kind] if chart else "")


def _symptoms(found: Diagnosis) -> list[Section]:
    """Every figure with its limit, and what was not checked, with the reason."""
    checked = [s for s in found.symptoms if s.value is not None]
    missing = [(s.name, s.why or "") for s in found.symptoms if s.value is None]
    made = []
    if checked:
        rows = [(s.name, s.measured(), "beyond its limit" if s.beyond else "within") for s in checked]
        made.append(Section("Symptoms", table=Table(("symptom", "measured", "against its limit"), rows)))
    if missing:
        text = "A figure that was not checked is no sign of health: the verdict is not healthy because of it."
        made.append(Section("Not checked", text, table=Table(("symptom", "why"), missing)))
    return made


def _modules(found: Diagnosis) -> Section | None:
    """How often each module acts and on what, whose weights are private to a visit, what no gradient or reader reaches."""
    from loopscale.diagnosis.modules import remarks

    rows = [
        (row["module"], str(row["visits"]), row["on"], ", ".join(remarks(row)))
        for row in found.to_json()["details"].get("modules", ())
    ]
    if not rows:
        return None
    long = len(rows) > 16
    table = Table(("module", "visits", "reads", "remarks"), rows, f"The {len(rows)} modules" if long else "")
    return Section("Modules and visits", table=None if long else table, more=table if long else None)


def _chart(kind: str, found: Diagnosis, place: str = "all") -> Figure | None:
    lines = [(name, x, y) for name, x, y in _lines(kind, found) if any(value > 0 for value in y)]
    if not lines:
        return None
    across, up = _LABELS[kind]
    names = _numbered(found) if kind == "scales" else {}
    measured = [name for name, _, _ in lines if name not in _LEVELS]
    styles = looks(measured) if len(measured) > 1 else dict.fromkeys(measured, MEASURED)
    marks = [
        Mark(at, value, name, {"what": names.get(at, name), across.split(" (")[0]: f"{at:g}", up: f"{value:.4g}"},
             line="dashed" if name in _LEVELS else "solid", shape="none" if name in _LEVELS else "")
        for name, x, y in lines
        for at, value in zip(x, y, strict=True)
    ]  # fmt: skip
    said = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, _, y in lines[:4])
    log = kind in ("ratios", "scales") or (kind in ("norms", "over_loops") and found.growth == "exponential")
    heights = [mark.y for mark in marks if mark.y is not None and mark.y > 0]
    return Figure(
        f"{kind}-{place}",
        f"{up} over {across}: {said}.",
        Axis(across, ticks=_whole(x for _, across_line, _ in lines for x in across_line)),
        log_axis(up, heights) if log else Axis(up),
        {name: REFERENCE if name in _LEVELS else styles[name] for name, _, _ in lines},
        marks,
    )


def _whole(positions: Iterable[float]) -> dict[float, str]:
    """Return ticks at whole numbers: there is no half visit, and no half branch."""
    inside = list(positions)
    return {float(tick): str(tick) for tick in whole_ticks(min(inside), max(inside)) if tick > 0 or min(inside) <= 0}


def _living(found: Diagnosis) -> list[dict[str, Any]]:
    branches = found.to_json()["details"].get("branches", [])
    return [branch for branch in branches if branch["kind"] == "branch" and not branch["dead"]]


def _numbered(found: Diagnosis) -> dict[float, str]:
    """Return position on the axis of branches -> number and name."""
    return {float(i + 1): f"{i + 1}, {branch['where']}" for i, branch in enumerate(_living(found))}


_LEVELS = ("prescribed", "kept for ever")
Line = tuple[str, Sequence[float], Sequence[float]]


def _lines(kind: str, found: Diagnosis) -> list[Line]:
    details = found.to_json()["details"]
    if kind == "ratios":
        kinds = {"inject": "injected ", "branch": ""}
        parts = [b for b in details.get("branches", []) if b["kind"] in kinds][:8]
        return [_line(f"{i + 1}: {kinds[b['kind']]}{b['where']}", b["update_ratio"], 1) for i, b in enumerate(parts)]
    if kind == "scales":
        living = [branch["scale"] for branch in _living(found)]
        # From half a step before the first branch to half a step after the last, so that one branch has a line too.
        level = ("prescribed", (0.5, len(living) + 0.5), [found.prescribed_scale or 0.0] * 2)
        return [_line("measured", living, 1), level]
    if kind == "eigenvalues":
        values = details.get("eigenvalue_moduli", [])
        return [_line("moduli", values, 1), _line("kept for ever", [1.0] * len(values), 1)]
    if kind == "over_loops":
        over = details.get("over_loops") or {}
        return [("gain", over.get("loops", []), _numbers_in(over.get("gains", [])))]
    if kind == "range":
        span = details.get("loops_range") or {}
        parts = [("change of the output", span.get("output_change") or {}), ("loss", span.get("loss") or {})]
        return [(name, [int(n) for n in part], _numbers_in(part.values())) for name, part in parts]
    name = {"norms": "norms", "gradients": "gradient_by_visit"}[kind]
    return [_line(kind, details.get(name, []), 0 if kind == "norms" else 1)]


def _line(name: str, values: Sequence[float | None], start: int) -> Line:
    numbers = _numbers_in(values)
    return name, range(start, start + len(numbers)), numbers


def _numbers_in(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _numbers(found: Diagnosis) -> Table:
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
    rows = [(name, _value(data[name])) for name in names]
    details = data["details"]
    span = details.get("loops_range") or {}
    step = details.get("one_step") or {}
    more = [(f"output change at N = {n}", f"{c:.3g}") for n, c in (span.get("output_change") or {}).items()]
    more += [
        (f"loss at N = {n}", "not finite" if c is None else f"{c:.4g}") for n, c in (span.get("loss") or {}).items()
    ]
    more += [(f"output change by one step at N = {n}", f"{c:.3g}") for n, c in (step.get("first") or {}).items()]
    numbers = {name.split(", ", 1)[1]: name for name in _numbered(found).values()}
    more += [
        (f"eps of branch {numbers.get(b['where'], b['where'])}", f"{b['scale']:.4g}")
        for b in details.get("branches", [])
        if b["scale"]
    ]
    return Table(("what", "value"), [*rows, *more])


def _value(value: object) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _provenance() -> list[tuple[str, str]]:
    import torch

    import loopscale

    return [("loopscale", loopscale.__version__), ("torch", torch.__version__)]
