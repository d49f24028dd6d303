"""Curves of an evaluation as an SVG picture: the share of wrong ones among hits over the hit rate."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from pagoda.cache.evaluation import Curve

WIDTH, HEIGHT, MARGIN = 640, 400, 56
COLORS = ("#888888", "#1f6fb2", "#b2521f")
MAX_WRONG = 0.5


def draw(curves: Sequence[Curve], title: str) -> str:
    """The picture, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    for share in np.arange(0, 1.01, 0.2):
        x = _x(float(share))
        parts.append(f'<line x1="{x}" y1="{_y(0)}" x2="{x}" y2="{_y(MAX_WRONG)}" stroke="#eee"/>')
        parts.append(f'<text x="{x}" y="{_y(0) + 16}" text-anchor="middle">{share:.0%}</text>')
    for share in np.arange(0, MAX_WRONG + 0.01, 0.1):
        y = _y(float(share))
        parts.append(f'<line x1="{_x(0)}" y1="{y}" x2="{_x(1)}" y2="{y}" stroke="#eee"/>')
        parts.append(f'<text x="{_x(0) - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for place, curve in enumerate(curves):
        color = COLORS[place % len(COLORS)]
        step = max(1, len(curve.hits) // 600)
        points = zip(curve.hits[::step], np.minimum(curve.wrong[::step], MAX_WRONG), strict=True)
        path = " ".join(f"{_x(hits):.1f},{_y(wrong):.1f}" for hits, wrong in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = MARGIN + 16 * place
        parts.append(f'<text x="{_x(0) + 12}" y="{y}" fill="{color}">{escape(curve.name)}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">hit rate</text>')
    parts.append(
        f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">'
        "wrong ones among hits</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _x(share: float) -> float:
    return MARGIN + float(share) * (WIDTH - MARGIN - 20)


def _y(share: float) -> float:
    return HEIGHT - MARGIN - float(share) / MAX_WRONG * (HEIGHT - MARGIN - 40)
