"""What ``crafely check --against REV`` prints."""

import sys

import msgspec

from crafely.cli.spare import spare
from crafely.db.against import RevisionError, against


def run(revision: str, *, as_json: bool) -> int:
    """Prints what would break while this release takes the place of that one; exit code 1 when anything would."""
    try:
        with spare() as server:
            found = against(server.url, revision)
    except RevisionError as error:
        print(f"crafely: {error}", file=sys.stderr)
        return 2
    if as_json:
        print(msgspec.json.encode(found).decode())
        return 1 if found.findings else 0
    for finding in found.findings:
        print(finding)
    for notice in found.notices:
        print(f"note: {notice}")
    held = f"{found.statements} statements of {revision} on this schema: {len(found.findings)} findings"
    print(f"{held}; {len(found.notices)} statements of this tree need its migrations first", file=sys.stderr)
    return 1 if found.findings else 0
