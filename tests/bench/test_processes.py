"""What the kernel says of processes."""

import os
import subprocess
import sys

import pytest

from crafely.bench import BenchError, processes


def test_processor_time_is_that_of_the_process_and_its_children() -> None:
    before, machine = processes.seconds(os.getpid()), processes.busy()
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert child.pid in processes.tree(os.getpid())
    assert processes.parent(child.pid) == os.getpid()
    running = processes.seconds(os.getpid())
    # In hundredths of a second, each rounded by itself.
    assert running - before >= 0.25
    child.communicate(b"\n", timeout=60)
    assert processes.seconds(os.getpid()) >= running, "what an ended child has used stays counted"
    assert processes.busy() - machine >= 0.25
    assert processes.memory(os.getpid(), "VmRSS") > processes.memory(os.getpid(), "RssAnon") > 1e6
    assert processes.memory(child.pid, "VmRSS") == 0
    assert processes.program(child.pid) is None
    with pytest.raises(BenchError, match="cannot be looked at"):
        processes.parent(child.pid)
