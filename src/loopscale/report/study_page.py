"""The page and the figures of a study folder, with a card for each rule."""

from __future__ import annotations

from pathlib import Path

from loopscale.records import RuleRecord
from loopscale.report.figure import drawn_files, write_drawn
from loopscale.report.figures import rule_name, study_figures
from loopscale.report.info import StudyInfo, study_info
from loopscale.report.page import Section, Table, escape, plainly, provenance, render_page, split, write_page
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


_NB = "\N{NO-BREAK SPACE}"
TITLES = {
    "paired-differences": "The rules compared",
    "loss-over-rate": "Loss over learning rate",
    "optimum-over-loops": "The optimum over loops",
    "loss-over-loops": "Loss at the optimum",
    "stream-over-visits": "The stream at the largest depth",
    "diverged-cells": "Where training diverged",
    "loss-over-strength": "Loss over strength",
}

CRITERION = (
    "A rule transfers when the interval of its slope (octaves of the best rate per doubling of loops) lies within "
    "\N{PLUS-MINUS SIGN}{slope:g}, the shaded band, and the interval of what the rate tuned at the fewest loops costs at "
    "the most loops ends below {regret:g} nats. It drifts when that rate diverges or certainly costs more, or when the "
    "slope's interval excludes 0 and the slope itself lies outside the band; all else is undecided."
)

READINGS = {
    "paired-differences": (
        "The first rule minus each other one, with what the seeds have in common taken out; the bars are 95 % intervals. A "
        "bar that does not touch the dotted zero is a difference that the seeds agree on: of the slope of the best rate, "
        "and of the loss that each rule reaches at its own best rate."
    ),
    "loss-over-rate": (
        "Each line is one number of loops N, each point the mean over seeds. The upright bars go from the best seed to the "
        "worst; the large diamond is the fitted optimum and its level bar the 95 % interval of the rate, cut where the "
        "window ends. The dotted line stands at the optimum of the fewest loops. Crosses above the window are rates at "
        "which a seed diverged; a triangle marks a loss above the window. A rule passes when its diamonds stay on the "
        "dotted line; it makes good use of its loops when the lines sink as N grows."
    ),
    "optimum-over-loops": (
        "The fitted best rate of each rule over N, both in powers of two; the bars are 95 % intervals. The dotted line has "
        "the fitted slope (where there is none, it joins the marks). Hollow marks lie at the edge of the swept rates "
        "and are bounds, not optima. A rule passes when its line is flat: slope 0 means that a rate tuned at few loops "
        "is right at many."
    ),
    "loss-over-loops": (
        "The loss that each rule reaches at its own best rate, so no rule suffers from a badly chosen rate; the bars are "
        "95 % intervals. At N = 1 "
        "the rules are the same network and share one point. A rule passes when more loops give a lower, or at least "
        "no higher, loss."
    ),
    "stream-over-visits": (
        "Root mean square of the residual stream after each visit, in the finished trial nearest to the optimum at the "
        "largest N. A rule passes when the stream at initialisation stays of the order of its value on entry; growth "
        "with the visits is what forces the rate down."
    ),
    "diverged-cells": (
        "A dot is a cell of the sweep in which every seed finished, a square one in which some seeds diverged, a cross "
        "one in which all did. A rule passes when the rates that train at N = 1 train at every N."
    ),
    "loss-over-strength": (
        "The best loss over the swept rates at each strength. A rule passes when the lowest point stays at the same "
        "strength for every N: then the strength, too, is tuned once."
    ),
}


def sections(study: StudyInfo) -> list[Section]:
    """Return the parts of the page in order: the cards, every figure that has numbers, the applied rules."""
    from loopscale.transfer.verdict import REGRET_TOLERANCE, SLOPE_TOLERANCE

    criterion = CRITERION.format(slope=SLOPE_TOLERANCE, regret=REGRET_TOLERANCE)
    verdict = f"{study.result.sentence} {criterion}"
    told = {"paired-differences": " ".join(pair.sentence for pair in study.result.paired)}
    parts = [
        Section(TITLES[name], told.get(name, ""), figure=figure, how_to_read=READINGS[name])
        for name, figure in study_figures(study).items()
    ]
    compared = parts[0].title == TITLES["paired-differences"]  # that is the strongest evidence, so it stands first
    parts.insert(int(compared), Section("Verdict by rule", verdict, cards_html(study, SLOPE_TOLERANCE)))
    for title, part in (("Does looping pay?", study.result.pays), ("The outer rate", study.result.outer)):
        if part is not None:
            parts.append(Section(title, part.sentence))
    if study.result.early:
        parts.append(Section("Trials that ended early", study.result.early))
    if not study.trials:
        text = "This folder holds no trial records, so the figures drawn from single trials are left out."
        parts.append(Section("Left out", text))
    changed, same = split(applied(study))
    if changed.rows or same.rows:
        text = "Every number that a rule set to something other than 1, and why."
        parts.append(Section("What each rule applied", text, table=changed, more=same))
    return parts


def applied(study: StudyInfo) -> Table:
    """Return what each rule set, at every number of loops, and why.

    Rules that set the same for the same reason share a row.
    """
    shared: dict[tuple[str, ...], list[str]] = {}
    for rule, record in study.rules.items():
        by_name: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        for loops, values in sorted(record.applied.items()):
            for item in values:
                by_name.setdefault((item.name, item.why, item.source), []).append((loops, plainly(item.value)))
        for (name, why, source), found in by_name.items():
            shared.setdefault((name, _over_loops(found), why, source), []).append(rule_name(rule))
    every = len(study.rules) if len(study.rules) > 1 else 0
    rows = [("all" if len(rules) == every else ", ".join(rules), *row) for row, rules in shared.items()]
    return Table(("rule", "name", "value", "why", "source"), rows)


def _over_loops(found: list[tuple[int, str]]) -> str:
    """Return one value if it is the same at every number of loops, else each with its loops, unbroken."""
    if len({value for _, value in found}) == 1:
        return found[0][1]
    return ", ".join(f"{value}{_NB}(N{_NB}={_NB}{loops})" for loops, value in found)


def headline(study: StudyInfo) -> str:
    """Return the number that the study was run for: how far the best rate moves with each rule."""
    slopes = {name: rule.slope for name, rule in study.rules.items() if rule.slope is not None}
    moved = [
        f"{number(slope, 2)} {'' if name == 'none' else 'with '}{rule_name(name)}" for name, slope in slopes.items()
    ]
    return f"Octaves of the best rate per doubling of loops: {', '.join(moved)}." if moved else study.result.sentence


def page(study: StudyInfo, files: str = "figures") -> str:
    """Return the study's page as HTML; `files` is the folder of its drawn figures, "" without them."""
    rows = provenance(study.result.provenance)
    if study.trials:
        rows.append(("trial records read", str(len(study.trials))))
    said = study.result
    kind = "loopscale transfer study" + (
        f" of {said.user_code}" if said.user_code else f", preset {said.preset}" if said.preset else ""
    )
    title = "Does the best learning rate stay put when the loops grow?"
    return render_page(title, headline(study), sections(study), rows, kind=kind, files=files)


def write_report(study_dir: Path) -> Path:
    """Write report.html and figures/*.{svg,png,pdf} into a study folder; return the page's path.

    Everything is drawn before the first file is written.
    Raises `UserError` when the folder is missing, damaged or of another schema, or the disk is full.
    """
    study = study_info(study_dir)
    text, drawn = page(study), drawn_files(study_figures(study))
    write_drawn(study_dir / "figures", drawn)
    return write_page(study_dir, text)
