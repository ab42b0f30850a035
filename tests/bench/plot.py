"""Lines over logarithmic axes, as SVG: what the plots of docs/performance.md need, and no more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 560
_HEIGHT: Final = 340
_LEFT, _RIGHT, _BOTTOM = 70, 20, 50
_LEGEND: Final = 38
_LEGEND_LINE: Final = 16
_FONT: Final = 'font-family="sans-serif"'
_MIDDLE: Final = 'text-anchor="middle"'
_COLOURS: Final = ("#1f6feb", "#9aa0a6", "#d9480f", "#2b8a3e", "#7048e8")


@dataclass(frozen=True)
class Line:
    """Points of one thing, all above zero."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """Some lines and what they show."""

    title: str
    across: str
    up: str
    lines: Sequence[Line]


def svg(plot: Plot) -> str:
    """The picture, on a white ground so that it can be read on any page."""
    points = [point for line in plot.lines for point in line.points]
    top = _LEGEND + _LEGEND_LINE * len(plot.lines)
    across = _Axis([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([y for _, y in points], _HEIGHT - _BOTTOM, top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT} font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(plot.title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" {_MIDDLE}>{escape(plot.across)}</text>',
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" {_MIDDLE}>{escape(plot.up)}</text>',
        *(
            f'<path d="M{across.place(value):.1f} {top}V{_HEIGHT - _BOTTOM}" stroke="#e4e4e4"/>'
            f'<text x="{across.place(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" {_MIDDLE}>{_short(value)}</text>'
            for value in across.marks()
        ),
        *(
            f'<path d="M{_LEFT} {up.place(value):.1f}H{_WIDTH - _RIGHT}" stroke="#e4e4e4"/>'
            f'<text x="{_LEFT - 6}" y="{up.place(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>'
            for value in up.marks()
        ),
    ]
    for number, line in enumerate(plot.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(across.place(x), up.place(y)) for x, y in line.points]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        y = _LEGEND + _LEGEND_LINE * number
        parts.append(f'<rect x="{_LEFT}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 16}" y="{y}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


class _Axis:
    """A logarithmic scale over whole decades, between two places on the picture."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)) + 1e-9)
        self._high = max(self._low + 1, math.ceil(math.log10(max(values)) - 1e-9))
        self._begin = begin
        self._end = end

    def place(self, value: float) -> float:
        part = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + part * (self._end - self._begin)

    def marks(self) -> Iterator[float]:
        return (10.0**exponent for exponent in range(self._low, self._high + 1))


def _short(value: float) -> str:
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{name}"
    return f"{value:g}"
