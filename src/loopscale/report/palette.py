"""Colours by role and number words, shared by every figure, so that a role looks the same wherever it appears."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Ink(NamedTuple):
    """One colour in its two readings: on a light page and on a dark page (contrast at least 4.5 on each)."""

    light: str
    dark: str


class Look(NamedTuple):
    """How a rule is drawn: colour and mark differ together, so that colour is never the only difference."""

    ink: Ink
    shape: str = "circle"


_KNOWN = {
    "looped": Look(Ink("#0b7a75", "#3fd0c4"), "circle"),
    "sqrt": Look(Ink("#a85b00", "#f2b04a"), "square"),
    "none": Look(Ink("#8a2f9e", "#dd94ee"), "diamond"),
}
_OTHERS = (
    Look(Ink("#4450b8", "#98a4ff"), "triangle-down"),
    Look(Ink("#1f6fa8", "#74bdf0"), "cross"),
    Look(Ink("#a3425b", "#ff9db1"), "triangle-right"),
    Look(Ink("#55701c", "#b3cf6a"), "triangle-left"),
    Look(Ink("#5d5f66", "#b9bcc4"), "triangle-up"),
)
_VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")

MEASURED = Look(Ink("#1f6fa8", "#74bdf0"), "circle")
ABOVE = "M-1,.1L0,-.9L1,.1L1,.9L0,-.1L-1,.9Z"  # of a value above the figure: a chevron, which no rule has
SECOND = Look(Ink("#a3425b", "#ff9db1"), "square")
TUNED = Look(Ink("#1a1e22", "#f4f2ec"), "diamond")
REFERENCE = Look(Ink("#5d646c", "#a3abb3"), "stroke")
VERDICTS = {
    "pass": Ink("#2b7035", "#7fd08a"),
    "fail": Ink("#bb2727", "#ff8a80"),
    "open": Ink("#5d646c", "#a3abb3"),
}
GLYPHS = {
    "circle": "\N{BLACK CIRCLE}",
    "square": "\N{BLACK SQUARE}",
    "diamond": "\N{BLACK DIAMOND}",
    "triangle-up": "\N{BLACK UP-POINTING TRIANGLE}",
    "triangle-down": "\N{BLACK DOWN-POINTING TRIANGLE}",
    "triangle-right": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "triangle-left": "\N{BLACK LEFT-POINTING TRIANGLE}",
    "cross": "\N{HEAVY GREEK CROSS}",
    "stroke": "\N{EM DASH}",
}
# Comes with vl-convert, so that a file is the same everywhere; in one weight, since it writes two fonts in random order.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"


def looks(rules: Sequence[str]) -> dict[str, Look]:
    """Give every rule its look: the known ones always the same, the others from the rest of the palette in order.

    Once its colours are used up they come again with other shapes, so that no two of 25 look alike.
    """
    others = [rule for rule in rules if rule not in _KNOWN]
    return {rule: _KNOWN.get(rule) or _other(others.index(rule)) for rule in rules}


def _other(number: int) -> Look:
    rounds, at = divmod(number, len(_OTHERS))
    return Look(_OTHERS[at].ink, _OTHERS[(at + rounds) % len(_OTHERS)].shape)


def loop_looks(loops: Iterable[int]) -> dict[str, Look]:
    """Give every number of loops its colour, from few to many: "N = 4" -> look."""
    names = [f"N = {n}" for n in loops]
    return {name: Look(ink) for name, ink in zip(names, sequential(len(names)), strict=True)}


def sequential(count: int) -> list[Ink]:
    """Return `count` ordered colours (viridis, legible to the colour-blind); the last stands out most on either page."""
    steps = [i / (count - 1) if count > 1 else 0.5 for i in range(count)]
    return [Ink(_viridis(0.70 * (1 - t)), _viridis(0.32 + 0.64 * t)) for t in steps]


def _viridis(t: float) -> str:
    at = min(max(t, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    left = min(int(at), len(_VIRIDIS) - 2)
    mixed = (
        round(
            int(_VIRIDIS[left][i : i + 2], 16) * (1 - at + left) + int(_VIRIDIS[left + 1][i : i + 2], 16) * (at - left)
        )
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def theme(inks: Sequence[Ink], dark: bool = False) -> dict[str, Any]:
    """Make Vega's `config` for a light or a dark page; `inks` colours the series in their order."""
    ink, muted, line, grid = (
        ("#e9e7e2", "#a3abb3", "#4a525a", "#262b31") if dark else ("#1a1e22", "#59616a", "#b4b9bd", "#ecece7")
    )
    axis = {
        "labelColor": muted, "titleColor": ink, "gridColor": grid, "domainColor": line, "tickColor": line,
        "labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "tickSize": 4, "labelPadding": 4,
    }  # fmt: skip
    return {
        "background": None,
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "axisY": {"minExtent": 42, "maxExtent": 42, "domain": False, "ticks": False},
        "header": {"labelColor": ink, "labelFontSize": 13, "labelFontWeight": "normal", "labelAnchor": "start",
                   "labelPadding": 6},
        "legend": {"labelColor": ink, "titleColor": muted, "labelFontSize": 12, "titleFontSize": 12,
                   "titleFontWeight": "normal", "labelLimit": 0, "titleLimit": 0},
        "range": {
            "category": [each.dark if dark else each.light for each in inks],
            "ramp": [each.dark if dark else each.light for each in sequential(7)],
        },
        "style": {
            "guide": {"color": muted},
            "note": {"color": muted, "fontSize": 11.5},
            "ring": {"stroke": ink},
            "hollow": {"fill": "#181c20" if dark else "#ffffff"},
            "edged": {"stroke": "#181c20" if dark else "#ffffff"},
        },
    }  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for readers, with a true minus sign.

    >>> number(-0.0213), number(None)
    ('\N{MINUS SIGN}0.021', 'n/a')
    """
    if value is None:
        return "n/a"
    text = f"{value:.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.1e}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def plain(value: float) -> str:
    """Write four digits, as a config file would say them.

    >>> plain(0.0138100001), plain(6.0)
    ('0.01381', '6')
    """
    return f"{value:.4g}"


def interval(pair: tuple[float, float] | None, digits: int = 3) -> str:
    """Write an interval.

    >>> interval((0.5, 1.0), digits=1)
    '[0.5, 1.0]'
    """
    return "" if pair is None else f"[{number(pair[0], digits)}, {number(pair[1], digits)}]"


def power(value: float) -> str:
    """Write a rate as a power of two, in plain characters.

    >>> power(2**-6), power(0.02)
    ('2^-6', '2^-5.64')
    """
    exponent = math.log2(value)
    return f"2^{round(exponent)}" if abs(exponent - round(exponent)) < 5e-3 else f"2^{exponent:.2f}"


def power_ticks(low: float, high: float, most: int = 9) -> dict[float, str]:
    """Label the whole exponents inside [low, high] as powers of two, for an axis in log2.

    >>> power_ticks(-2.5, -0.5)
    {-2.0: '2^-2', -1.0: '2^-1'}
    """
    return {float(tick): f"2^{tick}" for tick in whole_ticks(low, high, most)}


def whole_ticks(low: float, high: float, most: int = 9) -> list[int]:
    """Return the whole exponents inside [low, high], thinned to at most `most`."""
    step = max(1, math.ceil((high - low) / most))
    return [tick for tick in range(math.ceil(low), math.floor(high) + 1) if tick % step == 0]


def nice_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round positions inside [low, high], in steps of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(2.17, 2.93, most=5)
    [2.2, 2.4, 2.6, 2.8]
    """
    if not high > low:
        return [low]
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) <= most)
    return [round(step * i, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return positions 1, 2, 5 times powers of ten around [low, high]; whole powers only, over many decades.

    >>> log_ticks(0.8, 12)
    [1.0, 2.0, 5.0, 10.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    every = max(1, len(decades) // 8)
    ticks = [float(f"{factor}e{decade}") for decade in decades if decade % every == 0 for factor in factors]
    return [tick for tick in ticks if 0.95 * low <= tick <= 1.05 * high]
