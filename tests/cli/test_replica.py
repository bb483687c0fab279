"""``crafely serve --workers 2`` with a standby: what is written through one worker is read through the other."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from tests import standby
from tests.cli.conftest import Serving, crafely, new_folder, until
from tests.standby import Node


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with new_folder() as folder, standby.servers(folder, max_connections="50") as nodes:
        yield nodes


def test_a_client_reads_what_it_wrote_whichever_worker_answers(nodes: list[Node], folder: Path) -> None:
    primary = {"CRAFELY_DATABASE_URL": nodes[0].url}
    assert crafely(folder, "migrate", "up", **primary).returncode == 0
    key = crafely(folder, "keys", "create", "--admin", **primary).stdout
    (key,) = re.findall(r"crf_live_\w+", key)
    url = make_conninfo(nodes[1].url, password="hunter2")
    serving = Serving(folder, "--workers", "2", CRAFELY_REPLICA_URL=url, CRAFELY_REPLICA_LAG="600", **primary).ready()

    def metric(pattern: str) -> float:
        _, text = serving.get("/metrics")
        return sum(map(float, re.findall(rf"^crafely_replica_{pattern} (\S+)$", text, re.MULTILINE)))

    def write(number: int) -> str:
        """Each request is a connection of its own, which either worker takes."""
        status, thread = serving.request("POST", "/v1/threads", key, {"name": str(number)})
        assert status == 201
        return f"/v1/threads/{thread['id']}"

    def named(path: str) -> list[str]:
        return [serving.get(path, key)[1]["name"] for _ in range(4)]

    until(lambda: metric("left_alone") == 0, "both workers to read from the standby")
    for number in range(10):
        assert named(write(number)) == [str(number)] * 4
    path = write(0)
    until(lambda: named(path) and metric(r'reads_total\{answered_by="standby"\}') > 0, "reads that it answers")

    nodes[1].pause()
    for number in range(10):
        path = write(number)
        assert named(path) == [str(number)] * 4
        assert [serving.get("/v1/threads?take=1", key)[1]["data"][0]["name"] for _ in range(4)] == [str(number)] * 4
    nodes[1].resume()

    nodes[1].kill()
    assert named(path) == ["9"] * 4
    until(lambda: metric("left_alone") > 0, "a worker to leave it alone")
    assert serving.get("/readyz")[0] == 200
    serving.stop()
    assert "the standby is left alone" in serving.err
    assert "hunter2" not in serving.err + serving.out
