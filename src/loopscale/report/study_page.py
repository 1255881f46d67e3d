"""The page and the figures of a study folder."""

from __future__ import annotations

from pathlib import Path

from loopscale.files import replacing, write_text
from loopscale.report.cards import cards_html
from loopscale.report.info import StudyInfo, study_info
from loopscale.report.interactive import charts
from loopscale.report.page import Section, render_page
from loopscale.report.tables import applied, provenance, tables

TITLES = {
    "loss-over-rate": "Loss over learning rate",
    "optimum-over-loops": "The optimum over loops",
    "loss-over-loops": "Loss at the optimum",
    "stream-over-visits": "The stream at the largest depth",
    "diverged-cells": "Where training diverged",
    "loss-over-strength": "Loss over strength",
}

CRITERION = (
    "A rule transfers when the interval of its slope (octaves of the best rate per doubling of loops) lies within "
    "\N{PLUS-MINUS SIGN}{slope:g}, the shaded band, and the rate tuned at the fewest loops costs at most {regret:g} "
    "nats, or the seed noise, at the most loops. It drifts when the interval excludes 0 and the slope itself lies outside "
    "the band or the tuned rate certainly costs more than that, or when the tuned rate diverges; all else is undecided."
)

READINGS = {
    "loss-over-rate": (
        "Each line is one number of loops N; the bars span the seeds, the large diamond is the fitted optimum with its "
        "interval, and the dotted line stands at the optimum of the fewest loops. Crosses above the window are rates "
        "at which training diverged; a triangle marks a loss above the window. A rule passes when its diamonds stay "
        "on the dotted line; it makes good use of its loops when the lines sink as N grows."
    ),
    "optimum-over-loops": (
        "The fitted best rate of each rule with its interval, over N, both in powers of two; the slope is that of the "
        "dotted line (where there is none, the line joins the marks). Hollow marks lie at the edge of the swept rates "
        "and are bounds, not optima. A rule passes when its line is flat: slope 0 means that a rate tuned at few loops "
        "is right at many."
    ),
    "loss-over-loops": (
        "The loss that each rule reaches at its own best rate, so no rule suffers from a badly chosen rate. At N = 1 "
        "the rules are the same network and share one point. A rule passes when more loops give a lower, or at least "
        "no higher, loss."
    ),
    "stream-over-visits": (
        "Root mean square of the residual stream after each visit, in the finished trial nearest to the optimum at the "
        "largest N. A rule passes when the stream at initialisation stays of the order of its value on entry; growth "
        "with the visits is what forces the rate down."
    ),
    "diverged-cells": (
        "A dot is a cell of the sweep in which every seed finished, a cross one in which some or all diverged (hover "
        "for the count). A rule passes when the rates that train at N = 1 train at every N."
    ),
    "loss-over-strength": (
        "The best loss over the swept rates at each strength. A rule passes when the lowest point stays at the same "
        "strength for every N: then the strength, too, is tuned once."
    ),
}


def sections(study: StudyInfo) -> list[Section]:
    """The parts of the page in order: the cards, every figure that has numbers, the applied rules."""
    drawn, numbers = charts(study), tables(study)
    from loopscale.transfer.verdict import REGRET_TOLERANCE, SLOPE_TOLERANCE

    criterion = CRITERION.format(slope=SLOPE_TOLERANCE, regret=REGRET_TOLERANCE)
    parts = [Section("Verdict by rule", criterion, cards_html(study, SLOPE_TOLERANCE))]
    for name, chart in drawn.items():
        parts.append(Section(TITLES[name], figure=chart, how_to_read=READINGS[name], table=numbers[name]))
    if not study.trials:
        text = "This folder holds no trial records, so the figures drawn from single trials are left out."
        parts.append(Section("Left out", text))
    rules = applied(study)
    if rules.rows:
        parts.append(Section("What each rule applied", "Every number a rule set, and why.", table=rules))
    return parts


def page(study: StudyInfo) -> str:
    """The study's page as HTML."""
    rows = provenance(study.result.provenance)
    if study.trials:
        rows.append(("trial records read", str(len(study.trials))))
    said = study.result
    kind = "loopscale transfer study" + (
        f" of {said.own}" if said.own else f", preset {said.preset}" if said.preset else ""
    )
    title = "Does the best learning rate stay put when the loops grow?"
    return render_page(title, study.result.sentence, sections(study), rows, kind=kind)


def write_report(study_dir: Path) -> Path:
    """Write report.html and figures/*.{svg,png,pdf} into a study folder; return the page's path.

    Everything is drawn before the first file is written.
    Raises `UserError` when the folder is missing, damaged or of another schema, or the disk is full, and
    `MissingExtraError` without plotly or matplotlib.
    """
    study = study_info(study_dir)
    text, figures = page(study), _drawn(study)
    _write(study_dir / "figures", figures)
    target = study_dir / "report.html"
    write_text(target, text)
    return target


def write_figures(study_dir: Path) -> list[Path]:
    """Write only the figures of a study, as SVG, PNG and PDF; return their paths.

    Raises as `write_report` does.
    """
    return _write(study_dir / "figures", _drawn(study_info(study_dir)))


def _drawn(study: StudyInfo) -> dict[str, bytes]:
    from loopscale.report.static import rendered_figures

    return rendered_figures(study)


def _write(folder: Path, drawn: dict[str, bytes]) -> list[Path]:
    for name, content in drawn.items():
        with replacing(folder / name) as aside:
            aside.write_bytes(content)
    return [folder / name for name in drawn]
