"""The catalogue as Markdown, for a repository or a wiki."""

from collections.abc import Iterator, Sequence

from crafely.cli.catalog_views import Catalog, Live, callers_of, figures_row, index_rows, overview_rows, route_rows
from crafely.cli.entries import Entry


def page(catalog: Catalog) -> str:
    """The whole page."""
    return "\n".join(_lines(catalog)) + "\n"


def _lines(catalog: Catalog) -> Iterator[str]:
    live = catalog.live
    yield from ["# The statements of Crafely", "", f"{len(catalog.statements)} statements, version {catalog.version}."]
    if live is not None:
        yield f"Plans{_since(live)} of the database {live.database} on PostgreSQL {live.server}."
    yield ""
    yield from _table(*overview_rows(catalog), link=0)
    noun = ""
    for one in catalog.statements:
        if one.noun != noun:
            noun = one.noun
            yield from ["", f"## {noun}"]
        yield from _statement(one, live)
    yield from ["", "## By route", ""]
    yield from _table(["route", "statements"], route_rows(catalog))
    yield from ["", "## By index", ""]
    yield from _table(*index_rows(catalog))


def _since(live: Live) -> str:
    if not live.figures:
        return ""
    return f", and figures{f' since {live.since:%Y-%m-%d %H:%M} UTC' if live.since else ''},"


def _statement(one: Entry, live: Live | None) -> Iterator[str]:
    yield from ["", f"### {one.name}", "", one.description, "", "```sql", one.text, "```", "", "```python"]
    yield from [one.signature.text, "```", ""]
    facts = [
        ["file", f"`{one.path}`"],
        ["signature", f"`{one.signature.place}`"],
        ["returns", f"{one.returns}"],
        ["one row", f"because {one.one_row}" if one.one_row else ""],
        ["never null", ", ".join(f"`{name}`" for name in one.not_null)],
        ["role", ", ".join(f"`{role}`" for role in one.roles)],
        ["uses", ", ".join(f"`{index}`" for index in one.uses)],
        ["reads all of", "; ".join(f"`{scan.table}`, because {scan.because}" for scan in one.scans)],
        ["called by", "; ".join(callers_of(one))],
        ["called at", "; ".join(f"`{site.place}`" for site in one.sites)],
    ]
    yield from _table(["", ""], [fact for fact in facts if fact[1]])
    if live is None:
        return
    if one.name in live.figures:
        yield ""
        yield from _table(*figures_row(live.figures[one.name]))
    planned = live.plans[one.name]
    if planned.refused is not None:
        yield from ["", f"The server refuses it: {planned.refused}"]
    else:
        yield from ["", "```text", *planned.lines, "```"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, link: int | None = None) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        if link is not None:
            # As GitHub names the heading of the statement.
            cells[link] = f"[{cells[link]}](#{cells[link].replace('/', '')})"
        yield f"| {' | '.join(cells)} |"
