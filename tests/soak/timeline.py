"""A picture of a soak: requests answered and refused in each second, and when there was which fault."""

from collections import Counter
from collections.abc import Mapping, Sequence

from crafely.bench import svg
from tests.soak.havoc import Fault

HOW = ("answered", "refused", "lost")


def picture(timeline: Mapping[int, Counter[str]], faults: Sequence[Fault]) -> str:
    """An SVG file. Takes what became of the requests of each second, and the faults."""
    length = max(timeline, default=1)
    top = max((count for counts in timeline.values() for count in counts.values()), default=1)

    def x_of(second: float) -> float:
        return svg.PLOT_LEFT + svg.PLOT_WIDTH * second / length

    def y_of(count: float) -> float:
        return svg.PLOT_TOP + svg.PLOT_HEIGHT * (1 - count / top)

    parts = [part for share in (0.0, 0.5, 1.0) for part in svg._level(y_of(top * share), f"{top * share:,.0f}/s")]
    for number, fault in enumerate(faults, 1):
        x, width = x_of(fault.at), max(1.5, x_of(fault.at + fault.seconds + fault.recovery) - x_of(fault.at))
        parts.append(
            f'<rect x="{x:.1f}" y="{svg.PLOT_TOP}" width="{width:.1f}" height="{svg.PLOT_HEIGHT}" opacity="0.2" '
            f'fill="currentColor"><title>{fault.name}</title></rect>'
        )
        parts.append(svg._text(x + width / 2, svg.PLOT_TOP + svg.PLOT_HEIGHT + 14, str(number), "middle"))
    colours = svg.colours(HOW)
    for how, colour in zip(HOW, colours, strict=True):
        places = [(x_of(second), y_of(timeline.get(second, Counter())[how])) for second in range(length)]
        parts += svg._line(how, places, colour)
    end = svg._legend(parts, HOW, colours, svg.PLOT_TOP + svg.PLOT_HEIGHT + 36)
    for number, fault in enumerate(faults, 1):
        x = svg.PLOT_LEFT + (number - 1) % 2 * 400
        words = f"{number}: {fault.name}, served again after {fault.recovery:.2f} s"
        parts.append(svg._text(x, end + (number - 1) // 2 * 17, words, "start"))
    return svg.file(svg._svg(end + (len(faults) + 1) // 2 * 17, parts, "Requests a second, and faults"))
