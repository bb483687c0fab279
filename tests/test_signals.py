"""Signals that stop the program: real ones, sent to ourselves."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from crafely import signals

STOP = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    with signals.kept():
        signals.interrupt()
        yield


@pytest.mark.parametrize("number", STOP)
def test_each_raises_keyboard_interrupt(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def stopped_inside(steps: list[str], *numbers: signal.Signals) -> None:
    with signals.held():
        for number in numbers:
            signal.raise_signal(number)
        steps.append("done all the same")


@pytest.mark.parametrize("number", STOP)
def test_a_held_one_comes_when_the_block_is_over(number: signal.Signals) -> None:
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        stopped_inside(steps, number, signal.SIGHUP)
    assert steps == ["done all the same"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_nothing_comes_when_nothing_came() -> None:
    with signals.held():
        pass


def child_was_killed() -> None:
    with signals.held():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("the child was killed")


def test_a_held_one_wins_over_what_failed_because_of_it() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        child_was_killed()
    assert isinstance(caught.value.__context__, ValueError)


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.interrupt()
    assert signals.heeded() == [signal.SIGINT, signal.SIGTERM]
    signal.raise_signal(signal.SIGHUP)
    with signals.held():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_default_is_left_alone() -> None:
    script = """
import signal
from crafely import signals
with signals.held():
    signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == -signal.SIGTERM
