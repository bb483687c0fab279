"""``crafely openapi``: the description of the API, without a server."""

import argparse
import sys


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("openapi", help="print the OpenAPI 3.1 document", description=__doc__)
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Prints the document that /openapi.json answers."""
    # Not sooner: `crafely serve` decides how metrics are kept before anything of HTTP is imported.
    from crafely.api import ROUTES  # noqa: PLC0415 - see above
    from crafely.api.openapi import build  # noqa: PLC0415 - see above

    sys.stdout.buffer.write(build(ROUTES) + b"\n")
    return 0
