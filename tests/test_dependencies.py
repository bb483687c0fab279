"""What is installed beside us: pinned, as it was tested, under a licence that lets us, and held against advisories."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
AUDIT = ROOT / ".ci" / "audit_dependencies.py"


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def needed(*extras: str) -> dict[str, Distribution]:
    """What the program needs, with these extras, and all that this needs in turn; by name."""
    found: dict[str, Distribution] = {}
    waiting = [("crafely", frozenset(extras))]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        one = found.setdefault(canonicalize_name(name), distribution(name))
        for text in one.requires or []:
            requirement = Requirement(text)
            if any(not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in ("", *wanted)):
                further = (requirement.name, frozenset(requirement.extras))
                if further not in seen:
                    seen.add(further)
                    waiting.append(further)
    # Ourselves, and what every environment begins with.
    return {name: one for name, one in found.items() if name not in {"crafely", "pip", "setuptools"}}


def test_whatever_is_needed_is_pinned_and_installed_as_it_is_pinned() -> None:
    lines = pinned()
    found = {name: one.version for name, one in needed("dev").items()}
    if sys.version_info < (3, 11, 3):
        # Before, somebody's backport of asyncio.timeout() is needed, which the Python that writes the file is without.
        found.pop("async-timeout", None)
    assert len(found) > 60
    assert {name: f"{version}, and constraints.txt has {lines.get(name)}" for name, version in found.items()} == {
        name: f"{version}, and constraints.txt has {version}" for name, version in found.items()
    }
    # Markers may leave some of them out on another Python than the one that wrote the file.
    if sys.version_info[:2] == (3, 11):
        assert set(lines) - set(found) == set(), "nobody needs these"


def test_each_direct_dependency_says_from_which_version_on() -> None:
    for text in distribution("crafely").requires or []:
        assert any(one.operator == ">=" for one in Requirement(text).specifier), text


# Licences under which a program may be used by one of another licence. LGPL: as a library that can be exchanged.
LICENCES = re.compile(
    r"(?:MIT|MIT-0|0BSD|BSD|BSD-[23]-Clause|Apache(?:[- ]2\.0)?|ISC|PSF-2\.0|MPL-2\.0|LGPL-3\.0-only|CNRI-Python"
    r"|Unlicense|(?:MIT|BSD|Apache Software) License|ISC License \(ISCL\)|Mozilla Public License 2\.0 \(MPL 2\.0\))"
)


def test_what_serves_has_a_licence_that_lets_us() -> None:
    for name, one in needed().items():
        said = next((one.metadata[key] for key in ("License-Expression", "License") if key in one.metadata), "")
        if not said or "\n" in said:
            classifiers = one.metadata.get_all("Classifier") or []
            said = " AND ".join(c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::"))
        parts = re.split(r" (?:AND|OR) ", said.strip("() "))
        assert [part for part in parts if not LICENCES.fullmatch(part.strip("()"))] == [], name


class _Osv(BaseHTTPRequestHandler):
    """Speaks as osv.dev does: https://google.github.io/osv.dev/post-v1-query/."""

    known: dict[str, Any] = {}
    status = 200
    asked: list[str] = []

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(f"{query['package']['name']}=={query['version']}")
        body = json.dumps(self.known.get(query["package"]["name"], {})).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def osv(status: int = 200, **known: Any) -> Iterator[tuple[str, list[str]]]:
    """The URL of a service that knows of these, and what it was asked."""
    asked: list[str] = []
    handler = type("Handler", (_Osv,), {"known": known, "status": status, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def audited(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(AUDIT), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)


def test_every_pinned_version_is_held_against_the_advisories(environ: dict[str, str]) -> None:
    with osv() as (url, asked):
        done = audited(environ, f"--osv-url={url}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(pinned())} dependencies: no known vulnerability\n"
    assert sorted(asked) == sorted(f"{name}=={version}" for name, version in pinned().items())


ADVISORY = {
    "id": "GHSA-xxxx-yyyy-zzzz",
    "aliases": ["CVE-2026-1"],
    "summary": "Lets anybody in.",
    "affected": [
        {
            "package": {"name": "aiohttp", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}


def test_a_known_vulnerability_is_told_and_ends_the_run(environ: dict[str, str]) -> None:
    with osv(aiohttp={"vulns": [ADVISORY]}) as (url, _):
        done = audited(environ, f"--osv-url={url}")
    version = pinned()["aiohttp"]
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"aiohttp {version}: CVE-2026-1 (GHSA-xxxx-yyyy-zzzz); mended in: 99.1\n"


def test_where_nobody_can_be_asked_it_says_so_in_one_line(environ: dict[str, str]) -> None:
    with osv(status=503) as (url, _):
        failing = audited(environ, f"--osv-url={url}")
    gone = audited(environ, f"--osv-url={url}")
    for done, reason in ((failing, "ServiceError"), (gone, "ConnectionError")):
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == f"dependencies not audited, nobody can be asked from here: {reason}\n"


def test_a_failure_of_the_audit_itself_is_no_such_excuse(environ: dict[str, str]) -> None:
    done = audited(environ, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pip-audit failed: ")
    assert len(done.stderr.splitlines()) == 1


def test_what_could_not_be_looked_at_is_not_taken_for_harmless(environ: dict[str, str], tmp_path: Path) -> None:
    """As where a mirror of the package index is asked; pip-audit itself ends with 0."""
    package = tmp_path / "pip_audit"
    package.mkdir()
    (package / "__init__.py").touch()
    skipped = {"dependencies": [{"name": name, "skip_reason": "not found"} for name in pinned()], "fixes": []}
    (package / "__main__.py").write_text(f"print({json.dumps(json.dumps(skipped))})\n")
    done = audited({**environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{len(pinned())} of {len(pinned())} versions are unknown there" in done.stderr
