"""The README keeps its word: its lines, pasted in order, work, and its tables say what the program does."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from crafely.config import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, str]]:
    """``crafely serve`` as a newcomer starts it, in an empty folder: its address and the key it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRAFELY_")}
    with tempfile.TemporaryDirectory(prefix="crafely-readme-", ignore_cleanup_errors=True) as folder:
        command = [str(Path(sys.executable).with_name("crafely")), "serve", "--port", "0"]
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            told = ""
            for line in process.stdout:
                told += line
                if "Ctrl-C" in line:
                    break
            address, key = re.search(r"http://[\d.:]+", told), re.search(r"crf_live_\w+", told)
            assert address, told
            assert key, told
            yield address[0], key[0]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def _lines() -> str:
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if block.startswith("API="))


def test_the_pasted_lines_store_and_sum_exactly_what_they_say(served: tuple[str, str]) -> None:
    address, key = served
    script = f"set -eu -o pipefail\nKEY={key}\n" + _lines().replace("http://127.0.0.1:8000", address)
    done = subprocess.run(["/bin/bash"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    agent, usage, stats, daily = (msgspec.json.decode(line) for line in done.stdout.splitlines())

    assert [thread["name"] for thread in agent["threads"]] == ["tuesday", "monday"]
    assert agent["tools"] == [{"type": "function", "name": "explain"}]
    assert (usage["recorded"], usage["duplicates"], usage["invalid"]) == (4, 0, 0)
    sums = {(s["provider"], s["model"]): (s["records"], s["tokensTotal"], s["cost"]) for s in stats["data"]}
    assert sums == {
        ("openai", "gpt-4o-mini"): (2, 2500, "0.000600000000"),
        ("anthropic", "claude-3-5-haiku-20241022"): (1, 1110, "0.001560000000"),
        ("openai", "text-embedding-3-small"): (1, 20, "0.000000400000"),
    }
    (today,) = daily["data"]
    assert (today["records"], today["tokensIn"], today["tokensOut"]) == (4, 2920, 710)
    assert (today["tokensTotal"], today["cost"], today["currency"]) == (3630, "0.002160400000", "usd")


def test_the_costs_are_what_the_prices_make() -> None:
    # Of a thousandth of a dollar a million tokens, in and out: so many billionths of a dollar a token.
    prices = {"gpt-4o-mini": (150, 600), "claude-3-5-haiku-20241022": (800, 4000), "text-embedding-3-small": (20, 0)}
    batch = msgspec.json.decode(re.search(r"-d '(\[.*?\])'", _lines(), re.DOTALL)[1])  # type: ignore[index]  # it is there
    for record in batch:
        into, out = prices[record["model"]]
        assert Decimal(record["cost"]) * 10**9 == record["tokensIn"] * into + record.get("tokensOut", 0) * out


def test_every_documented_address_answers(served: tuple[str, str]) -> None:
    address, _ = served
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        with urllib.request.urlopen(f"{address}{path}") as answer:  # noqa: S310 - our own server on loopback
            assert answer.status == 200


def test_every_setting_stands_in_the_configuration_table() -> None:
    # A row may shorten the names after its first: `CRAFELY_ARGON2_TIME_COST`, `…_MEMORY_KIB`.
    for field in Settings.__struct_fields__:
        name = f"CRAFELY_{field.upper()}"
        assert f"`{name}`" in README or any(f"`…_{name.split('_', n)[-1]}`" in README for n in (2, 3)), name


def test_every_route_of_the_document_stands_in_the_table(served: tuple[str, str]) -> None:
    address, _ = served
    with urllib.request.urlopen(f"{address}/openapi.json") as answer:  # noqa: S310 - our own server on loopback
        document = msgspec.json.decode(answer.read())
    table = README.partition("## The API at a glance")[2].partition("## Configuration")[0]
    for path in document["paths"]:
        tail = "…/{id}" if path.endswith("/{id}") else path.removeprefix("/v1/").partition("{id}")[2] or path
        last = f"…/{path.rsplit('/', 1)[1]}"
        assert tail in table or path in table or last in table or f"{{id}}/{path.rsplit('/', 1)[1]}" in table, path
