"""``python -m sparse_ir`` is the same as the command ``sparse-ir``."""

from sparse_ir.cli import run

run()
