"""The page and the figures of a study folder, with a card for each rule."""

from __future__ import annotations

from pathlib import Path

from loopscale.records import RuleRecord
from loopscale.report.figure import drawn_files, write_drawn
from loopscale.report.figures import rule_name, study_figures
from loopscale.report.info import StudyInfo, study_info
from loopscale.report.page import Section, Table, escape, explained, plainly, provenance, render_page, split, write_page
from loopscale.report.palette import VERDICTS, Ink, interval, looks, number

TITLE = "Does the best learning rate stay put when the loops grow?"
_SIGNS = {"transfers": ("\N{CHECK MARK}", "pass"), "drifts": ("\N{SOUTH EAST ARROW}", "fail")}


def cards_html(study: StudyInfo, tolerance: float) -> str:
    """Return a card for each rule, as trusted HTML; each shades the band of `tolerance` around no drift."""
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
CRITERION = (
    "A rule transfers when the interval of its slope (octaves of the best rate per doubling of loops) lies within "
    "\N{PLUS-MINUS SIGN}{slope:g}, the shaded band, and the interval of what the rate tuned at the fewest loops costs at "
    "the most loops ends below {regret:g} nats. It drifts when that rate diverges or certainly costs more, or when the "
    "slope's interval excludes 0 and the slope itself lies outside the band; all else is undecided."
)


def sections(study: StudyInfo) -> list[Section]:
    """Return the parts of the page in order: the cards, every figure that has numbers, the applied rules."""
    from loopscale.transfer.verdict import REGRET_TOLERANCE, SLOPE_TOLERANCE

    criterion = CRITERION.format(slope=SLOPE_TOLERANCE, regret=REGRET_TOLERANCE)
    verdict = f"{study.result.sentence} {criterion}"
    told = {"paired-differences": " ".join(pair.sentence for pair in study.result.paired)}
    drawn = study_figures(study)
    parts = [explained(figure, told.get(name, "")) for name, figure in drawn.items()]
    compared = "paired-differences" in drawn  # that is the strongest evidence, so it stands first
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
    """Return what each rule set at every number of loops, and why; rules that set the same for one reason share a row."""
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
    return render_page(TITLE, headline(study), sections(study), rows, kind=kind, files=files)


def write_report(study_dir: Path) -> Path:
    """Write report.html and figures/*.{svg,png,pdf} into a study folder; return the page's path.

    Everything is drawn before the first file is written.
    Raises `UserError` when the folder is missing, damaged or of another schema, or the disk is full.
    """
    study = study_info(study_dir)
    text, drawn = page(study), drawn_files(study_figures(study))
    write_drawn(study_dir / "figures", drawn)
    return write_page(study_dir, text)
