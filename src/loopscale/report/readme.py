"""The one picture of a README: losses of an unscaled and a scaled rule, and the optimum of every rule over loops."""

from __future__ import annotations

from pathlib import Path

from loopscale.files import replacing
from loopscale.report.info import StudyInfo, study_info
from loopscale.report.palette import number, short
from loopscale.report.static import blank, optimum_axes, power_axis, rate_panel, render, style


def readme_figure(study_dir: Path, out_svg_path: Path) -> Path:
    """Write one compact SVG, legible at 900 pixels: two panels of loss over rate, one of the optimum over loops.

    Raises `UserError` for a damaged study or a path that cannot be written, `MissingExtraError` without matplotlib.
    """
    study = study_info(study_dir)
    with style():
        content = _draw(study)
    with replacing(out_svg_path) as aside:
        aside.write_bytes(content)
    return out_svg_path


def compared(study: StudyInfo) -> list[str]:
    """The two rules to show side by side: one that does not claim transfer ("none" if there), then one that does."""
    rules = study.rules
    against = sorted((n for n, r in rules.items() if not r.claims_transfer), key=lambda name: name != "none")[:1]
    chosen = sorted((n for n, r in rules.items() if r.claims_transfer), key=lambda name: name != "looped")[:1]
    return against + chosen or list(rules)[:1]


def _draw(study: StudyInfo) -> bytes:
    names = compared(study)
    figure = blank(9.0, 3.05)
    grid = figure.subplots(1, len(names) + 1, width_ratios=[*([1.0] * len(names)), 1.05], squeeze=False)[0]
    panels, last = list(grid[:-1]), grid[-1]
    for axes, name in zip(panels, names, strict=True):
        rate_panel(axes, study, name)
        low, high = axes.get_xlim()
        power_axis(axes, "x", low, high, most=5)
        axes.set_title(f"residual rule: {short(name, 16)}")
    panels[0].set_ylabel("validation loss (nats)")
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    panels[0].legend(loc="best", fontsize=7, handlelength=1.0, labelspacing=0.25, borderaxespad=0.2)
    optimum_axes(last, study)
    last.set_title("best rate over loops")
    handles, _ = last.get_legend_handles_labels()
    labels = [f"{short(name, 14)}: slope {number(rule.slope, 2)}" for name, rule in study.rules.items()]
    last.legend(handles, labels, loc="best", fontsize=7.5, handlelength=1.0, borderaxespad=0.2)
    return render(figure, "svg")
