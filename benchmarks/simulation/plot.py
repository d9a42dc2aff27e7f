"""A plot of simulations over time as one SVG: time to first token, inter-token latency, use of the KV cache."""

import math
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.simulation.outcome import Curve, Curves

_COLOURS = ("#1f6fb4", "#d1622b", "#2b8a57", "#8a4fb0", "#b03a4a", "#6b6f76")
"""Told apart by people who see few colours too; a seventh simulation begins again."""
_WIDTH, _PANEL_HEIGHT = 900, 200
_LEFT, _RIGHT, _TOP, _GAP = 78, 20, 34, 52
_LEGEND_HEIGHT = 20
_NUM_TICKS = 7

_PANELS: tuple[tuple[str, Callable[[Curves], Curve], float], ...] = (
    ("time to first token, ms: median, p99 dashed", lambda curves: curves.first_token, 1e3),
    ("inter-token latency, ms: median, p99 dashed", lambda curves: curves.interval, 1e3),
    ("KV cache in use, %: mean of replicas, fullest dashed", lambda curves: curves.kv_use, 1e2),
)


def plot(title: str, simulations: Sequence[tuple[str, Curves]], end: float) -> str:
    """The text of the SVG; each simulation has a name, and the time axis ends at `end` seconds."""
    legend_end = _TOP + _LEGEND_HEIGHT * len(simulations)
    height = legend_end + len(_PANELS) * (_PANEL_HEIGHT + _GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for index, (name, _) in enumerate(simulations):
        y = _TOP + _LEGEND_HEIGHT * index + 10
        parts.append(f'<path d="M{_LEFT} {y}h24" stroke="{_colour(index)}" stroke-width="2.5"/>')
        parts.append(f'<text x="{_LEFT + 32}" y="{y + 4}">{escape(name)}</text>')
    for index, (label, curve_of, factor) in enumerate(_PANELS):
        top = legend_end + index * (_PANEL_HEIGHT + _GAP) + 30
        curves = [curve_of(each) for _, each in simulations]
        parts += _panel(label, curves, factor, end, top)
    return "\n".join([*parts, "</svg>", ""])


def _panel(label: str, curves: Sequence[Curve], factor: float, end: float, top: int) -> list[str]:
    """One pair of axes with a median and a dashed line for each simulation."""
    right, bottom = _WIDTH - _RIGHT, top + _PANEL_HEIGHT
    x_ticks = _ticks(end)
    y_ticks = _ticks(factor * max((max(curve.high, default=0.0) for curve in curves), default=0.0))
    x_scale, y_scale = (right - _LEFT) / (end or 1.0), _PANEL_HEIGHT / y_ticks[-1]
    parts = [f'<text x="{_LEFT}" y="{top - 9}" font-weight="600">{escape(label)}</text>']
    for tick in y_ticks:
        y = bottom - tick * y_scale
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e3e5e8"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,g}</text>')
    for tick in x_ticks:
        x = _LEFT + tick * x_scale
        if x <= right + 0.5:
            unit = " s" if tick == x_ticks[0] else ""
            parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="#222"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:,g}{unit}</text>')
    parts.append(f'<path d="M{_LEFT} {top}V{bottom}H{right}" stroke="#222" fill="none"/>')
    for index, curve in enumerate(curves):
        for values, dashes in ((curve.high, ' stroke-dasharray="4 3" stroke-opacity="0.75"'), (curve.median, "")):
            points = [
                f"{_LEFT + time * x_scale:.1f},{bottom - value * factor * y_scale:.1f}"
                for time, value in zip(curve.times, values, strict=True)
            ]
            stroke = f'stroke="{_colour(index)}" stroke-width="1.6" stroke-linecap="round"{dashes}'
            drawn = points * 2 if len(points) == 1 else points  # a line of no length is a dot
            parts.append(f'<polyline points="{" ".join(drawn)}" fill="none" {stroke}/>')
    return parts


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 on, of which the last is not below `most`."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)) * power
    count = math.ceil(most / step - 1e-9)
    return [float(f"{number * step:.6g}") for number in range(count + 1)]


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
