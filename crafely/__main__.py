"""``python -m crafely``: the command line."""

import sys

from crafely.cli import main

sys.exit(main())
