"""A picture of what a comparison found, quality over size, as SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pagoda.scoring.report import Quality, Report

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 46, 56


def quality_over_size(report: Report) -> str:
    """Mean KL divergence (log) over bytes a weight, a point a model; the SVG's text."""
    rows = [row for row in report.rows if row.kld is not None]
    x = _Axis([row.bytes_per_weight for row in rows], LEFT, WIDTH - RIGHT)
    y = _Axis([math.log10(_divergence(row)) for row in rows], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 22, f"Quality over size, against {report.original}", "middle", size=15),
        _text(WIDTH / 2, HEIGHT - 14, "bytes a weight", "middle"),
        f'<g transform="translate(20 {HEIGHT / 2}) rotate(-90)">'
        + _text(0, 0, "mean KL divergence, nats (log scale; lower is better)", "middle")
        + "</g>",
        *_grid(x, y),
        *_points(rows, x, y),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _divergence(row: Quality) -> float:
    return max(row.kld or 0.0, 1e-7)


class _Axis:
    """Maps values to pixels, with some room at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        room = max(0.08 * (high - low), 0.02)
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, step: float) -> list[float]:
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _grid(x: _Axis, y: _Axis) -> list[str]:
    lines = []
    for value in x.ticks(_step(x.high - x.low)):
        lines.append(_line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM))
        lines.append(_text(x.at(value), HEIGHT - BOTTOM + 18, f"{value:.3g}", "middle"))
    for power in y.ticks(0.5 if y.high - y.low < 3 else 1):
        lines.append(_line(LEFT, y.at(power), WIDTH - RIGHT, y.at(power)))
        lines.append(_text(LEFT - 8, y.at(power) + 4, f"{10**power:.1g}", "end"))
    return lines


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten: some six ticks."""
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 6)


def _points(rows: Sequence[Quality], x: _Axis, y: _Axis) -> list[str]:
    points = []
    for row in rows:
        cx, cy = x.at(row.bytes_per_weight), y.at(math.log10(_divergence(row)))
        left = cx > WIDTH - 200  # no room for the name on the right
        points.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" fill="#2563eb"/>')
        points.append(_text(cx + (-9 if left else 9), cy + 4, row.name, "end" if left else "start"))
    return points


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e2e8f0"/>'


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
