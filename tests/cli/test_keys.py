"""``crafely keys``: what it makes opens the API, and what it revokes opens nothing any more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from crafely.cli import commands
from tests.cli.conftest import PROGRAM, Serving, crafely, shell


def create(serving: Serving, *options: str) -> Any:
    done = crafely(serving.folder, "keys", "create", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_new_key_opens_the_api_until_it_is_revoked(served: Serving) -> None:
    made = create(served, "--name", "mine", "--user", "alice", "--permission", "agents:read")
    status, me = served.get("/v1/me", made["key"])
    assert (status, me["userId"], me["permissions"]) == (200, "alice", ["agents:read"])
    assert served.get("/v1/api-keys", made["key"])[0] == 403

    done = crafely(served.folder, "keys", "revoke", "--user", "alice", made["id"])
    assert (done.returncode, done.stdout) == (0, f"{made['id']} is revoked\n")
    assert served.get("/v1/me", made["key"])[0] == 401


def test_a_rotated_key_and_the_one_before_it_end_together(served: Serving) -> None:
    made = create(served, "--user", "rotor", "--permission", "agents:read")
    rotate = ("keys", "rotate", "--user", "rotor", "--overlap-seconds", "600")
    rotated = json.loads(crafely(served.folder, *rotate, "--json", made["id"]).stdout)
    assert (rotated["rotatedFrom"], rotated["permissions"], rotated["userId"]) == (made["id"], ["agents:read"], "rotor")
    assert [served.get("/v1/agents", key)[0] for key in (made["key"], rotated["key"])] == [200, 200]

    again = crafely(served.folder, *rotate, made["id"])
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"crafely: {made['id']} has been replaced before: rotate the key that did\n"
    third = crafely(served.folder, *rotate, rotated["id"])
    assert served.get("/v1/agents", third.stdout.strip())[0] == 200

    done = crafely(served.folder, "keys", "revoke", "--user", "rotor", "--family", made["id"])
    assert (done.returncode, done.stdout) == (0, f"{made['id']} is revoked\n")
    assert [served.get("/v1/me", key)[0] for key in (made["key"], rotated["key"], third.stdout.strip())] == [401] * 3
    refused = crafely(served.folder, *rotate, rotated["id"])
    assert (refused.returncode, refused.stderr) == (1, f"crafely: {rotated['id']} is not active any more\n")
    unknown = crafely(served.folder, *rotate, "key_nothing")
    assert (unknown.returncode, unknown.stderr) == (1, "crafely: user rotor has no key key_nothing\n")


@pytest.mark.parametrize("seconds", ["-1", "2592001", "1.5", "", "9" * 5000, "²"])
def test_an_overlap_is_a_number_of_seconds(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        commands.run(["keys", "rotate", f"--overlap-seconds={seconds}", "key_1"])
    assert "--overlap-seconds: expected 0 to 2592000 seconds" in capsys.readouterr().err


def test_only_the_key_is_on_standard_output(served: Serving) -> None:
    done = shell(served.folder, f'KEY=$({PROGRAM} keys create --user paste); echo "$KEY"')
    assert re.fullmatch(r"crf_live_\w+\n", done.stdout)
    assert served.get("/v1/me", done.stdout.strip())[1]["userId"] == "paste"
    assert re.fullmatch(r"key_\S+ of user paste; the key is shown this once\n", done.stderr)


@pytest.mark.parametrize(
    ("options", "permissions"),
    [
        ([], ["*"]),
        (["--admin"], ["*", "admin"]),
        (["--admin", "--permission", "keys:verify"], ["*", "admin", "keys:verify"]),
        (["--permission", "usage:write", "--permission", "usage:write"], ["usage:write"]),
    ],
)
def test_what_a_key_may_do(served: Serving, options: list[str], permissions: list[str]) -> None:
    made = create(served, *options)
    assert served.get("/v1/me", made["key"])[1]["permissions"] == permissions


def test_the_list_shows_ids_to_paste_and_never_a_key(served: Serving) -> None:
    first = create(served, "--user", "lister", "--name", "[bold]one")
    second = create(served, "--user", "lister", "--expires-at", "2099-01-31T12:00:00+01:00")
    assert crafely(served.folder, "keys", "revoke", "--user", "lister", first["id"]).returncode == 0

    shown = crafely(served.folder, "keys", "list", "--user", "lister").stdout
    lines = [line for line in shown.splitlines() if "key_" in line]
    assert [line.split()[0] for line in lines] == [second["id"], first["id"]]
    assert "revoked" in lines[1]
    assert "[bold]" in lines[1]
    assert "crf_live_" not in shown

    listed = json.loads(crafely(served.folder, "keys", "list", "--user", "lister", "--json").stdout)
    assert [(key["id"], key["active"], key["expiresAt"]) for key in listed] == [
        (second["id"], True, "2099-01-31T11:00:00Z"),
        (first["id"], False, None),
    ]
    assert "hashedKey" not in listed[0]


def test_without_a_server_it_starts_the_database_and_stops_it(copied: tuple[Path, str]) -> None:
    folder, key = copied
    done = crafely(folder, "keys", "create", "--json")
    made = json.loads(done.stdout)
    assert crafely(folder, "keys", "revoke", made["id"], "--json").stdout == f'{{"id":"{made["id"]}","active":false}}\n'
    serving = Serving(folder).ready()
    assert serving.get("/v1/me", key)[0] == 200
    assert serving.get("/v1/me", made["key"])[0] == 401
    serving.stop()


@pytest.mark.parametrize("whose", ["admin", "nobody-of-that-name"])
def test_a_key_of_somebody_else_cannot_be_revoked(served: Serving, whose: str) -> None:
    made = create(served, "--user", "owner")
    done = crafely(served.folder, "keys", "revoke", "--user", whose, made["id"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"crafely: user {whose} has no key {made['id']}\n"
    assert served.get("/v1/me", made["key"])[0] == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--permission", "Agents read"], "--permission: expected a name such as agents:read"),
        (["--permission", "a" * 65], "--permission: expected a name such as agents:read"),
        (["--permission", ""], "--permission: expected a name such as agents:read"),
        ([f"--permission=p{number}" for number in range(65)], "--permission: at most 64 names"),
        (["--expires-at", "tomorrow"], "--expires-at: expected a time in the future with its offset"),
        (["--expires-at", "2001-01-31T12:00:00Z"], "--expires-at: expected a time in the future with its offset"),
        (["--expires-at", "2099-01-31T12:00:00"], "--expires-at: expected a time in the future with its offset"),
        (["--user", ""], "--user: expected 1 to 255 characters"),
        (["--user", "u" * 256], "--user: expected 1 to 255 characters"),
        (["--user", "bell\a"], "--user: expected printable characters in UTF-8"),
        (["--name", "\udcff"], "--name: expected printable characters in UTF-8"),
        (["--name"], "--name: expected one argument"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    # Nothing is started for it, so no process of its own is needed to see it.
    try:
        code = commands.run(["keys", "create", *options])
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert (code, said.out) == (2, "")
    assert named in line
