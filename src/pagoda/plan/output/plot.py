"""A plan as a picture: the roofline with prefill and decode on it, and what users get over how many there are.

The data is plain (`Picture`), one row of panels for each. matplotlib draws it, which is an extra (`plot`) and is
imported here only.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.errors import ConfigError

SUFFIXES = (".png", ".svg", ".pdf")
INK, SOFT, FAINT = "#1f2933", "#7b8794", "#d9dee3"
PREFILL, DECODE = "#d1495b", "#1d6fa5"
WIDTH, HEIGHT, DPI = 12.0, 5.2, 130
NAME_ROOM = 2.5  # how far apart, in FLOP a byte, points must be for both to be named
TICK_ROOM = 1.5  # the same for numbers of users below their axis
ABOVE = 1.5  # how far above what memory holds the axes go


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """A point of the roofline: FLOPs per byte, and predicted FLOP/s."""

    label: str
    intensity: float
    flops_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """What `users` at once get. `fits`: memory holds them."""

    users: int
    output_tok_s: float
    tpot_s: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """One plan. `peaks` are FLOP/s by number type, `compute_type` the one that is computed in; `decode` goes from one
    user to many; `chosen` is the number of users to run at, `tpot_bound_s` what was asked for."""

    title: str
    bandwidth_bytes_s: float
    peaks: Mapping[str, float]
    compute_type: str
    prefill: RooflinePoint
    decode: Sequence[RooflinePoint]
    served: Sequence[Served]
    chosen: Served | None = None
    tpot_bound_s: float | None = None


def draw(pictures: Sequence[Picture], path: Path) -> None:
    """Write the pictures to `path`, which says by its ending what it becomes. ConfigError without matplotlib, for
    another ending, and for a file that cannot be written."""
    check_path(path)
    figure = _figure_class()(figsize=(WIDTH, HEIGHT * len(pictures)), dpi=DPI, layout="constrained", facecolor="white")
    rows = figure.subfigures(len(pictures), 1, squeeze=False)[:, 0]
    for row, picture in zip(rows, pictures, strict=True):
        _draw_row(row, picture)
    try:
        with importlib.import_module("matplotlib").rc_context({"svg.fonttype": "none"}):  # letters stay text
            figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}") from None


def check_path(path: Path) -> None:
    """ConfigError for a path that cannot be written or has no known ending, before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--plot: {path} must end in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {path.absolute().parent}")
    _figure_class()


def _figure_class() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from None


def _draw_row(row: Any, picture: Picture) -> None:
    row.suptitle(picture.title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    grid = row.add_gridspec(2, 2, width_ratios=(1.25, 1))
    _roofline(row.add_subplot(grid[:, 0]), picture)
    top = row.add_subplot(grid[0, 1])
    bottom = row.add_subplot(grid[1, 1], sharex=top)
    bound_ms = 1e3 * (picture.tpot_bound_s or 0)
    _over_users(top, picture, [one.output_tok_s for one in picture.served], "tokens/s, all users")
    _over_users(bottom, picture, [1e3 * one.tpot_s for one in picture.served], "ms between a user's tokens", bound_ms)
    top.tick_params(labelbottom=False)
    bottom.set_xlabel("users at once", color=SOFT)
    if bound_ms:
        bottom.axhline(bound_ms, color=PREFILL, lw=1, ls=":")
        _note(bottom, "bound", (0.01, bound_ms), PREFILL, transform=bottom.get_yaxis_transform())
    if picture.chosen:
        one = picture.chosen
        _mark(top, one.users, one.output_tok_s, f"{one.users:,} users: {one.output_tok_s:,.0f} tok/s")
        _mark(bottom, one.users, 1e3 * one.tpot_s, f"{1e3 * one.tpot_s:,.1f} ms")


# The roofline


def _roofline(axes: Any, picture: Picture) -> None:
    peak, bandwidth = picture.peaks[picture.compute_type], picture.bandwidth_bytes_s
    points = [picture.prefill, *picture.decode]
    left = min([point.intensity for point in points] + [peak / bandwidth]) / 3
    right = max([point.intensity for point in points] + [peak / bandwidth]) * 8
    for other, kinds in _by_peak(picture.peaks).items():
        if other != peak and other / bandwidth < right:
            _flat(axes, kinds, other, max(left, other / bandwidth), right, color=FAINT, lw=1.2)
    ridge = peak / bandwidth
    axes.plot([left, ridge], [left * bandwidth, peak], color=INK, lw=1.8)
    _flat(axes, picture.compute_type, peak, ridge, right, color=INK, lw=1.8)
    axes.plot([ridge, ridge], [left * bandwidth / 2, peak], color=SOFT, lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min([p.flops_s for p in points] + [left * bandwidth]) / 2, max(picture.peaks.values()) * 2.2)
    _note(axes, f"ridge {ridge:,.0f}", (ridge, axes.get_ylim()[0] * 1.25), SOFT, ha="right" if ridge > 30 else "left")
    _slope_label(axes, f"{_si(bandwidth)}B/s", (left * ridge) ** 0.5, bandwidth)
    _path(axes, picture.decode)
    axes.plot(picture.prefill.intensity, picture.prefill.flops_s, "D", color=PREFILL, ms=8, zorder=5)
    _label(axes, picture.prefill.label, picture.prefill, PREFILL, dx=9, ha="left")
    axes.set_xlabel("FLOP a byte", color=SOFT)
    axes.set_ylabel("FLOP/s", color=SOFT)
    _plain(axes)


def _by_peak(peaks: Mapping[str, float]) -> dict[float, str]:
    """Names of number types by their peak FLOP/s; equally fast types are joined into one label."""
    found: dict[float, str] = {}
    for kind, peak in peaks.items():
        found[peak] = f"{found[peak]}, {kind}" if peak in found else kind
    return found


def _flat(axes: Any, kind: str, peak: float, start: float, end: float, **style: Any) -> None:
    axes.plot([start, end], [peak, peak], **style)
    color = INK if style["color"] == INK else SOFT
    unit = "OP/s" if kind.startswith("int") else "FLOP/s"
    _note(axes, f" {kind} {_si(peak)}{unit}", (end, peak), color, dy=-5)


def _slope_label(axes: Any, text: str, x: float, bandwidth: float) -> None:
    axes.annotate(
        text,
        (x, x * bandwidth),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=INK,
        fontsize=9,
    )


def _path(axes: Any, points: Sequence[RooflinePoint]) -> None:
    """Decode from one user to many; the first and last are named, and between them those that have room."""
    xs, ys = [p.intensity for p in points], [p.flops_s for p in points]
    axes.plot(xs, ys, "-o", color=DECODE, lw=1.4, ms=5, zorder=4)
    named = [points[0]]
    for point in points[1:-1]:
        if named[-1].intensity * NAME_ROOM < point.intensity < points[-1].intensity / NAME_ROOM:
            named.append(point)
    for point in dict.fromkeys([*named, points[-1]]):
        _label(axes, point.label, point, DECODE, dx=7, dy=-9, ha="left")


def _label(axes: Any, text: str, point: RooflinePoint, color: str, *, dx: float = 0, dy: float = 0, ha: str) -> None:
    axes.annotate(
        text,
        (point.intensity, point.flops_s),
        xytext=(dx, dy),
        textcoords="offset points",
        color=color,
        fontsize=9,
        ha=ha,
        va="center",
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
    )


# Over the number of users


def _over_users(axes: Any, picture: Picture, values: Sequence[float], label: str, bound: float = 0.0) -> None:
    users = [one.users for one in picture.served]
    held = sum(one.fits for one in picture.served)
    axes.plot(users[:held], values[:held], "-o", color=DECODE, lw=1.8, ms=4.5, zorder=4)
    if held < len(users):
        start = max(held - 1, 0)
        axes.plot(users[start:], values[start:], "--", color=SOFT, lw=1.2, zorder=3)
        at = (users[max(held, 1) if len(users) > 1 else 0], 0.03)
        _note(axes, "memory is full", at, SOFT, transform=axes.get_xaxis_transform())
    axes.set_xscale("log", base=2)
    ticks = _with_room(users)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(0, (ABOVE if held < len(users) else 1.18) * max(*values[: max(held, 1)], bound))
    axes.set_title(label, loc="left", fontsize=10, color=SOFT)
    _plain(axes)


def _with_room(users: Sequence[int]) -> list[int]:
    """The powers of two among `users`, and the others that leave room for their labels."""
    powers = [n for n in users if n & (n - 1) == 0]
    near = [n for n in users if any(power / TICK_ROOM < n < power * TICK_ROOM for power in powers)]
    return sorted({*powers, *(n for n in users if n not in near)})


def _mark(axes: Any, x: float, y: float, text: str) -> None:
    axes.plot(x, y, "o", ms=11, mfc="none", mec=INK, mew=1.6, zorder=6)
    low, high = axes.get_xlim()
    is_right = x > (low * high) ** 0.5
    axes.annotate(
        text,
        (x, y),
        xytext=(-10 if is_right else 10, 8),
        textcoords="offset points",
        ha="right" if is_right else "left",
        fontsize=9.5,
        color=INK,
        fontweight="bold",
    )


def _note(
    axes: Any, text: str, at: tuple[float, float], color: str, *, ha: str = "left", dy: float = 2, **more: Any
) -> None:
    axes.annotate(
        text,
        at,
        xytext=(0, dy),
        textcoords="offset points",
        color=color,
        fontsize=8.5,
        ha=ha,
        va="bottom",
        **({"xycoords": more["transform"]} if more else {}),
    )


def _plain(axes: Any) -> None:
    """Light grid, no frame."""
    axes.grid(True, which="major", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=SOFT, labelsize=8.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def _si(value: float) -> str:
    """312e12 as "312 T"."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
