"""Charts as SVG inside the page: its style sheet colours them, light or dark, and they scale with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .html import text

COLOURS = 8  # of --series-0 … in report.css


def colour(number: int) -> str:
    """The CSS colour of the n-th method; after the last they begin again."""
    return f"var(--series-{number % COLOURS})"


@dataclass(kw_only=True)
class Line:
    """A curve.

    Args:
        name: what it shows, told on hover.
        colour: CSS.
        points: x and y.
        thin: one seed of several, drawn faintly.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    thin: bool = False


@dataclass(kw_only=True)
class Bar:
    """The bars of a method, one a class, in percent.

    Args:
        name: the method.
        colour: CSS.
        means: length of the bars; None: no bar.
        spreads: half the length of the whiskers; None: no whisker.
        marks: where a diamond stands; None: no diamond.
    """

    name: str
    colour: str
    means: Sequence[float | None]
    spreads: Sequence[float | None] = field(default_factory=list)
    marks: Sequence[float | None] = field(default_factory=list)


def line_chart(
    title: str,
    lines: Sequence[Line],
    x: tuple[str, float, float],
    y: tuple[float, float],
    log: bool,
    breaks: Sequence[float] = (),
) -> str:
    """Curves over whole numbers.

    Args:
        title: heading of the panel.
        lines: the curves; values that a logarithmic axis cannot show are left out.
        x: what is on the x axis, its least and its greatest value.
        y: least and greatest value of the y axis, see `limits`.
        log: logarithmic y axis.
        breaks: places on the x axis to mark with a line.
    """
    width, height, left, right, top, bottom = 380, 250, 52, 12, 30, 40
    x_label, first, last = x[0], x[1], max(x[2], x[1] + 1)
    scale = math.log10 if log else float
    low, high = scale(y[0]), scale(y[1])

    def across(value: float) -> float:
        return left + (value - first) / (last - first) * (width - left - right)

    def down(value: float) -> float:
        return height - bottom - (scale(value) - low) / (high - low) * (height - top - bottom)

    parts = [f'<text class="title" x="{left}" y="18">{text(title)}</text>']
    for tick in log_ticks(*y) if log else ticks(*y):
        parts.append(f'<path class="grid" d="M{left} {down(tick):.1f}H{width - right}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in ticks(first, last):
        if tick == int(tick):
            place = f'x="{across(tick):.1f}" y="{height - bottom + 16}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text class="tick" x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{text(x_label)}</text>'
    )
    for place in breaks:
        parts.append(f'<path class="break" d="M{across(place):.1f} {top}V{height - bottom}"/>')
    for line in sorted(lines, key=lambda line: not line.thin):
        shown = [(across(place), down(value)) for place, value in line.points if value > 0 or not log]
        kind = ' class="thin"' if line.thin else ""
        name = f"<title>{text(line.name)}</title>"
        if len(shown) == 1:
            place = f'cx="{shown[0][0]:.1f}" cy="{shown[0][1]:.1f}"'
            parts.append(f'<circle{kind} {place} r="3" fill="{line.colour}">{name}</circle>')
        elif shown:
            path = "L".join(f"{x:.1f} {value:.1f}" for x, value in shown)
            parts.append(f'<path{kind} d="M{path}" fill="none" stroke="{line.colour}">{name}</path>')
    return _svg(width, height, f"{title} by {x_label}", parts)


def limits(values: Sequence[float]) -> tuple[tuple[float, float], bool] | None:
    """The range of an axis that shows all values, and whether it is logarithmic; None without a value to show."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive):
        return (10 ** math.floor(math.log10(min(positive))), 10 ** math.ceil(math.log10(max(positive)))), True
    low, high = min(0.0, *values), max(values)
    return (low, high + 0.04 * (high - low) if high > low else low + 1), False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, not more than six of them."""
    first, last = round(math.log10(low)), round(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + 1, stride)]


def bar_chart(title: str, groups: Sequence[str], bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0 to 100 %, grouped."""
    thick, gap, left, right, top, bottom, width = (9 if len(bars) < 5 else 7), 9, 84, 14, 44, 10, 380
    step = thick * len(bars) + gap
    height = top + step * len(groups) + bottom

    def across(value: float) -> float:
        return left + max(0.0, min(value, 100.0)) / 100 * (width - left - right)

    parts = [f'<text class="title" x="8" y="18">{text(title)}</text>']
    for tick in range(0, 101, 20):
        parts.append(f'<path class="grid" d="M{across(tick):.1f} {top - 4}V{height - bottom}"/>')
        parts.append(f'<text class="tick" x="{across(tick):.1f}" y="{top - 10}" text-anchor="middle">{tick}</text>')
    for number, group in enumerate(groups):
        begin = top + step * number
        middle = begin + (step - gap) / 2
        parts.append(f'<text class="tick" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">{text(group)}</text>')
        for place, bar in enumerate(bars):
            y, value = begin + thick * place, bar.means[number]
            spread = bar.spreads[number] if bar.spreads else None
            mark = bar.marks[number] if bar.marks else None
            centre = y + (thick - 1) / 2
            if value is not None:
                told = f"{bar.name}, {group}: {value:.1f} %" + (f" ± {spread:.1f}" if spread is not None else "")
                told += f", paper {mark:.1f} %" if mark is not None else ""
                parts.append(
                    f'<rect x="{left}" y="{y:.1f}" width="{max(across(value) - left, 0.8):.1f}" height="{thick - 1}" '
                    f'fill="{bar.colour}"><title>{text(told)}</title></rect>'
                )
            if value is not None and spread is not None:
                low, high = across(value - spread), across(value + spread)
                parts.append(f'<path class="whisker" d="M{low:.1f} {centre:.1f}H{high:.1f}"/>')
            if mark is not None:
                x, told = across(mark), f"paper, {bar.name}: {mark:.1f} %"
                parts.append(
                    f'<path class="mark" stroke="{bar.colour}" '
                    f'd="M{x:.1f} {centre - 4:.1f}l4 4l-4 4l-4 -4z"><title>{text(told)}</title></path>'
                )
    return _svg(width, height, f"IoU of the classes, {title}", parts)


def shares_bar(shares: Sequence[tuple[str, float, str]], whole: float) -> str:
    """One bar in parts.

    Args:
        shares: name, value and CSS colour of the parts.
        whole: the value that would fill the full width.
    """
    parts, begin = [], 0.0
    for name, value, fill in shares:
        width = 100 * value / whole
        parts.append(
            f'<rect x="{begin:.2f}" width="{width:.2f}" height="10" fill="{fill}"><title>{text(name)}</title></rect>'
        )
        begin += width
    return (
        f'<svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'
    )


def _svg(width: int, height: float, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height:g}" role="img" aria-label="{text(description)}">'
        f"{''.join(parts)}</svg>"
    )
