"""A report as one page of HTML: it needs no network and no scripts, and follows the reader's light or dark.

The page's own policy allows its one style sheet, by its hash, and nothing else.
"""

from base64 import b64encode
from collections.abc import Sequence, Set
from hashlib import sha256
from html import escape

from crafely.bench import capacity_page, capacity_picture, svg
from crafely.bench.report import Facts, Report, SideResult


def html(report: Report) -> str:
    """The page."""
    css = "".join(path.read_text(encoding="utf-8") for path in (svg.STYLE, svg.STYLE.with_name("page.css")))
    title = f"crafely bench {escape(report.command)}"
    plan = report.plan and f" · {report.plan.rounds} rounds of {report.plan.seconds:g} s for each side, interleaved"
    parts = [f"<h1>{title}</h1>", f"<p>{report.facts.date:%Y-%m-%d %H:%M} UTC{plan or ''}</p>"]
    parts += [f"<p>{escape(note)}</p>" for note in report.notes]
    if report.bounds:
        parts += ["<h2>Promised and seen</h2>", _bounds(report)]
    if report.ratios:
        rows = [[r.name, f"{r.median:.2f}", " ".join(f"{one:.2f}" for one in r.rounds)] for r in report.ratios]
        parts += ["<h2>Ratios</h2>", _table(["", "median", "round by round"], rows, numbers={1})]
    if report.growth:
        grown = [[g.statement, f"{g.rows:,}", f"{g.buffers:.2f}", f"{g.microseconds:.0f}"] for g in report.growth]
        parts += ["<h2>Growth</h2>", svg.growth(report.growth)]
        parts.append(_table(["statement", "rows", "pages touched", "µs"], grown, numbers={1, 2, 3}))
    if report.capacity is not None:
        for number, section in enumerate(capacity_page.sections(report.capacity)):
            parts += [f"<h2>{escape(section.title)}</h2>"]
            parts += [capacity_picture.picture(report.capacity)] if number == 1 else []
            parts.append(_table(section.head, section.rows, numbers=section.numbers))
    for group in dict.fromkeys(side.group for side in report.sides):
        sides = [side for side in report.sides if side.group == group]
        rated = [side for side in sides if side.unit]
        parts += [f"<h2>{escape(group)}</h2>", svg.bars(rated) if rated else "", svg.curves(sides), _sides(sides)]
    parts += ["<h2>Circumstances</h2>", _facts(report.facts)]
    allowed = b64encode(sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    head = f'<meta charset="utf-8"/><meta http-equiv="Content-Security-Policy" content="{policy}"/>'
    head += f'<meta name="viewport" content="width=device-width"/><title>{title}</title>'
    body = "\n".join(parts)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{css}</style></head>\n<body>\n{body}\n</body></html>\n'


def _bounds(report: Report) -> str:
    rows = []
    for bound in report.bounds:
        verdict = '<span class="holds">holds</span>' if bound.holds else '<span class="fails">does not hold</span>'
        relation = {">=": "≥", "<=": "≤", "<": "less than"}[bound.relation]
        cells = [escape(bound.name), f"{relation} {bound.wanted:g}", f"{bound.seen:.4g}", verdict]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th></th><th>wanted</th><th>seen</th><th></th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _sides(sides: Sequence[SideResult]) -> str:
    head = ["", "median", "lowest – highest", "", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "slowest ms"]
    rows = []
    for side in sides:
        latency = side.latency
        times = [latency.p50, latency.p90, latency.p99, latency.p999, latency.max] if latency else []
        rates = [f"{side.median:,.0f}", f"{side.lowest:,.0f} – {side.highest:,.0f}"] if side.unit else ["", ""]
        rows.append([side.name, *rates, side.unit, *(f"{time:.2f}" for time in times)])
    return _table(head, rows, numbers={1, 2, 4, 5, 6, 7, 8})


def _facts(facts: Facts) -> str:
    commit = "none" if facts.commit is None else facts.commit + (" and changes on top" if facts.dirty else "")
    rows = [
        ["crafely", facts.crafely],
        ["commit", commit],
        ["python", facts.python],
        *([name, version] for name, version in facts.libraries.items()),
        ["system", facts.system],
        ["processors", str(facts.cpus)],
        ["load before", f"{facts.load:.2f}"],
        *([f"rows in {table}", f"{count:,}"] for table, count in facts.rows.items()),
        *([name, setting] for name, setting in facts.server.items()),
    ]
    return _table(["", ""], rows, numbers=set())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Set[int]) -> str:
    css = ' class="number"'

    def line(tag: str, cells: Sequence[str]) -> str:
        made = "".join(
            f"<{tag}{css if index in numbers else ''}>{escape(cell)}</{tag}>" for index, cell in enumerate(cells)
        )
        return f"<tr>{made}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{line("th", head)}{body}</table></div>'
