"""What processes use, as Linux counts it: a server's processor time holds whatever else the machine does, its rate not.

Source: proc(5), /proc/pid/stat, /proc/pid/status and /proc/stat.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from crafely.bench import BenchError

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """What stands behind the program's name, which may hold spaces and brackets: state, parent …"""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def program(pid: int) -> str | None:
    """The name of a process's program; None where there is none to be seen."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return None


def parent(pid: int) -> int:
    """Which process started one. Raises BenchError."""
    try:
        return int(_stat(pid)[1])
    except OSError:
        raise BenchError(f"process {pid} cannot be looked at in /proc") from None


def tree(root: int) -> list[int]:
    """A process, and all that it and its children started and that run now."""
    children: dict[int, list[int]] = {}
    for pid in _running():
        try:
            children.setdefault(int(_stat(pid)[1]), []).append(pid)
        except OSError:
            continue  # it has just ended
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _running() -> Iterator[int]:
    return (int(path.name) for path in _PROC.iterdir() if path.name.isdecimal())


def seconds(root: int) -> float:
    """Processor seconds that a process and its children have used, with those of its children that have ended."""
    ticks = 0
    for pid in tree(root):
        try:
            # Its own in user and kernel mode, and its ended children's.
            ticks += sum(int(part) for part in _stat(pid)[11:15])
        except OSError:
            continue
    return ticks / _TICKS


def memory(pid: int, kind: str) -> int:
    """Bytes of memory of a process: ``VmRSS`` is all, ``RssAnon`` what it shares with nobody. 0: it has ended."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith(f"{kind}:")), "0")
    return int(found) * 1024


def busy() -> float:
    """Processor seconds that the machine has spent on anybody."""
    user, nice, system, _, _, irq, softirq, stolen = (_PROC / "stat").read_text().split("\n")[0].split()[1:9]
    return sum(int(part) for part in (user, nice, system, irq, softirq, stolen)) / _TICKS


def cpus() -> int:
    """Processors of the machine."""
    return os.cpu_count() or 1
