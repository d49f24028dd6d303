"""The calibration curve as a picture: how often the label is yes where the judge says so much."""

from __future__ import annotations

from pagoda.evals.calibration import Agreement

SIZE, MARGIN = 320, 44


def curve_svg(raw: Agreement, fitted: Agreement) -> str:
    """Both curves over the diagonal, on which a judge's word can be taken; a dot's area is its number of cases."""
    total = SIZE + 2 * MARGIN
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{total}' height='{total}' ",
        "font-family='sans-serif' font-size='12'>",
        f"<rect width='{total}' height='{total}' fill='white'/>",
        f"<path d='M{_x(0)} {_y(0)}H{_x(1)}V{_y(1)}H{_x(0)}Z' fill='none' stroke='#999'/>",
        f"<path d='M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}' stroke='#ccc' stroke-dasharray='4'/>",
    ]
    for value in (0, 0.5, 1):
        parts.append(f"<text x='{_x(value)}' y='{_y(0) + 16}' text-anchor='middle'>{value:g}</text>")
        parts.append(f"<text x='{_x(0) - 6}' y='{_y(value) + 4}' text-anchor='end'>{value:g}</text>")
    parts.append(f"<text x='{_x(0.5)}' y='{_y(0) + 34}' text-anchor='middle'>probability of yes</text>")
    parts.append(f"<text x='{_x(0)}' y='{_y(1) - 24}'>share labelled yes</text>")
    for found, colour, name, line in ((raw, "#b0b0b0", "uncalibrated", 10), (fitted, "#0969da", "calibrated", 24)):
        dots = [(_x(p), _y(share), max(2.0, 12 * (cases / found.num_labels) ** 0.5)) for p, share, cases in found.curve]
        path = " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y, _) in enumerate(dots))
        parts.append(f"<path d='{path}' fill='none' stroke='{colour}'/>")
        parts += [f"<circle cx='{x}' cy='{y}' r='{r:.1f}' fill='{colour}'/>" for x, y, r in dots]
        parts.append(f"<text x='{_x(0.98)}' y='{_y(0) - line}' text-anchor='end' fill='{colour}'>{name}</text>")
    return "".join([*parts, "</svg>\n"])


def _x(value: float) -> float:
    return round(MARGIN + value * SIZE, 1)


def _y(value: float) -> float:
    return round(MARGIN + (1 - value) * SIZE, 1)
