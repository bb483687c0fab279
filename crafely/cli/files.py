"""Files that a command writes."""

import argparse
from pathlib import Path


def writable(argument: str) -> Path:
    """The type of an argument that names a file to write: told before any work is done, not after."""
    path = Path(argument)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError("expected a file in a folder that exists")
    return path
