"""The page at /docs, and what is said to a browser: in headers, and to a real one."""

import asyncio
import base64
import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest

from crafely.api import ROUTES, docs
from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGES = [route.path for route in ROUTES if route.media_type.startswith("text/html")]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def test_the_page_needs_nothing_from_elsewhere_and_runs_only_what_it_holds() -> None:
    text = docs.PAGE.decode()
    assert "http://" not in text
    assert "https://" not in text
    # Markup from strings is how a foreign name would become a script; attributes with code are what the policy forbids.
    for forbidden in ("innerHTML", "document.write", "eval(", " style=", " onclick="):
        assert forbidden not in text
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = docs.HEADERS["Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_has_a_policy_of_its_own_and_one_only(api: Api, path: str) -> None:
    answer = await api.anonymous.get(path)
    assert [name for name, _ in answer.headers.items()].count("Content-Security-Policy") == 1
    rules = dict(rule.strip().partition(" ")[::2] for rule in answer.headers["Content-Security-Policy"].split(";"))
    for directive in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert rules[directive] == "'none'", directive
    assert rules["require-trusted-types-for"] == "'script'"
    assert rules["connect-src"] == "'self'"
    for directive in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules[directive]), directive
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "camera=()" in answer.headers["Permissions-Policy"]


async def test_nothing_says_that_there_is_tls_for_there_is_none_here(api: Api) -> None:
    for path in ("/docs", "/healthz"):
        answer = await api.anonymous.get(path, headers={"X-Forwarded-Proto": "https"})
        assert "Strict-Transport-Security" not in answer.headers


async def opened(url: str, folder: Path) -> tuple[str, list[str]]:
    """What a real browser makes of a page, as HTML, and what it has to say in its console."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    # As root it refuses its sandbox; the page is our own.
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", f"--user-data-dir={folder / 'browser'}"]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *options,
        "--dump-dom",
        url,
        env={**os.environ, "HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            page, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said[-2000:]
    lines = [line for line in said.decode(errors="replace").splitlines() if "CONSOLE" in line]
    # It would have the key in a form, which could be sent somewhere.
    return page.decode(), [line for line in lines if "[DOM] Password field is not contained in a form" not in line]


async def test_a_browser_shows_every_operation_and_complains_of_nothing(api: Api, tmp_path: Path) -> None:
    host, port = api.server.address
    page, said = await opened(f"http://{host}:{port}/docs", tmp_path)
    assert said == []
    assert page.count("<article ") == len(ROUTES)
    assert 'id="problem-not_found"' in page
