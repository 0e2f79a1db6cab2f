"""The command line: ``sparse-ir``, and the same as ``python -m sparse_ir``."""

from __future__ import annotations

import sys

from sparse_ir.errors import EXIT_INTERRUPTED


def run() -> None:
    """Run the command line. Ctrl-C is heard from the first import on."""
    try:
        from sparse_ir import cli

        cli.run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
