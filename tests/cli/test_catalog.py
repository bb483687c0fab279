"""``crafely catalog``: what is on the page, that nothing on it runs or is fetched, and that it can be compared."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import psycopg
import pytest

from crafely import __version__
from crafely.cli import catalog_html, catalog_markdown, check, commands
from crafely.cli.catalog_views import Catalog, Live, Planned, index_rows, route_rows
from crafely.cli.entries import entries
from crafely.db import query
from crafely.store.monitor import QueryStats

ROOT = Path(__file__).parents[2]
EMPTY = {"meta", "link", "br", "img"}
Capture = pytest.CaptureFixture[str]


class Page(HTMLParser):
    """What a browser would find on a page, which must close every tag that it opens."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        # The text of each <pre> and <style>.
        self.texts: dict[str, list[str]] = {"pre": [], "style": []}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in EMPTY:
            self.open.append(tag)
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        for tag in {"pre", "style"} & set(self.open):
            self.texts[tag][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def plain() -> Catalog:
    """The catalogue of this release, without a database."""
    return Catalog(__version__, entries())


FIGURES = QueryStats(
    statement="threads/get",
    calls=12345,
    total_ms=61725.0,
    mean_ms=5.0,
    max_ms=250.0,
    share=0.25,
    rows_per_call=0.5,
    hit_per_call=12.0,
    read_per_call=None,
    spilled_per_call=None,
)


def with_live(plain: Catalog) -> Catalog:
    planned = {one.name: Planned(lines=("Seq Scan on t  (cost 1.00, 1 row expected)",)) for one in plain.statements}
    planned["threads/get"] = Planned(("Index Scan using threads_pkey on threads",), ("threads_pkey",))
    planned["agents/get"] = Planned(refused="permission denied for table <agents>")
    indexes = {"threads_pkey": "CREATE UNIQUE INDEX threads_pkey ON threads USING btree (id)"}
    live = Live("18.6", "shop", planned, indexes, {FIGURES.statement: FIGURES})
    return msgspec.structs.replace(plain, live=live)


def test_every_statement_is_on_both_pages_word_for_word(plain: Catalog) -> None:
    html, markdown = Page(catalog_html.page(plain)), catalog_markdown.page(plain)
    for one in plain.statements:
        assert f"\n### {one.name}\n" in markdown
        assert f"```sql\n{one.text}\n```" in markdown
        assert one.name in html.values("id")
        assert {one.text, one.signature.text} <= set(html.texts["pre"]), one.name
        assert one.text in (ROOT / one.path).read_text()
        assert not one.text.startswith("--"), one.name
    assert len(plain.statements) == len(query.statements)


def test_every_table_of_the_markdown_is_one(plain: Catalog) -> None:
    widths = []
    for line in catalog_markdown.page(with_live(plain)).splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1, line
            widths = []


@pytest.mark.parametrize("live", [False, True])
def test_the_page_runs_nothing_fetches_nothing_and_its_policy_says_so(plain: Catalog, live: bool) -> None:
    page = Page(catalog_html.page(with_live(plain) if live else plain))
    assert {"script", "img", "link", "iframe", "form", "object"} & set(page.tags) == set()
    assert page.values("style") == []
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    assert {value for name, value in page.attributes if name in {"href", "src"}} <= {
        f"#{one}" for one in page.values("id")
    }
    [style] = page.texts["style"]
    assert not re.search(r"url\(|@import", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert policy in page.values("content")
    assert "width=device-width" in " ".join(page.values("content"))
    assert "light dark" in style
    assert len(page.values("id")) == len(set(page.values("id")))


def test_what_is_in_a_file_is_text_and_no_markup(plain: Catalog) -> None:
    evil = "</pre><script>alert('&amp;')</script>"
    one = msgspec.structs.replace(plain.statements[0], text=f"select '{evil}' -- {evil}", description=evil)
    catalog = with_live(msgspec.structs.replace(plain, statements=[one, *plain.statements[1:]]))
    page = Page(catalog_html.page(catalog))
    assert "script" not in page.tags
    assert one.text in page.texts["pre"]


def test_without_a_database_it_depends_on_the_files_alone(capsys: Capture, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first, second):
        assert commands.run(["catalog", "--html", f"{file}.html", "--markdown", f"{file}.md"]) == 0
    assert commands.run(["catalog"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for kind in ("html", "md"):
        text = Path(f"{first}.{kind}").read_text()
        assert text == Path(f"{second}.{kind}").read_text()
        assert str(ROOT) not in text
        assert not re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", text)
    assert out == Path(f"{first}.md").read_text()


def test_routes_and_indexes_lead_to_their_statements(plain: Catalog) -> None:
    rows = dict(route_rows(plain))
    assert rows["GET /v1/threads"] == "threads/list_for_agent, threads/list_for_user"
    assert list(rows)[:2] == ["POST /v1/api-keys", "GET /v1/api-keys"]
    assert "api_keys/touch" in rows["housekeeping: flush_touches"]
    found = {index: statements.split(", ") for index, statements in index_rows(plain)[1]}
    for one in plain.statements:
        assert [index for index, statements in found.items() if one.name in statements] == sorted(one.uses), one.name


def test_a_database_adds_plans_and_figures(plain: Catalog) -> None:
    catalog = with_live(plain)
    for text in (catalog_html.page(catalog), catalog_markdown.page(catalog)):
        assert "of the database shop on PostgreSQL 18.6" in text
        for said in (
            "12,345",
            "5.00",
            "25.0%",
            "0.500",
            "12.0",
            "–",
            "permission denied for table",
            "threads USING btree",
        ):
            assert said in text, said
    html = catalog_html.page(catalog)
    assert "permission denied for table &lt;agents&gt;" in html
    assert 'using <span class="x">threads_pkey</span>' in html
    # A header names an index that this plan does not have.
    assert html.count("not in this plan") > 10
    assert "threads/get (by plan)" not in html
    assert "not in this plan" not in catalog_html.page(plain)


def test_it_asks_the_database_that_it_is_given(
    database_url: str, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    superuser.execute("revoke select on threads from crafely_app")
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    assert commands.run(["catalog", "--json", "--database"]) == 0
    told = json.loads(capsys.readouterr().out)
    live = told["live"]
    assert {one["name"] for one in told["statements"]} == live["plans"].keys() == query.statements.keys()
    assert live["server"] == superuser.info.parameter_status("server_version")
    assert live["database"] == superuser.info.dbname
    assert live["plans"]["threads/get"]["refused"] == "permission denied for table threads"
    refused = {name for name, plan in live["plans"].items() if plan["refused"]}
    assert {name.partition("/")[0] for name in refused} <= {"threads", "agents"}
    assert live["plans"]["packages/get"]["lines"]
    assert live["indexes"]["threads_pkey"] == "CREATE UNIQUE INDEX threads_pkey ON threads USING btree (id)"
    # The parts of a partitioned index are not listed beside it.
    assert [name for name in live["indexes"] if re.search(r"_y\d{4}m\d\d_", name)] == []
    assert "usage_user_id_created_at_id_idx" in live["indexes"]


def test_plans_of_the_database_that_check_has_filled_are_told_as_such(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    @contextmanager
    def scratch(*_: object) -> Iterator[str]:
        yield database_url

    monkeypatch.setattr(check, "scratch", scratch)
    assert commands.run(["catalog", "--filled"]) == 0
    out = capsys.readouterr().out
    # Its real name is made of a checksum.
    assert "Plans of the database crafely check on PostgreSQL 1" in out
    assert "crafely_test_" not in out


def test_it_shows_what_each_statement_has_cost(
    database_url: str, superuser: psycopg.Connection, capsys: Capture
) -> None:
    superuser.execute("create extension if not exists pg_stat_statements")
    superuser.execute(b"select /* crafely:threads/get */ 1")
    assert commands.run(["catalog", "--json", "--database", database_url]) == 0
    live = json.loads(capsys.readouterr().out)["live"]
    assert live["figures"]["threads/get"]["calls"] == 1
    assert live["since"] is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--html", "/nowhere/a.html"], "argument --html: expected a file in a folder that exists"),
        (["--markdown", "/"], "argument --markdown: expected a file in a folder that exists"),
        (["--database", "host"], "argument --database: expected a URL such as postgresql://user@host/name"),
    ],
)
def test_a_bad_argument_is_one_line(capsys: Capture, arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        commands.run(["catalog", *arguments])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
