"""The verdict cards: one a rule, with its sentence, its slope on a small scale, and its regret."""

from __future__ import annotations

from loopscale.records import RuleRecord
from loopscale.report.figures import rule_name
from loopscale.report.info import StudyInfo
from loopscale.report.page import escape
from loopscale.report.palette import VERDICTS, Ink, interval, looks, number

_SIGNS = {"transfers": ("\N{CHECK MARK}", "pass"), "drifts": ("\N{SOUTH EAST ARROW}", "fail")}


def cards_html(study: StudyInfo, tolerance: float) -> str:
    """Return one card for each rule, as trusted HTML: everything read from the study is escaped.

    `tolerance` is the slope, either way, within which a rule transfers; the scale of every card shades it.
    """
    ends = [-3 * tolerance, 3 * tolerance]
    for rule in study.rules.values():
        ends += [end for end in (rule.slope, *(rule.slope_interval or ())) if end is not None]
    low, high = min(ends), max(ends)
    inks = looks(list(study.rules))
    made = "".join(_card(name, rule, inks[name].ink, (low, high), tolerance) for name, rule in study.rules.items())
    return f'<ul class="cards">\n{made}</ul>\n'


def _card(name: str, rule: RuleRecord, ink: Ink, scale: tuple[float, float], tolerance: float) -> str:
    sign, role = _SIGNS.get(rule.verdict, ("?", "open"))
    said = VERDICTS[role]
    strength = (
        "" if rule.strength is None else f"<dt>strength \N{GREEK SMALL LETTER LAMDA}</dt><dd>{rule.strength:g}</dd>"
    )
    regret = "n/a" if rule.regret is None else f"{number(rule.regret, 4)} <span>{_regret_span(rule)}</span>"
    return f"""<li class="card" style="--light:{ink.light};--dark:{ink.dark}">
<h3>{escape(rule_name(name))}</h3>
<p class="verdict" style="--light:{said.light};--dark:{said.dark}">
<span aria-hidden="true">{sign}</span> {escape(rule.verdict)}</p>
<p class="sentence">{escape(rule.sentence.removeprefix(f"{name}: "))}</p>
{_gauge(rule, scale, tolerance)}<dl>
<dt>claims transfer</dt><dd>{"yes" if rule.claims_transfer else "no"}</dd>
<dt>slope</dt><dd>{number(rule.slope)} <span>{interval(rule.slope_interval)}</span></dd>
<dt>regret (nats)</dt><dd>{regret}</dd>
{strength}</dl>
</li>
"""


def _regret_span(rule: RuleRecord) -> str:
    """Return the interval, or why there is none; one without a width was written by an earlier version."""
    ends = rule.regret_interval
    if rule.regret == 0:
        return "the tuned rate is the best one"
    if ends is None or ends[0] == ends[1]:
        return "no interval: one seed, or no noise known"
    return interval(ends, 4)


def _gauge(rule: RuleRecord, scale: tuple[float, float], tolerance: float) -> str:
    """Draw the slope and its interval on a line, zero marked and the tolerance shaded, at one scale on every card."""
    if rule.slope is None:
        return ""
    low, high = scale
    across = high - low

    def at(value: float) -> str:
        return f"{4 + 92 * (value - low) / across:.2f}%"

    ends = rule.slope_interval or (rule.slope, rule.slope)
    return (
        f'<svg class="gauge" role="img" aria-label="slope {number(rule.slope)}, 0 is no drift">'
        f'<rect x="{at(-tolerance)}" width="{92 * 2 * tolerance / across:.2f}%" y="3" height="22"/>'
        '<line class="axis" x1="0" x2="100%" y1="14" y2="14"/>'
        f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="3" y2="25"/>'
        f'<line x1="{at(ends[0])}" x2="{at(ends[1])}" y1="14" y2="14" stroke="currentColor" stroke-width="3"/>'
        f'<circle cx="{at(rule.slope)}" cy="14" r="5" fill="currentColor"/>'
        f'<text x="{at(0)}" y="37" text-anchor="middle">0: no drift</text></svg>\n'
    )
