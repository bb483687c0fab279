"""``crafely serve`` with two workers on a PostgreSQL of its own, to which a module may do what it likes."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.cli.conftest import new_folder
from tests.faults.clients import RECOVERY_SECONDS, SETTINGS
from tests.torture.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with new_folder() as folder, ExitStack() as stack:
        scene = Scene(folder, stack, users=2, permissions=["*"], settings=SETTINGS)
        yield scene
        scene.stop(RECOVERY_SECONDS)
        # A fault of the database is none of ours: nothing was unexpected.
        assert "a request failed unexpectedly" not in scene.serving.err
