"""Pictures, as text: curves of latencies, bars for each round, lines of growth. Their colours stand in picture.css."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from crafely.bench.report import Growth, SideResult

# Light and dark, as the reader's system has it.
STYLE = Path(__file__).parent / "picture.css"
WIDTH = 860
LABELS = 250
ROUND = 5
GAP = 9
PLOT_LEFT, PLOT_TOP, PLOT_HEIGHT = 60, 12, 280
PLOT_WIDTH = WIDTH - PLOT_LEFT - 20
# The percentiles that the axis names; the slowest of all stands at its end.
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
MOST_NINES = 5.0

Line = tuple[str, Sequence[tuple[float, float]]]


def colour(index: int, count: int) -> str:
    """One of so many colours that can be told apart, on light and on dark."""
    return f"hsl({round(360 * index / max(count, 1))} var(--saturation) var(--lightness))"


def bars(sides: Sequence[SideResult]) -> str:
    """For each side one thin bar a round, and a line at the median."""
    longest = max((side.highest for side in sides), default=0) or 1
    scale = (WIDTH - LABELS - 90) / longest
    parts, y = [], 8.0
    for index, side in enumerate(sides):
        height = ROUND * len(side.rounds)
        middle = y + height / 2 + 4
        parts.append(f'<text x="{LABELS - 8}" y="{middle:.1f}" text-anchor="end">{escape(side.name)}</text>')
        for number, one in enumerate(side.rounds):
            title = f"<title>{escape(side.name)}, round {number + 1}: {one.rate:,.0f} {side.unit}</title>"
            parts.append(
                f'<rect x="{LABELS}" y="{y + number * ROUND:.1f}" width="{one.rate * scale:.1f}" height="{ROUND - 1}" '
                f'fill="{colour(index, len(sides))}">{title}</rect>'
            )
        x = LABELS + side.median * scale
        parts.append(f'<path class="median" d="M{x:.1f} {y - 1:.1f}v{height + 1}"/>')
        end = LABELS + side.highest * scale + 6
        parts.append(f'<text x="{end:.1f}" y="{middle:.1f}">{side.median:,.0f}</text>')
        y += max(height, 12) + GAP
    return _svg(y, parts, "Rates, one bar a round; the line is the median")


def curves(sides: Sequence[SideResult]) -> str:
    """Latencies by percentile, both axes logarithmic; the legend stands below."""
    drawn = [side for side in sides if side.curve]
    times = [time for side in drawn for _, time in side.curve if time > 0]
    if not times:
        return ""
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)

    def x_of(percent: float) -> float:
        nines = MOST_NINES if percent >= 100 else -math.log10(1 - percent / 100)
        return PLOT_LEFT + PLOT_WIDTH * nines / MOST_NINES

    def y_of(time: float) -> float:
        return PLOT_TOP + PLOT_HEIGHT * (high - math.log10(max(time, 10.0**low))) / (high - low)

    parts = []
    for power in range(low, high + 1):
        parts += _level(y_of(10.0**power), f"{10.0**power:g} ms")
    for percent in (*TICKS, 100):
        words = "slowest" if percent == 100 else f"{percent:g} %"
        anchor = "end" if percent == 100 else "middle"
        parts.append(
            f'<text x="{x_of(percent):.1f}" y="{PLOT_TOP + PLOT_HEIGHT + 16}" text-anchor="{anchor}">{words}</text>'
        )
    for index, side in enumerate(sides):
        points = " ".join(f"{x_of(percent):.1f},{y_of(time):.1f}" for percent, time in side.curve)
        if points:
            title = f"<title>{escape(side.name)}</title>"
            parts.append(f'<polyline points="{points}" stroke="{colour(index, len(sides))}">{title}</polyline>')
    end = _legend(parts, [side.name for side in sides], PLOT_TOP + PLOT_HEIGHT + 36)
    return _svg(end, parts, "Latency by percentile")


def growth(points: Sequence[Growth]) -> list[str]:
    """What a call costs with the rows in the table, in two pictures: pages touched, and time."""
    names = list(dict.fromkeys(one.statement for one in points))
    by_name = {name: [one for one in points if one.statement == name] for name in names}
    pages = [(name, [(one.rows, one.buffers) for one in by_name[name]]) for name in names]
    times = [(name, [(one.rows, one.microseconds) for one in by_name[name]]) for name in names]
    return [_lines(pages, "pages touched by a call"), _lines(times, "microseconds of a call")]


def file(pictures: Sequence[str]) -> str:
    """Pictures one below the other, as a file that can be shown by itself, such as in a README."""
    parts, y = [], 0
    for picture in pictures:
        height = int(picture.partition(f'viewBox="0 0 {WIDTH} ')[2].partition('"')[0])
        parts.append(picture.replace("<svg ", f'<svg y="{y}" width="{WIDTH}" height="{height}" ', 1))
        y += height + 16
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="system-ui, sans-serif">'
    return f'{head}{style}<rect width="100%" height="100%" fill="var(--paper)"/>{"".join(parts)}</svg>\n'


def _lines(lines: Sequence[Line], words: str) -> str:
    """Lines over a logarithmic number of rows; heights begin at nothing, so that flat looks flat."""
    rows = sorted({x for _, points in lines for x, _ in points})
    if not rows:
        return ""
    top = max(y for _, points in lines for _, y in points) * 1.1 or 1
    first, last = math.log10(rows[0]), math.log10(rows[-1])

    def x_of(x: float) -> float:
        return PLOT_LEFT + (PLOT_WIDTH - 20) * (math.log10(x) - first) / (last - first or 1)

    def y_of(y: float) -> float:
        return PLOT_TOP + PLOT_HEIGHT * (1 - y / top)

    parts = []
    for quarter in range(5):
        parts += _level(y_of(top * quarter / 4), f"{top * quarter / 4:.3g}")
    for x in rows:
        parts.append(f'<text x="{x_of(x):.1f}" y="{PLOT_TOP + PLOT_HEIGHT + 16}" text-anchor="middle">{x:,}</text>')
    for index, (name, points) in enumerate(lines):
        hue = colour(index, len(lines))
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" stroke="{hue}"><title>{escape(name)}</title></polyline>')
        for x, y in points:
            title = f"<title>{escape(name)}, {x:,} rows: {y:.4g}</title>"
            parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4" fill="{hue}">{title}</circle>')
    end = _legend(parts, [f"{name}: {words}" for name, _ in lines], PLOT_TOP + PLOT_HEIGHT + 36)
    return _svg(end, parts, words)


def _level(y: float, words: str) -> list[str]:
    return [
        f'<path class="grid" d="M{PLOT_LEFT} {y:.1f}h{PLOT_WIDTH}"/>',
        f'<text x="{PLOT_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>',
    ]


def _legend(parts: list[str], names: Sequence[str], y: float) -> float:
    """Three names in a line; gives where the next thing may stand."""
    for index, name in enumerate(names):
        x, line = PLOT_LEFT + index % 3 * 265, y + index // 3 * 17
        parts.append(f'<rect x="{x}" y="{line - 9}" width="10" height="10" fill="{colour(index, len(names))}"/>')
        parts.append(f'<text x="{x + 15}" y="{line}">{escape(name)}</text>')
    return y + (len(names) + 2) // 3 * 17


def _svg(height: float, parts: Sequence[str], words: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
