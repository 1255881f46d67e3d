"""What a diagnosis says: findings with evidence, the measured numbers, a verdict; as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loopscale.diagnosis.modules import remarks
from loopscale.findings import BY_CODE

if TYPE_CHECKING:
    from torch import nn

SEVERITIES = ("info", "warning", "error")
# Output projections smaller than this against the other matrices are worth a line.
SMALLER = 0.8


@dataclass(frozen=True)
class Finding:
    """`code` is stable; `where` names modules; the rest are sentences for people.

    `tried`: what the remedy did to the numbers when it was tried; `lines`: code to paste. Both empty where there is none.
    """

    code: str
    severity: str
    where: str
    evidence: str
    cause: str
    remedy: str
    tried: str = ""
    lines: tuple[str, ...] = ()


def finding(
    code: str,
    where: str,
    evidence: str,
    severity: str | None = None,
    remedy: str | None = None,
    cause: str | None = None,
) -> Finding:
    """Make a finding of a row: its severity, cause and remedy where no others are given."""
    row = BY_CODE[code]
    return Finding(code, severity or row.severity, where, evidence, cause or row.cause, remedy or row.remedy)


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Return one finding of each code, the worst first: the same trouble in several loops or layers names all places.

    `norm-bounded` is said of a loop: beside one that is not, it is still said, with its place.
    """
    kept: dict[str, Finding] = {}
    for finding in findings:
        known = kept.get(finding.code)
        if known is None:
            kept[finding.code] = finding
            continue
        worse = max(known, finding, key=lambda f: SEVERITIES.index(f.severity))
        kept[finding.code] = replace(worse, where=_places(known.where, finding.where))
    return sorted(kept.values(), key=lambda f: -SEVERITIES.index(f.severity))


def _places(first: str, second: str) -> str:
    return first if second in first.split("; ") else f"{first}; {second}"


@dataclass(frozen=True)
class Symptom:
    """One figure that every diagnosis takes: its value, the limit, whether it is beyond; `why` it was not measured."""

    name: str
    value: float | None
    limit: float
    beyond: bool = False
    why: str | None = None
    told: str = ""

    def text(self) -> str:
        """Spell it for a terminal."""
        return f"{self.name}: {self.why if self.value is None else self.measured()}"

    def measured(self) -> str:
        """Spell the figure with its limit."""
        return self.told or f"{_show(self.value)} (limit {self.limit:g})"


@dataclass(frozen=True)
class Diagnosis:
    """All that was measured. `loops` is N of the loop with most shared weights; `growth` its law over the visits.

    `gain`: |h_N| / |h_0|. `effective_scale`: the measured eps of its branches; `prescribed_scale`: lambda / (N sqrt m_L)
    at lambda = 1, m_L = L / base_layers where the model states base_layers, else L. `kappa`: alignment of the visits'
    gradients, 1..N. None stands for what could not be measured.
    """

    looped: bool
    loops: int
    tied: bool
    growth: str | None = None
    gain: float | None = None
    growth_over_loops: str | None = None
    effective_scale: float | None = None
    prescribed_scale: float | None = None
    kappa: float | None = None
    spectral_radius: float | None = None
    findings: tuple[Finding, ...] = ()
    verdict: str = ""
    layers: int | None = None
    loops_found: tuple[dict[str, Any], ...] = ()
    loops_argument: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> str | None:
        """The highest severity among the findings; None without findings."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    @property
    def codes(self) -> set[str]:
        """The codes of all findings."""
        return {finding.code for finding in self.findings}

    def at_least(self, severity: str) -> bool:
        """Say whether a finding is of this severity or worse."""
        return any(SEVERITIES.index(f.severity) >= SEVERITIES.index(severity) for f in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return plain values by the written schema; numbers that are not finite become null.

        >>> Diagnosis(False, 1, False).to_json()["looped"]
        False
        """
        return {"schema": 1, **_plain(asdict(self))}

    def __str__(self) -> str:
        """Return what `print` shows: the same as `text`. The numbers one by one are the fields and `to_json`."""
        return self.text()

    def text(self) -> str:
        """Write for a terminal: what was found, the numbers, the findings, the verdict."""
        lines = [
            f"loop      {item['where']} ({item['order']}{', inside ' + item['inside'] if item['inside'] else ''})"
            for item in self.loops_found[:6]
        ]
        lines += self._numbers() if self.looped else []
        for finding in self.findings:
            lines += [
                "",
                f"[{finding.severity}] {finding.code} at {finding.where}",
                f"  seen    {finding.evidence}",
                f"  cause   {finding.cause}",
                f"  remedy  {finding.remedy}",
                *([f"  tried   {finding.tried}"] if finding.tried else []),
                *(f"          {line}" for line in finding.lines),
            ]
        lines += self._checked()
        return "\n".join([*lines, "", self.verdict])

    def apply(self, model: nn.Module, batch: Any = None) -> Any:
        """Attach the remedy to the model on the spot and give the handle; `loopscale.detach(model)` takes it off again.

        `batch`: the one that was diagnosed, where none can be made up.

        Raises `UserError` when the diagnosis found nothing that `attach` mends, or when attaching refuses the model.
        """
        from loopscale.errors import UserError

        given = self.details.get("attach")
        if not given:
            raise UserError("the diagnosis has no remedy that attach makes: follow the remedies it prints")
        from loopscale.adapt import attach

        return attach(model, batch=batch, **given)

    def _checked(self) -> list[str]:
        """Return what the symptoms were, where one is beyond its limit or not checked."""
        told = [s for s in self.symptoms if s.beyond or s.value is None]
        return ["", *(f"{'beyond' if s.beyond else 'unchecked':<10}{s.text()}" for s in told)] if told else []

    @property
    def symptoms(self) -> tuple[Symptom, ...]:
        """The figures that a healthy loop keeps within their limits."""
        return tuple(Symptom(**row) for row in self.details.get("symptoms", ()))

    def _numbers(self) -> list[str]:
        details = self.details
        lines = [
            f"size      N = {self.loops} loops, L = {self.layers} layers, tied: {'yes' if self.tied else 'no'}",
            f"growth    {self.growth or 'not measured'} over the visits, gain {_show(self.gain)}{_exponent(details)}",
        ]
        if self.growth_over_loops:
            lines.append(f"over N    {self.growth_over_loops}, N set by {self.loops_argument}{_frozen(details)}")
        lines += [
            f"scale     measured {_show(self.effective_scale)}, prescribed {_show(self.prescribed_scale)} "
            f"(strength 1{_based(details)}){_strength(self.effective_scale, details)}{_product(details)}",
            *_weights(details),
            f"aligned   kappa {_show(self.kappa)} of at most {self.loops}{_left_out(details)}",
            *_silent(details),
            *_remarkable(details),
            f"loop map  spectral radius {_show(self.spectral_radius)}, "
            f"largest singular value {_show(details.get('singular_value'))}"
            + ("" if details.get("spectrum_converged") in (True, None) else " (lower estimates)"),
        ]
        step = details.get("one_step")
        if step:
            slope = "" if step["slope_first"] is None else f", slope over N {step['slope_first']:+.2f}"
            lines.append(f"one step  moves the output by {step['first'].get(self.loops, math.nan):.3g}{slope}")
        run_on = details.get("settling")
        if run_on:
            changes = " and ".join(f"{_show(change)} at {n} loops" for n, change in run_on["change"].items())
            lines.append(f"run on    {run_on['law']}: the output moves by {changes}")
        span = details.get("loops_range")
        if span:
            low, high = span["safe"]
            still = span.get("still_from")
            stands = "" if still is None else f"; the loss stands still from {still} loops on"
            lines.append(f"range     safe from {low} to {high} loops, judged by the {span['safe_by']}{stands}")
        return lines


def verdict(findings: Sequence[Finding], where: str, symptoms: Sequence[Symptom] = ()) -> str:
    """Say in one sentence what was found; "healthy" only where every symptom was measured and is within its limit."""
    bad = [f for f in findings if f.severity != "info"]
    if bad:
        return f"{len(bad)} finding{'s' if len(bad) > 1 else ''}: {', '.join(dict.fromkeys(f.code for f in bad))} ({where})"
    norm = "; the loop is norm-bounded, eps is not the lever" if any(f.code == "norm-bounded" for f in findings) else ""
    beyond = [s.name for s in symptoms if s.beyond]
    missing = [f"{s.name} ({s.why})" for s in symptoms if s.value is None]
    if not beyond and not missing:
        return f"healthy{norm.replace(';', ':', 1)} ({where})"
    said = f"no fault found{norm}"
    if beyond:
        said += f"; beyond a limit: {', '.join(beyond)}"
    if missing:
        said += f"; not checked: {', '.join(missing)}"
    return f"{said} ({where})"


def _show(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"


def _exponent(details: dict[str, Any]) -> str:
    exponent, interval = details.get("growth_exponent"), details.get("growth_interval")
    if exponent is None or interval is None:
        return ""
    return f", moved ~ n^{exponent:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _weights(details: dict[str, Any]) -> list[str]:
    """Say it also where it is no finding: in one layer GPT-2's 1/sqrt(2) is what Kaiming in and linear out make too."""
    ratio = details.get("init_ratio")
    if ratio is None or ratio > SMALLER:
        return []
    return [f"weights   output projections are {ratio:.3g} times as large as the other matrices"]


def _left_out(details: dict[str, Any]) -> str:
    names = details.get("kappa_left_out") or []
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f", without {', '.join(names[:2])}{more}: too large"


def _silent(details: dict[str, Any]) -> list[str]:
    names = (details.get("one_step") or {}).get("without_gradient") or ()
    if not names:
        return []
    return [f"gradient  none for {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"]


def _remarkable(details: dict[str, Any]) -> list[str]:
    """Name modules that act otherwise than the loop does; those without a gradient have a line of their own."""
    rows = [(row, remarks({**row, "no_gradient": False})) for row in details.get("modules", ())]
    told = [f"{row['module']} x {row['visits']} ({', '.join(said)})" for row, said in rows if said]
    return [f"modules   {'; '.join(told[:4])}{' and more' if len(told) > 4 else ''}"] if told else []


def _based(details: dict[str, Any]) -> str:
    base = details.get("base_layers")
    return "" if base is None else f", base_layers {base}"


def _strength(eps: float | None, details: dict[str, Any]) -> str:
    strength = details.get("strength")
    if not eps or strength in (None, 1.0):
        return ""
    return f"; {eps:.4g} = strength {strength:g} x {eps / strength:.4g}"


def _product(details: dict[str, Any]) -> str:
    """Spell a scale that two factors make, one of them learned: a LayerScale beside 1/N, or one rule written twice."""
    for branch in details.get("branches", ()):
        factors = [factor for factor in branch["factors"] if abs(factor - 1) > 1e-2]
        if branch["learned"] and len(factors) > 1 and max(factors) < 0.9:
            told = " x ".join(f"{factor:.4g}" for factor in factors)
            return f"; {_show(branch['scale'])} = {told}, one of them learned"
    return ""


def _frozen(details: dict[str, Any]) -> str:
    power = (details.get("over_loops") or {}).get("scale_power")
    return "; the scale does not follow N" if power is not None and abs(power) < 0.1 else ""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
