"""Every error that a user, a file or a machine can cause, and the exit codes of the command line.

SparseIRError                 base class; the command line prints its message on one line
├── DataError                 a file or a text breaks its format
├── ConfigError               an option or a combination of options cannot be used
├── ModelError                a checkpoint cannot be used as a sparse encoder
├── IndexMismatch             an index does not belong to an encoder or a rule
├── DamagedError              stored bytes differ from what their manifest promises
├── UncheckedError            something could not be checked, so nothing is known about it
├── LockedError               another process is writing to the same place
├── ClosedError               something is used after it was closed
├── TrainingError             a training cannot continue
├── BudgetMissed              no search options meet a latency budget
├── JavaError                 no usable Java runtime, or the virtual machine failed
└── MissingExtra              an optional package is not installed
Each of them also inherits from the builtin exception that a caller would expect.
"""

from __future__ import annotations

from collections.abc import Mapping

# Exit codes of every command. 0: success.
EXIT_UNHEALTHY = 1  # the report says "healthy": false
EXIT_ERROR = 2  # wrong arguments, or an error of this module; one line on standard error
EXIT_UNCHECKED = 3  # UncheckedError: neither sound nor damaged, as far as is known
EXIT_INTERRUPTED = 130  # Ctrl-C


class SparseIRError(Exception):
    """Base class of all errors that a user, a file or a machine can cause."""

    exit_code = EXIT_ERROR


class DataError(SparseIRError, ValueError):
    """Input breaks its format; the message reads ``file:line: what, value, what it must be``."""


class ConfigError(SparseIRError, ValueError):
    """An option or a combination of options cannot be used."""


class ModelError(SparseIRError, ValueError):
    """A checkpoint cannot be read as a learned-sparse encoder."""


class IndexMismatch(SparseIRError, ValueError):
    """An index is opened with an encoder, tokenizer or rule that did not make it."""


class DamagedError(SparseIRError, RuntimeError):
    """Stored bytes are missing, truncated or changed."""


class UncheckedError(SparseIRError, RuntimeError):
    """Stored bytes could not be checked, for example for lack of permission or of a lock."""

    exit_code = EXIT_UNCHECKED


class LockedError(SparseIRError, RuntimeError):
    """Another process is writing to the same place."""


class ClosedError(SparseIRError, ValueError):
    """An index is used after it was closed."""


class BudgetMissed(SparseIRError, RuntimeError):
    """No search options meet the latency budget; ``report`` has all measurements."""

    def __init__(self, message: str, report: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.report = dict(report or {})


class TrainingError(SparseIRError, RuntimeError):
    """A training cannot continue; the message says why and what to change."""


class JavaError(SparseIRError, RuntimeError):
    """No usable Java runtime was found, or the Java side failed."""


class MissingExtra(SparseIRError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""


class SparseIRWarning(UserWarning):
    """Something works, but probably not as its user expects."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
