"""What a bench says: as numbers, as tables, as a page, as a picture."""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from xml.dom import minidom

import msgspec
import pytest
from rich.console import Console

from crafely.bench import page, report, svg
from crafely.bench.report import Bound, Growth, Report
from crafely.bench.rounds import Measured, Plan, Sample, Side
from tests.bench.conftest import decoded, facts


def measured(name: str, counts: Sequence[int], latencies: Sequence[float] = (0.001, 0.002)) -> Measured:
    samples = [Sample(count, 2.0, list(latencies)) for count in counts]

    async def measure(_: float) -> Sample:
        return samples[0]

    return Measured(Side(name, measure, "a <group>", "things/s"), samples)


@pytest.fixture
def full() -> Report:
    sides = report.results([measured("ours", [20, 60, 40]), measured("<theirs>", [10, 20, 10], [])])
    made = Report(command="lookup", facts=facts(), plan=Plan(3, 2.0), sides=sides, notes=["a < b"])
    growth = [Growth("lookup", rows, pages, time) for rows, pages, time in ((10, 3.0, 100.0), (100, 4.0, 90.0))]
    bounds = [Bound("kept", ">=", 2.0, 3.0), Bound("<broken>", "<", 3.0, 3.0)]
    ratios = [made.ratio("ours / theirs", "ours", "<theirs>")]
    return msgspec.structs.replace(made, ratios=ratios, bounds=bounds, growth=growth)


def test_a_side_is_summed_up(full: Report) -> None:
    ours, theirs = full.sides
    assert (ours.median, ours.lowest, ours.highest) == (20.0, 10.0, 30.0)
    assert [one.rate for one in ours.rounds] == [10.0, 30.0, 20.0]
    assert ours.latency is not None
    assert (ours.latency.p50, ours.latency.p99, ours.latency.max) == (1.0, 2.0, 2.0)
    assert [ours.curve[0], ours.curve[-1]] == [(0, 1.0), (100, 2.0)]
    assert theirs.latency is None
    assert theirs.curve == []


def test_sides_are_compared_round_by_round(full: Report) -> None:
    (ratio,) = full.ratios
    assert ratio.rounds == [2.0, 3.0, 4.0]
    assert ratio.median == 3.0


@pytest.mark.parametrize(
    ("percent", "milliseconds"), [(0, 1.0), (50, 50.0), (90, 90.0), (99, 99.0), (99.9, 100.0), (100, 100.0)]
)
def test_percentiles_are_of_what_was_seen(percent: float, milliseconds: float) -> None:
    seconds = [number / 1000 for number in range(1, 101)]
    assert report.percentile(seconds, percent) == pytest.approx(milliseconds)


def test_bounds_hold_or_do_not() -> None:
    assert Bound("", ">=", 2.0, 2.0).holds
    assert not Bound("", ">=", 2.0, 1.99).holds
    assert Bound("", "<=", 2.0, 2.0).holds
    assert not Bound("", "<", 2.0, 2.0).holds


def test_json_leads_back_to_the_structs(full: Report) -> None:
    assert decoded(full) == full


def test_the_page_is_well_formed_and_needs_no_network(full: Report) -> None:
    html = page.html(full)
    document = minidom.parseString(html.replace("<!DOCTYPE html>", "").encode())  # noqa: S318 - our own page
    assert len(document.getElementsByTagName("svg")) == 3
    assert not re.search(r"https?://|src=|href=|@import|url\(|<script", html)
    assert "prefers-color-scheme: dark" in html
    # Nothing runs, and no other style than the page's own is looked at.
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\"" in html
    assert " style=" not in html
    for words in ("&lt;theirs&gt;", "&lt;broken&gt;", "does not hold", "a &lt; b", "server_version", "&lt;Linux&gt;"):
        assert words in html
    assert html.count("<polyline") == 3, "a curve for who has one, and two lines of growth"


def test_the_picture_stands_by_itself(full: Report) -> None:
    document = minidom.parseString(svg.file(svg.growth(full.growth)).encode())  # noqa: S318 - our own picture
    assert document.documentElement is not None
    assert document.documentElement.getAttribute("xmlns") == "http://www.w3.org/2000/svg"
    assert document.getElementsByTagName("style")


def test_the_tables_have_every_figure(full: Report) -> None:
    output = io.StringIO()
    for table in [*report.tables(full), report.bounds_table(full)]:
        Console(file=output, width=200).print(table)
    for words in ("10 – 30", "things/s", "2.00 3.00 4.00", "4.00    90", "does not hold", ">= 2"):
        assert words in output.getvalue(), output.getvalue()


def test_the_circumstances_are_on_record(database_url: str) -> None:
    found = report.facts(database_url, {"api_keys": 5})
    assert next(iter(found.server)) == "server_version"
    assert {"shared_buffers", "fsync", "synchronous_commit"} < found.server.keys()
    assert found.libraries["psycopg"]
    assert found.rows == {"api_keys": 5}
    assert found.commit is None or re.fullmatch("[0-9a-f]{40}", found.commit)
    assert report.facts(None, {}).server == {}
