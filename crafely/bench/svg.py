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


def colours(families: Sequence[str]) -> list[str]:
    """Attributes that colour one thing of each family: a hue for the family, within it from pale to strong."""
    names = list(dict.fromkeys(families))
    found = []
    for position, family in enumerate(families):
        hue = round(360 * names.index(family) / len(names))
        number, count = families[:position].count(family) + 1, families.count(family)
        found.append(
            f'color="hsl({hue} var(--saturation) var(--lightness))" opacity="{0.4 + 0.6 * number / count:.2f}"'
        )
    return found


def bars(sides: Sequence[SideResult]) -> str:
    """For each side one thin bar a round, and a line at the median."""
    longest = max((side.highest for side in sides), default=0) or 1
    scale = (WIDTH - LABELS - 90) / longest
    parts, y = [], 8.0
    for side, colour in zip(sides, colours([side.family for side in sides]), strict=True):
        height = ROUND * len(side.rounds)
        middle = y + height / 2 + 4
        parts.append(_text(LABELS - 8, middle, side.name, "end"))
        for number, one in enumerate(side.rounds):
            title = f"<title>{escape(side.name)}, round {number + 1}: {one.rate:,.0f} {side.unit}</title>"
            parts.append(
                f'<rect x="{LABELS}" y="{y + number * ROUND:.1f}" width="{one.rate * scale:.1f}" height="{ROUND - 1}" '
                f'{colour} fill="currentColor">{title}</rect>'
            )
        x = LABELS + side.median * scale
        parts.append(f'<path class="median" d="M{x:.1f} {y - 1:.1f}v{height + 1}"/>')
        end = LABELS + side.highest * scale + 6
        parts.append(_text(end, middle, f"{side.median:,.0f}", "start"))
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
        parts.append(_text(x_of(percent), PLOT_TOP + PLOT_HEIGHT + 16, words, anchor))
    found = colours([side.family for side in sides])
    for side, colour in zip(sides, found, strict=True):
        parts += _line(side.name, [(x_of(percent), y_of(time)) for percent, time in side.curve], colour)
    end = _legend(parts, [side.name for side in sides], found, PLOT_TOP + PLOT_HEIGHT + 36)
    return _svg(end, parts, "Latency by percentile")


def growth(points: Sequence[Growth]) -> str:
    """What a call costs, as a multiple of what it costs with the fewest rows. Heights begin at 0: flat is flat."""
    rows = sorted({one.rows for one in points})
    lines: list[Line] = []
    for name in dict.fromkeys(one.statement for one in points):
        mine = [one for one in points if one.statement == name]
        lines.append((f"{name}: pages", [(one.rows, one.buffers / mine[0].buffers) for one in mine]))
        lines.append((f"{name}: time", [(one.rows, one.microseconds / mine[0].microseconds) for one in mine]))
    top = max(math.ceil(max(y for _, line in lines for _, y in line) + 0.2), 2)
    first, last = math.log10(rows[0]), math.log10(rows[-1])

    def x_of(x: float) -> float:
        return PLOT_LEFT + 30 + (PLOT_WIDTH - 60) * (math.log10(x) - first) / (last - first or 1)

    def y_of(y: float) -> float:
        return PLOT_TOP + PLOT_HEIGHT * (1 - y / top)

    parts = []
    for multiple in range(top + 1):
        parts += _level(y_of(multiple), f"{multiple} ×")
    for x in rows:
        parts.append(_text(x_of(x), PLOT_TOP + PLOT_HEIGHT + 16, f"{x:,} rows", "middle"))
    found = colours([name for name, _ in lines])
    for (name, line), colour in zip(lines, found, strict=True):
        places = [(x_of(x), y_of(y)) for x, y in line]
        parts += _line(name, places, colour)
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {colour} fill="currentColor"/>' for x, y in places]
    end = _legend(parts, [name for name, _ in lines], found, PLOT_TOP + PLOT_HEIGHT + 36, columns=2)
    return _svg(end, parts, "Cost of a call by rows, as a multiple of the smallest table's")


def loads(lines: Sequence[Line], marks: Sequence[tuple[float, float, str]]) -> str:
    """Busy processors by load, both axes logarithmic; marks are numbered, and said in words below."""
    places = [place for _, line in lines for place in line]
    heights = [y for _, y in places if y > 0] or [1.0]
    left, right = math.log10(min(x for x, _ in places)), math.log10(max(x for x, _ in places))
    low, high = math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)))
    low, high = max(low, high - 7), max(high, low + 1)

    def x_of(x: float) -> float:
        return PLOT_LEFT + PLOT_WIDTH * (math.log10(x) - left) / (right - left)

    def y_of(y: float) -> float:
        return PLOT_TOP + PLOT_HEIGHT * (high - math.log10(max(y, 10.0**low))) / (high - low)

    parts = []
    for power in range(low, high + 1):
        parts += _level(y_of(10.0**power), f"{10.0**power:,g}")
    for power in range(math.ceil(left), math.floor(right) + 1):
        anchor = "end" if power == right else "middle"
        parts.append(_text(x_of(10.0**power), PLOT_TOP + PLOT_HEIGHT + 16, f"{10**power:,}/s", anchor))
    found = colours([name.partition(":")[0] for name, _ in lines])
    for (name, line), colour in zip(lines, found, strict=True):
        parts += _line(name, [(x_of(x), y_of(y)) for x, y in line], colour)
    end = _legend(parts, [name for name, _ in lines], found, PLOT_TOP + PLOT_HEIGHT + 36, columns=2)
    for number, (x, y, words) in enumerate(marks, 1):
        dot = (
            f'<circle class="mark" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4"><title>{escape(words)}</title></circle>'
        )
        parts += [dot, _text(x_of(x) + 6, y_of(y) + 14, str(number), "start")]
        parts.append(_text(PLOT_LEFT, end + 8 + number * 17, f"{number}  {words}", "start"))
    return _svg(end + 16 + len(marks) * 17, parts, "Busy processors by load")


def file(picture: str) -> str:
    """A picture as a file that can be shown by itself, such as in a README."""
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    head, _, rest = picture.partition(">")
    own = 'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return f"{head} {own}>{style}{paper}{rest}\n"


def _level(y: float, words: str) -> list[str]:
    return [
        f'<path class="grid" d="M{PLOT_LEFT} {y:.1f}h{PLOT_WIDTH}"/>',
        _text(PLOT_LEFT - 6, y + 4, words, "end"),
    ]


def _line(name: str, places: Sequence[tuple[float, float]], colour: str) -> list[str]:
    if not places:
        return []
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = f'{colour} stroke="currentColor" fill="none"'
    return [f'<polyline points="{points}" {style}><title>{escape(name)}</title></polyline>']


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _legend(parts: list[str], names: Sequence[str], found: Sequence[str], y: float, columns: int = 3) -> float:
    """So many names in a line; gives where the next thing may stand."""
    for index, (name, colour) in enumerate(zip(names, found, strict=True)):
        x, line = PLOT_LEFT + index % columns * 800 // columns, y + index // columns * 17
        parts.append(f'<rect x="{x}" y="{line - 9}" width="10" height="10" {colour} fill="currentColor"/>')
        parts.append(_text(x + 15, line, name, "start"))
    return y + (len(names) + columns - 1) // columns * 17


def _svg(height: float, parts: Sequence[str], words: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
