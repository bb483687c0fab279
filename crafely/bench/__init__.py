"""The performance lab behind ``crafely bench``.

A bench is a list of sides (``rounds.Side``) that are measured in turn, round after round, so that whatever else the
machine does falls on all of them alike. What they gave becomes a ``report.Report``: a table, JSON, or a page of HTML.

    place.py, seed.py       the databases that are measured, and what is in them
    rounds.py               sides, samples, and who is measured when
    lookup.py … growth.py   one module for each command: its sides, its ratios, its bounds
    capacity.py             what a load needs: capacity_lab.py measures, capacity_terms.py and _model.py reckon
    pgbench.py, load.py, bare.py, servers.py    what the sides are made of
    processes.py            what a process used, by the kernel
    report.py, page.py, svg.py                  what a person or a program reads

Statements of the lab's own are files in ``statements/``, never texts in Python.
"""

from functools import cache
from pathlib import Path


class BenchError(RuntimeError):
    """Why a bench cannot run, or why its figures cannot be trusted: one line."""


@cache
def statement(name: str) -> bytes:
    """A file of ``statements/``, as it is sent."""
    return (Path(__file__).parent / "statements" / f"{name}.sql").read_bytes()
