"""Every error a user can cause, and nothing else.

SparseIRError                 the one class the command line catches: one line, exit code 2
├── DataError                 a file or a text breaks its format (names file, line, value, rule)
├── ConfigError               an option, or a combination of options, is not allowed
├── ModelError                a checkpoint cannot be used as a sparse encoder
├── IndexMismatch             an index and an encoder (or a rule) do not belong together
├── DamagedError              stored bytes differ from what their manifest promises
├── UncheckedError            something could not be checked (no permission), which is no damage
├── LockedError               another process is writing to the same place
├── ClosedError               something is used after it was closed
├── TrainingError             training cannot go on
├── BudgetMissed              no search options hold a latency budget
├── JavaError                 no usable Java runtime, or the virtual machine failed
└── MissingExtra              an optional package is not installed
Each one also inherits the builtin exception that a caller would expect.
"""

from __future__ import annotations


class SparseIRError(Exception):
    """Base class of all errors that a user, a file or a machine can cause."""


class DataError(SparseIRError, ValueError):
    """Input breaks its format; the message reads ``file:line: what, value, what is allowed``."""


class ConfigError(SparseIRError, ValueError):
    """An option or a combination of options is not allowed."""


class ModelError(SparseIRError, ValueError):
    """A checkpoint cannot be read as a learned-sparse encoder."""


class IndexMismatch(SparseIRError, ValueError):
    """An index is opened with an encoder, tokenizer or rule that did not make it."""


class DamagedError(SparseIRError, RuntimeError):
    """Stored bytes are missing, truncated or changed."""


class UncheckedError(SparseIRError, RuntimeError):
    """Stored bytes could not be checked, for example for lack of permission."""


class LockedError(SparseIRError, RuntimeError):
    """Another process is writing to the same place."""


class ClosedError(SparseIRError, ValueError):
    """An index is asked after it was closed."""


class BudgetMissed(SparseIRError, RuntimeError):
    """No search options hold the latency budget; ``report`` has all measurements."""

    def __init__(self, message: str, report: dict[str, object] | None = None) -> None:
        super().__init__(message)
        self.report = report or {}


class TrainingError(SparseIRError, RuntimeError):
    """Training cannot go on; the message says why, and what to change."""


class JavaError(SparseIRError, RuntimeError):
    """No usable Java runtime was found, or the Java side failed."""


class MissingExtra(SparseIRError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
