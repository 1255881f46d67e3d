"""One figure a record: curves over N (or a rate) with the range over seeds. Plain SVG text, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from loopscale.files import replacing
from loopscale.report.palette import nice_ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 380, 66, 200, 16, 52
INKS = ("#0b7a75", "#a85b00", "#b8304a", "#4450b8", "#8a2f9e", "#55701c")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 4", "1 4")


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the record's figure to `path`; the record's fingerprint is inside."""
    with replacing(path) as aside:
        aside.write_text(svg(record), encoding="utf-8")


def fingerprint(record: dict[str, Any]) -> str:
    """Of all that is drawn."""
    return hashlib.sha256(json.dumps(record["figure"], sort_keys=True).encode()).hexdigest()[:12]


def svg(record: dict[str, Any]) -> str:
    """The figure as text, with title and description for screen readers."""
    figure = record["figure"]
    x, y = _scale(figure, "x"), _scale(figure, "y")
    body = [*_axes(figure, x, y)]
    for index, line in enumerate(figure["lines"]):
        body += _line(line, index, x, y)
    measured = "; ".join(f"{m['what']} {m['value']:.3g}" for m in record["measured"])
    described = f"{figure['y']} over {figure['x']}. {record['verdict']}: {measured}."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#1b1f23">\n<title>{_safe(record["claim"])}</title>\n'
        f"<desc>{_safe(described)} Record {fingerprint(record)}.</desc>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


class _Scale:
    """From values to pixels along one axis."""

    def __init__(self, values: list[float], log: bool, start: float, end: float) -> None:
        self.log, self.start, self.end = log, start, end
        places = [self.place(v) for v in values]
        low, high = min(places), max(places)
        pad = 0.05 * (high - low) or 0.5
        self.low, self.high = low - pad, high + pad

    def place(self, value: float) -> float:
        return math.log2(value) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self.place(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high, 6)
        step = max(1, math.ceil((self.high - self.low) / 7))
        return [2.0**k for k in range(math.ceil(self.low), math.floor(self.high) + 1) if k % step == 0]


def _scale(figure: dict[str, Any], axis: str) -> _Scale:
    if axis == "x":
        values = [value for line in figure["lines"] for value in line["x"]]
        return _Scale(values, figure["log_x"], LEFT, WIDTH - RIGHT)
    values = [value for line in figure["lines"] for row in line["y"] for value in row if value is not None]
    return _Scale(values, figure["log_y"], HEIGHT - BOTTOM, TOP)


def _axes(figure: dict[str, Any], x: _Scale, y: _Scale) -> list[str]:
    out = []
    for tick in y.ticks():
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}" stroke="#dfe3e6"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{_number(tick)}</text>')
    for tick in x.ticks():
        out.append(f'<text x="{x(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" stroke="#767b82"/>'
    )
    out.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{_safe(figure["x"])}</text>')
    turn = f"translate(16 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)"
    out.append(f'<text transform="{turn}" text-anchor="middle">{_safe(figure["y"])}</text>')
    return out


def _line(line: dict[str, Any], index: int, x: _Scale, y: _Scale) -> list[str]:
    ink, dash = INKS[index % len(INKS)], DASHES[index % len(DASHES)]
    columns = [[v for v in column if v is not None] for column in zip(*line["y"], strict=True)]
    shown = [(at, values) for at, values in zip(line["x"], columns, strict=True) if values]
    if not shown:
        return []
    upper = [f"{x(at)},{y(max(values))}" for at, values in shown]
    lower = [f"{x(at)},{y(min(values))}" for at, values in reversed(shown)]
    mean = [f"{x(at)},{y(_mean(values, y.log))}" for at, values in shown]
    key, label = TOP + 14 + 30 * index, WIDTH - RIGHT + 14
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{ink}" opacity="0.18"/>',
        f'<polyline points="{" ".join(mean)}" fill="none" stroke="{ink}" stroke-width="2" stroke-dasharray="{dash}"/>',
        *(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.5" fill="{ink}"/>' for p in mean),
        f'<line x1="{label}" x2="{label + 22}" y1="{key}" y2="{key}" stroke="{ink}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/>',
        f'<text x="{label}" y="{key + 15}" font-size="11">{_safe(line["label"])}</text>',
    ]


def _mean(values: list[float], log: bool) -> float:
    if log:
        return 2.0 ** (sum(map(math.log2, values)) / len(values))
    return sum(values) / len(values)


def _number(value: float) -> str:
    if value and (abs(value) >= 1e4 or abs(value) < 1e-3):
        power = math.log2(abs(value))
        return f"2^{power:.0f}" if abs(power - round(power)) < 1e-6 else f"{value:.0e}"
    return f"{value:.4g}"


def _safe(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
