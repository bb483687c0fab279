"""pgbench, PostgreSQL's own load client, written in C: what asking one by one can give at best."""

import asyncio
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.bench import BenchError, statement
from crafely.bench.rounds import Sample
from crafely.bench.seed import BASE, RANGE, STEP, ZEROS
from crafely.db.query import statements

# Of ten transactions one is logged with its latency: that much costs pgbench nothing that can be measured.
LOGGED = 0.1
# A bijection of 1 … n onto itself for any n below this prime: the rows that are asked for most are then no neighbours.
SCATTER = 15_485_863


def script(rows: int, zipf: float | None) -> str:
    """What pgbench runs: a number, its key, and a statement for it that gives what the API's own gives."""
    lookup = statements["api_keys/lookup"]
    columns = ", ".join(lookup.row_type.__struct_fields__)
    # Without its comment, whose colons would be taken for variables.
    one = re.sub(r"--.*\n", "", statement("one_key").decode()).replace("{columns}", columns)
    draw = f"random(1, {rows})" if zipf is None else f"1 + (random_zipfian(1, {rows}, {zipf}) * {SCATTER}) % {rows}"
    return f"\\set n {draw}\n\\set key_id {BASE} + :n * {STEP} % {RANGE} * {ZEROS}\n{one}"


async def measure(program: Path, url: str, text: str, clients: int, seconds: float) -> Sample:
    """Runs it with so many clients for so many seconds, whole ones, at least one. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="crafely-pgbench-") as folder:
        file = Path(folder) / "lookup.sql"
        file.write_text(text)
        threads = min(clients, os.cpu_count() or 1)
        command = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(threads), "-T", str(max(1, round(seconds)))]
        log = ["-l", f"--sampling-rate={LOGGED}", f"--log-prefix={folder}/log"]
        # An argument could be read by every user of the machine.
        where: dict[str, Any] = conninfo_to_dict(url)
        password = {"PGPASSWORD": str(where.pop("password"))} if "password" in where else {}
        process = await asyncio.create_subprocess_exec(
            program,
            *command,
            *log,
            "-f",
            str(file),
            make_conninfo(**where),
            env={**os.environ, **password, "PGOPTIONS": "-c role=crafely_auth -c jit=off"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            said = (errors.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise BenchError(f"pgbench failed: {said}")
        return _sample(output.decode(), Path(folder))


def _sample(output: str, folder: Path) -> Sample:
    done = re.search(r"actually processed: (\d+)", output)
    rate = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    failed = re.search(r"failed transactions: (\d+)", output)
    if not done or not rate or (failed and int(failed[1])):
        raise BenchError(f"pgbench did not do what it was told: {output[:300]!r}")
    count = int(done[1])
    # A line for each transaction: client, its number, microseconds, …
    lines = [line for log in folder.glob("log.*") for line in log.read_text().splitlines()]
    latencies = [int(line.split()[2]) / 1e6 for line in lines]
    # Its rate leaves out the time that connecting took.
    return Sample(count, count / float(rate[1]), latencies)
