"""The catalogue as one page of HTML: no scripts, nothing fetched, light or dark as the reader has it.

The page's own policy allows its one style sheet, by its hash, and nothing else.
"""

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

from crafely.cli.catalog_views import Catalog, Live, callers_of, figures_row, index_rows, overview_rows, route_rows
from crafely.cli.entries import Entry

_STYLE = Path(__file__).with_name("catalog.css")

_KEYWORD = re.compile(
    r"all|and|any|array|as|asc|between|by|case|cast|coalesce|collate|conflict|cross|current_timestamp|default|"
    r"delete|desc|distinct|do|else|end|except|excluded|exists|extract|false|filter|for|from|group|having|ilike|"
    r"in|inner|insert|intersect|interval|into|is|join|lateral|left|like|limit|locked|materialized|not|nothing|"
    r"null|nulls|of|offset|on|only|or|order|ordinality|outer|over|partition|recursive|returning|right|rows|"
    r"select|set|then|to|true|union|update|using|values|when|where|window|with|within",
    re.IGNORECASE,
)
_SQL = re.compile(
    r"(?P<c>--[^\n]*|/\*.*?\*/)|(?P<s>'(?:[^']|'')*')|\"[^\"]*\"|::|(?P<p>:[a-z_]\w*)|(?P<word>[a-z_]\w*)"
    r"|(?P<n>\b\d+(?:\.\d+)?\b)",
    re.DOTALL | re.IGNORECASE,
)
_PYTHON = re.compile(r"(?P<k>\b(?:async|def|None)\b)|(?P<p>\b\w+(?=:))")
_PLAN = re.compile(r"(?<=using )(?P<x>\S+)|(?P<w>Seq Scan on \S+)|(?P<c>\(cost .*\))|(?P<p>(?<!:):[a-z_]\w*)")
# Columns of numbers, by the words at their head.
_NUMBERS = {"calls", "mean ms", "most ms", "total s", "share", "rows a call", "buffers hit", "read"}


def page(catalog: Catalog) -> str:
    """The whole page."""
    style = _STYLE.read_text(encoding="utf-8")
    allowed = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>Crafely: the statements</title>\n<style>{style}</style>"
    )
    body = "\n".join([*_navigation(catalog), "<main>", *_main(catalog), "</main>"])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _navigation(catalog: Catalog) -> Iterator[str]:
    yield '<nav aria-label="Statements">\n<p>Statements</p>'
    yield '<ul><li><a href="#overview">Overview</a></li><li><a href="#routes">By route</a></li>'
    yield '<li><a href="#indexes">By index</a></li></ul>'
    for noun in dict.fromkeys(one.noun for one in catalog.statements):
        names = [one.name for one in catalog.statements if one.noun == noun]
        items = "".join(f'<li><a href="#{name}">{name.partition("/")[2]}</a></li>' for name in names)
        yield f"<h2>{noun}</h2><ul>{items}</ul>"
    yield "</nav>"


def _main(catalog: Catalog) -> Iterator[str]:
    live = catalog.live
    yield "<h1>The statements of Crafely</h1>"
    yield f'<p class="quiet">{len(catalog.statements)} statements, each a file that can be pasted into psql; version '
    yield f"{escape(catalog.version)}.{_about(live) if live is not None else ''}</p>"
    yield '<section id="overview"><h2>Overview</h2>'
    yield f"{_table(catalog, *overview_rows(catalog))}</section>"
    noun = ""
    for one in catalog.statements:
        if one.noun != noun:
            yield f"{'</section>' if noun else ''}<section><h2>{one.noun}</h2>"
            noun = one.noun
        yield from _statement(one, live)
    yield "</section>"
    yield f'<section id="routes"><h2>By route</h2>{_table(catalog, ["route", "statements"], route_rows(catalog))}'
    yield f'</section><section id="indexes"><h2>By index</h2>{_table(catalog, *index_rows(catalog))}</section>'


def _about(live: Live) -> str:
    since = f" since {live.since:%Y-%m-%d %H:%M} UTC" if live.since is not None else ""
    figures = f", with its figures{since}" if live.figures else ""
    return f" Plans of the database {escape(live.database)} on PostgreSQL {escape(live.server)}{figures}."


def _statement(one: Entry, live: Live | None) -> Iterator[str]:
    yield f'<article id="{one.name}"><h3><a href="#{one.name}">{one.name}</a></h3>'
    yield f'<p class="said">{escape(one.description)}</p><div class="columns"><div>'
    yield f"<pre>{_coloured(_SQL, one.text)}</pre><h4>Signature</h4>"
    yield f"<pre>{_coloured(_PYTHON, one.signature.text)}</pre></div><dl>"
    for label, items in _facts(one, live):
        lines = "".join(f"<li>{item}</li>" for item in items)
        yield f"<div><dt>{label}</dt><dd><ul>{lines}</ul></dd></div>"
    yield "</dl></div>"
    if live is not None:
        if one.name in live.figures:
            yield f"<h4>Figures</h4>{_table(None, *figures_row(live.figures[one.name]))}"
        planned = live.plans[one.name]
        yield "<h4>Generic plan</h4>"
        if planned.refused is not None:
            yield f'<p class="bad">The server refuses it: {escape(planned.refused)}</p>'
        else:
            yield f'<pre class="plan">{_coloured(_PLAN, chr(10).join(planned.lines))}</pre>'
    yield "</article>"


def _facts(one: Entry, live: Live | None) -> Iterator[tuple[str, list[str]]]:
    planned = live.plans[one.name] if live is not None else None
    yield "file", [_code(one.path)]
    yield "signature", [_code(str(one.signature.place))]
    yield "returns", [escape(one.returns)]
    if one.columns:
        yield "columns", [f'{_code(c.name)} <span class="quiet">{escape(c.type)}</span>' for c in one.columns]
    if one.one_row:
        yield "one row", [escape(f"because {one.one_row}")]
    if one.not_null:
        yield "never null", [", ".join(_code(name) for name in one.not_null)]
    yield "role", [_code(role) for role in one.roles]
    if one.uses:
        # An index that is not taken need not be wrong: a small table is read otherwise.
        missed = ' <span class="w">not in this plan</span>'
        yield (
            "uses",
            [_code(i) + (missed if planned is not None and i not in planned.indexes else "") for i in one.uses],
        )
    if one.scans:
        yield "reads all of", [f"{_code(scan.table)}, because {escape(scan.because)}" for scan in one.scans]
    yield "called by", [escape(name) for name in callers_of(one)]
    yield "called at", [f'{_code(str(s.place))} <span class="quiet">{escape(s.function)}</span>' for s in one.sites]


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _table(catalog: Catalog | None, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; names of statements in it lead to them."""
    names = {one.name for one in catalog.statements} if catalog is not None else set()
    css = [' class="number"' if word in _NUMBERS else ' class="name"' if not i else "" for i, word in enumerate(head)]

    def cell(text: str) -> str:
        parts = re.split(r"(\w+/\w+)", text)
        return "".join(f'<a href="#{part}">{part}</a>' if part in names else escape(part) for part in parts)

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{css[i]}>{cell(text)}</{tag}>" for i, text in enumerate(row)) + "</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _coloured(tokens: re.Pattern[str], text: str) -> str:
    """The text as HTML, with a span of its group's name around each token that has one."""
    parts = []
    end = 0
    for found in tokens.finditer(text):
        kind, word = found.lastgroup, found[0]
        if kind == "word":
            kind = "k" if _KEYWORD.fullmatch(word) else None
        parts.append(escape(text[end : found.start()], quote=False))
        parts.append(f'<span class="{kind}">{escape(word, quote=False)}</span>' if kind else escape(word, quote=False))
        end = found.end()
    return "".join([*parts, escape(text[end:], quote=False)])
