"""Known vulnerabilities of the versions that constraints.txt names, as osv.dev knows them.

Runs pip-audit, whose own answer does not do: it is 0 also where it could look at nothing, and 1 whatever goes wrong.
Here 0 says that every version was looked at and none is known to be vulnerable, 1 that one is, 2 that pip-audit failed,
3 that nobody could be asked. Arguments are handed on: --ignore-vuln ID, with the reason beside it, for what does not
concern us.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
# The advisories of all sources, by the names and versions alone. The other service is the package index, and a mirror
# of it knows the packages and not their advisories.
OPTIONS = [
    "--vulnerability-service=osv",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner=off",
    "--timeout=15",
    "--format=json",
]
# The errors with which it ends where the service does not answer, or not as it should.
UNREACHABLE = re.compile(r"\b(ConnectionError|ServiceError|\w*Timeout|SSLError|ProxyError|HTTPError|JSONDecodeError)\b")


def main() -> int:
    """Asks, tells, and gives the exit code."""
    pinned = [line for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    command = [sys.executable, "-m", "pip_audit", f"--requirement={CONSTRAINTS}", *OPTIONS, *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
        if unreachable := UNREACHABLE.search(reason):
            return _unknown(unreachable[0])
        print(f"pip-audit failed: {reason}", file=sys.stderr)
        return 2
    vulnerable = [(one, known) for one in found for known in one.get("vulns", [])]
    for one, known in vulnerable:
        better = ", ".join(known["fix_versions"]) or "none yet"
        print(f"{one['name']} {one['version']}: {known['id']} ({', '.join(known['aliases'])}); mended in: {better}")
    if vulnerable:
        return 1
    looked_at = sum("vulns" in one for one in found)
    if looked_at < len(pinned):
        return _unknown(f"{len(pinned) - looked_at} of {len(pinned)} versions are unknown there")
    print(f"{looked_at} dependencies: no known vulnerability")
    return 0


def _unknown(reason: str) -> int:
    print(f"dependencies not audited, nobody can be asked from here: {reason}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
