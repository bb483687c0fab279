"""``crafely explain``: what it shows, and what it refuses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from crafely.cli import check
from crafely.cli.plan_tree import lines
from crafely.db.plans import Plan
from tests.cli.conftest import Command

NAME = "threads/list_for_agent"
VALUES = ("agent_id=agnt_1", "user_id=alice", "before=now", "before_id=", "take=20", "skip=0")


def params(*values: str) -> list[str]:
    return [word for value in values for word in ("--param", value)]


@pytest.fixture
def explain(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    return Command(capsys, "explain")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What needs no database: refused before one is looked for."""
    monkeypatch.setenv("CRAFELY_DATABASE_URL", "postgresql:///nowhere?host=/nowhere")
    command = Command(capsys, "explain")

    def run(*arguments: str) -> str:
        assert command(*arguments) == 2
        (line,) = command.err.splitlines()
        assert command.out == ""
        return line

    return run


def test_the_generic_plan_stands_next_to_the_contract(explain: Command) -> None:
    assert explain(NAME) == 0
    for said in (
        "sql/threads/list_for_agent.sql",
        "crafely/store/threads.py:",
        "many ThreadSummary",
        "agent_id: str | None",
        ":take  int, int8 to the server",
        "crafely_app",
        "threads_user_id_agent_id_created_at_id_idx",
        "GET /v1/threads  crafely/api/__init__.py:",
        "Generic plan, which sessions run, on PostgreSQL 1",
        # Row-level security, and a parameter by its name.
        ":user_id",
        "Index Scan using ",
    ):
        assert said in explain.out, said
    assert "$1" not in explain.out
    assert (explain.err, "Plan for these values" in explain.out) == ("", False)


def test_with_values_there_is_a_plan_for_them_as_their_user(explain: Command) -> None:
    assert explain(NAME, *params("before_id=$1", *(value for value in VALUES if value != "before_id="))) == 0
    assert "'$1'::text" in explain.out
    assert ":agent_id  str, text to the server  = agnt_1" in explain.out
    assert "crafely_app, for user alice" in explain.out
    assert "'agnt_1'::text" in explain.out
    assert "expected)" in explain.out
    assert "execution" not in explain.out


def test_for_programs_it_is_json(explain: Command) -> None:
    told = explain.json("api_keys/lookup", "--param", "key_ids={one,two}", "--analyze")
    assert (told["role"], told["userId"], told["types"]) == ("crafely_auth", None, {"key_ids": "text[]"})
    assert told["statement"]["name"] == "api_keys/lookup"
    assert told["statement"]["callers"][0].keys() == {"kind", "name", "place"}
    # An empty table is read from end to end.
    assert (told["generic"]["indexes"], told["generic"]["scans"]) == ([], ["api_keys"])
    assert told["forValues"]["json"]["Execution Time"] > 0
    assert told["forValues"]["json"]["Plan"]["Shared Hit Blocks"] >= 0
    assert "Execution Time" not in told["generic"]["json"]


def test_analyze_counts_and_leaves_nothing_behind(explain: Command, superuser: psycopg.Connection) -> None:
    # What may be null and is not given is null.
    values = params("id=a", "name=n", "instructions=i", "tools", "user_id=alice")
    assert explain("agents/create", *values, "--analyze") == 0
    assert "1 row in " in explain.out
    assert "Buffers: " in explain.out
    assert explain.out.count("= null") == 2
    assert superuser.execute("select count(*) from agents").fetchone() == (0,)
    assert superuser.execute("select count(*) from audit_log").fetchone() == (0,)


def test_analyze_sees_the_rows_of_its_user_alone(explain: Command, superuser: psycopg.Connection) -> None:
    superuser.execute("insert into agents (id, name, instructions, user_id) values ('agnt_1', 'n', 'i', 'alice')")
    for user, rows in (("alice", 1), ("bob", 0)):
        told = explain.json("agents/get", *params("id=agnt_1", "user_id=alice"), "--user", user, "--analyze")
        assert told["forValues"]["json"]["Plan"]["Actual Rows"] == rows
    # Said once, it is both.
    told = explain.json("agents/get", "--param", "id=agnt_1", "--user", "alice", "--analyze")
    assert told["forValues"]["json"]["Plan"]["Actual Rows"] == 1


def test_where_the_plan_for_the_values_is_another_both_are_shown(explain: Command) -> None:
    # Months that were not made yet are all in one partition.
    values = params("from_time=2020-11-01", "to_time=2020-11-02", "group_by={day}", "take=1", "skip=0")
    told = explain.json("usage/stats", *values, "--user", "alice")
    assert told["same"] is False
    assert explain("usage/stats", *values, "--user", "alice") == 0
    assert "Generic plan, which sessions run, on" in explain.out
    assert "\nPlan for these values on PostgreSQL" in explain.out


def test_another_role_of_the_statement(explain: Command) -> None:
    assert explain.json("usage/record")["role"] == "crafely_meter"
    assert explain.json("usage/record", "--role", "crafely_app", "--user", "alice")["role"] == "crafely_app"


def test_what_the_file_does_not_own_up_to_is_pointed_at(explain: Command) -> None:
    # An empty table is read from end to end, whatever indexes it has.
    assert explain("api_keys/lookup") == 0
    assert "api_keys_key_id_hash_idx  not in this plan" in explain.out
    assert "api_keys, which the file does not say" in explain.out


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("threads/list_for_agnt", "perhaps threads/list_for_agent"),
        ("sql/threads/list_for_agents.sql", "perhaps threads/list_for_agent"),
        ("lookup", "perhaps api_keys/lookup"),
        ("[bold]", "they are named like threads/list_for_agent"),
        ("", "they are named like threads/list_for_agent"),
    ],
)
def test_a_name_that_does_not_exist(refused: Callable[..., str], name: str, nearest: str) -> None:
    assert refused(name).startswith(f"crafely: {name}: no such statement; {nearest}")


def test_a_file_can_be_named_as_a_shell_completes_it(explain: Command) -> None:
    assert explain.json("sql/threads/get.sql")["statement"]["name"] == "threads/get"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (params("agnt_id=1"), f"--param agnt_id: {NAME} has no such parameter; perhaps agent_id"),
        (
            params("zzz=1"),
            f"--param zzz: {NAME} has no such parameter; it takes agent_id, user_id, before, before_id, take, skip",
        ),
        (params("take=1", "take=2"), "--param take: given twice"),
        (params(*VALUES[:-2]), f"{NAME}: a value is missing: --param take=… --param skip=…"),
        (["--analyze", *params(*VALUES[2:])], f"{NAME}: a value is missing: --param agent_id=… --param user_id=…"),
        (["--role", "crafely_admin"], f"--role: {NAME} runs as crafely_app, not as crafely_admin"),
    ],
)
def test_what_does_not_fit_is_one_line(refused: Callable[..., str], arguments: list[str], line: str) -> None:
    assert refused(NAME, *arguments) == f"crafely: {line}"


def test_a_database_that_is_none(refused: Callable[..., str], explain: Command) -> None:
    line = refused(NAME, "--database", "password=secret host")
    assert "argument --database: expected a URL such as postgresql://user@host/name" in line
    assert "secret" not in line
    assert explain(NAME, "--database", "postgresql:///nowhere?host=/nowhere") == 1
    assert explain.err.startswith("crafely: cannot use the database at /nowhere")


def test_on_request_it_looks_at_the_database_that_check_has_filled(
    refused: Callable[..., str], explain: Command, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def scratch(*_: object) -> Iterator[str]:
        yield database_url

    monkeypatch.setattr(check, "scratch", scratch)
    monkeypatch.setenv("CRAFELY_DATABASE_URL", "postgresql:///nowhere?host=/nowhere")
    assert explain(NAME) == 1
    assert explain(NAME, "--filled") == 0
    assert "argument --filled: not allowed with argument --database" in refused(
        NAME, "--database", database_url, "--filled"
    )


def test_a_value_that_its_type_refuses(explain: Command) -> None:
    assert explain(NAME, *params(*VALUES[:-2], "take=many", "skip=0")) == 2
    assert explain.err == f'crafely: {NAME}: invalid input syntax for type bigint: "many"\n'


def test_a_statement_that_the_database_refuses(explain: Command, superuser: psycopg.Connection) -> None:
    superuser.execute("revoke select on threads from crafely_app")
    assert explain(NAME) == 1
    assert explain.err == f"crafely: {NAME}: permission denied for table threads\n"
    values = params("id=t", "name=n", "storage_id", "instructions", "model", "agent_id=none", "user_id=alice")
    superuser.execute("grant select on threads to crafely_app")
    superuser.execute("alter table threads add constraint never check (name <> 'n')")
    superuser.execute("insert into agents (id, name, instructions, user_id) values ('none', 'n', 'i', 'alice')")
    assert explain("threads/create", *values, "--analyze") == 1
    assert 'violates check constraint "never"' in explain.err
    assert explain.err.count("\n") == 1


def test_it_holds_nobody_up(explain: Command, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFELY_STATEMENT_TIMEOUT", "0.2")
    with superuser.transaction():
        superuser.execute("lock table threads")
        assert explain("threads/get", *params("id=thrd_1", "user_id=alice"), "--analyze") == 1
    assert explain.err == "crafely: threads/get: canceling statement due to lock timeout\n"


def test_a_database_without_the_schema(explain: Command, empty_database: str) -> None:
    assert explain(NAME, "--database", empty_database) == 1
    assert "run crafely migrate up" in explain.err


def test_a_plan_is_a_line_for_each_node_with_what_it_says() -> None:
    below = {
        "Node Type": "Index Scan",
        "Scan Direction": "Backward",
        "Index Name": "i",
        "Relation Name": "t",
        "Alias": "x",
        "Index Cond": "(a = $2)",
        "Rows Removed by Filter": 0,
        "Total Cost": 1.5,
        "Plan Rows": 1,
        "Actual Loops": 0,
    }
    top = {
        "Node Type": "Nested Loop",
        "Join Type": "Left",
        "Total Cost": 2,
        "Plan Rows": 1000,
        "Actual Loops": 3,
        "Actual Rows": 0.33,
        "Actual Total Time": 0.5,
        "Shared Hit Blocks": 1200,
        "Shared Read Blocks": 0,
        "Plans": [{**below, "Subplan Name": "CTE c"}],
    }
    ran = {"Plan": top, "Planning Time": 1, "Execution Time": 2, "Triggers": [
        {"Trigger Name": "audit", "Calls": 1, "Time": 0.25}
    ]}  # fmt: skip
    assert lines(Plan(ran, (), (), ()), ["first"]) == [
        "Nested Loop Left Join  (cost 2.00, 1,000 rows expected; 0.33 rows in 0.500 ms, 3 times)",
        "  Buffers: 1,200 hit",
        "  CTE c",
        "    → Index Scan Backward using i on t x  (cost 1.50, 1 row expected; never run)",
        "        Index Cond: (a = $2)",
        "Planning 1.000 ms, execution 2.000 ms",
        "Trigger audit: 1 calls, 0.250 ms",
    ]
    assert lines(Plan({"Plan": below}, (), (), ()), ["a", "b"])[1] == "  Index Cond: (a = :b)"


def test_what_older_servers_call_like_a_parameter_keeps_its_name() -> None:
    node = {"Node Type": "Result", "Total Cost": 1, "Plan Rows": 1}
    inner = {**node, "Subplan Name": "InitPlan 2 (returns $0,$2)"}
    plan = {**node, "Filter": "(a = $0) AND (b = $1) AND (c = $2) AND (d = $3)", "Plans": [inner]}
    assert lines(Plan({"Plan": plan}, (), (), ()), ["a", "b"])[1:3] == [
        "  Filter: (a = $0) AND (b = :a) AND (c = $2) AND (d = $3)",
        "  InitPlan 2 (returns $0,$2)",
    ]
