"""A server of its own for a command that has to try something: no data of anybody is near."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crafely.config import load
from crafely.db import embedded


@contextmanager
def spare() -> Iterator[embedded.Server]:
    """An empty embedded server in a temporary folder; it goes with the block. Raises SettingsError or EmbeddedError."""
    with (
        tempfile.TemporaryDirectory(prefix="crafely-spare-", ignore_cleanup_errors=True) as folder,
        embedded.running(Path(folder), postgres_bin=load().postgres_bin, options={"fsync": "off"}) as server,
    ):
        yield server
