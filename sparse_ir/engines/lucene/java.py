"""The one module that talks to Java: it starts the virtual machine and translates its errors.

``start`` runs the machine with our options *before* Pyserini can start it with its own, which ask
for a module that many runtimes lack. Nothing happens at import. The machine does not survive a
fork: in a forked process every call raises ``JavaError`` at once instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import locale
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sparse_ir import extras
from sparse_ir.engines.lucene.runtime import (
    HEAP_VARIABLE,
    REMEDY,
    VECTOR_MODULE,
    Runtime,
    check_heap,
    default_heap,
    find_jar,
    find_runtime,
    make_options,
)
from sparse_ir.errors import ClosedError, DamagedError, JavaError, UncheckedError

# exceptions that say nothing about the bytes of an index
_MACHINE_FAILED = {"OutOfMemoryError", "StackOverflowError"}
_NOT_READ = {
    "AccessDeniedException",
    "ClosedByInterruptException",
    "FileSystemException",
    "FileSystemLoopException",
    "IndexFormatTooNewException",
    "IndexFormatTooOldException",
    "IOException",
    "LockObtainFailedException",
    "UncheckedIOException",
}
_UTF8_LOCALE = "C.UTF-8"
_start_lock = threading.Lock()
_of_thread = threading.local()
_started_by: int | None = None  # the process whose virtual machine it is
# java.util.logging holds its loggers weakly: a collected logger forgets its level
_kept_alive: list[Any] = []


def start(heap: str | None = None) -> None:
    """Start the virtual machine once per process; later calls do nothing.

    ``heap`` is the largest Java heap (``"4g"``, ``"800m"``); the default is the variable
    ``SPARSE_IR_JAVA_HEAP`` or a quarter of the memory, at least 512 MB and at most 8 GB. Raises
    ``JavaError`` when no runtime fits or the machine was started by other code without Pyserini's
    jar, and ``ConfigError`` for a bad heap size.
    """
    global _started_by
    check_process()
    with _start_lock:
        with extras.importing():
            config = importlib.import_module("jnius_config")
        if not config.vm_running:
            _boot(config, find_runtime(), find_jar(), heap or os.environ.get(HEAP_VARIABLE))
        _adopt()
        _started_by = os.getpid()


def is_usable() -> bool:
    """False in a process that was forked after the virtual machine had started."""
    return _started_by is None or _started_by == os.getpid()


def check_process() -> None:
    """Raise ``JavaError`` in a process that was forked after the virtual machine had started."""
    if not is_usable():
        raise JavaError(
            "this process was forked after Java had started, and Java does not survive a fork; "
            "start workers with the method 'spawn' or 'forkserver', or open the first index in the "
            "worker"
        )


@functools.cache
def java_class(name: str) -> Any:
    """The Java class ``name`` as a Python class; starts the virtual machine when needed."""
    start()
    jnius = importlib.import_module("jnius")
    try:
        return jnius.autoclass(name)
    except jnius.JavaException as error:
        raise JavaError(
            f"the Java class {name} is not in {find_jar().name}; is this Pyserini supported?"
        ) from error


def narrow_class(name: str, constructor: str, **methods: str) -> Any:
    """A Java class with only this constructor and these methods, each with one signature.

    Signatures are in Java's own notation. It serves the few calls of every search: for a whole
    class pyjnius looks at all methods again for each new object and at all overloads for each call,
    which takes a tenth of the time of a search.
    """
    start()
    members = {"__javaconstructor__": [(constructor, False)]}
    return _make_narrow(name, members, methods)


def narrow_cast(value: Any, name: str, **methods: str) -> Any:
    """A Java object seen as the type ``name`` with only these methods; see ``narrow_class``."""
    narrow = _make_narrow(name, {}, methods)
    return cast(narrow, value)


def _make_narrow(name: str, members: dict[str, Any], methods: Mapping[str, str]) -> Any:
    jnius = importlib.import_module("jnius")
    for method, signature in methods.items():
        members[method] = jnius.JavaMethod(signature)
    members["__javaclass__"] = name.replace(".", "/")
    # pyjnius keeps one class for each name and these parameters; others must not get this one
    return jnius.MetaJavaClass(name, (jnius.JavaClass,), members, classparams=(False, False))


def class_object(name: str) -> Any:
    """The ``java.lang.Class`` itself, for Java methods that ask for one."""
    return java_class("java.lang.Class").forName(name)


def cast(name: Any, value: Any) -> Any:
    """``value`` seen as the Java type ``name``: pyjnius picks methods by exact type."""
    return importlib.import_module("jnius").cast(name, value)


def java_map(values: Mapping[str, str | float]) -> Any:
    """A ``java.util.HashMap`` with the given strings, and numbers as Java's ``Float``."""
    result = java_class("java.util.HashMap")()
    for key, value in values.items():
        stored = value if isinstance(value, str) else java_class("java.lang.Float")(value)
        result.put(key, stored)
    return result


@contextlib.contextmanager
def translated_errors(doing: str, error_class: type[Exception] = JavaError) -> Iterator[None]:
    """Turn a Java exception inside the block into one sentence: the action and Java's own reason.

    Using an index after it was closed is a ``ClosedError``. The thread will leave Java at its end.
    """
    check_process()
    _leave_with_the_thread()
    try:
        yield
    except Exception as error:
        # asked for only now: the block may be a search of 200 microseconds
        bridge: Any = sys.modules.get("jnius")
        if bridge is None or not isinstance(error, bridge.JavaException):
            raise
        name = (getattr(error, "classname", None) or "Java exception").rsplit(".", 1)[-1]
        reason = (getattr(error, "innermessage", None) or str(error)).strip().split("\n")[0]
        hint = f"; give Java more memory with {HEAP_VARIABLE}=8g" if "OutOfMemory" in name else ""
        error_class = _choose_class(name, error_class)
        raise error_class(f"{doing}: {name}: {reason}{hint}") from error


def _choose_class(name: str, error_class: type[Exception]) -> type[Exception]:
    """The error for a Java exception of this name; only some of them speak of damaged bytes."""
    if name == "AlreadyClosedException":
        return ClosedError
    if error_class is DamagedError:
        if name in _MACHINE_FAILED:
            return JavaError
        if name in _NOT_READ:
            return UncheckedError
    return error_class


class _Leaving:
    """Belongs to one thread and is deleted by it; Java would keep every thread that called it."""

    def __del__(self) -> None:
        detach_thread()


def _leave_with_the_thread() -> None:
    if hasattr(_of_thread, "leaving"):
        return
    if threading.current_thread() is not threading.main_thread():
        _of_thread.leaving = _Leaving()


def detach_thread() -> None:
    """Detach the calling thread from Java; call it at the end of a thread that may have used it."""
    if "jnius" in sys.modules and _started_by == os.getpid():
        importlib.import_module("jnius").detach()


def import_pyserini(name: str = "pyserini.search.lucene") -> ModuleType:
    """A Pyserini module, on our virtual machine.

    Pyserini 1.6.0 creates an OpenAI client when it is imported and raises without a key, although
    nothing here needs one: a placeholder is in the environment during the import only.
    """
    start()
    variable = "OPENAI_API_KEY"
    missing = variable not in os.environ
    if missing:
        os.environ[variable] = "not-used"
    try:
        return importlib.import_module(name)
    finally:
        if missing:
            os.environ.pop(variable, None)


def _boot(config: Any, runtime: Runtime, jar: Path, heap: str | None) -> None:
    """Start the machine, with the environment that pyjnius and Java read meanwhile.

    Raises ``JavaError`` when the working directory was deleted, in which Java would end the
    process.
    """
    _check_working_directory()
    size = check_heap(heap) if heap else default_heap()
    config.set_classpath(str(jar))
    config.add_options(*make_options(runtime, size))
    environment = {"JAVA_HOME": str(runtime.home)}
    if locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX"):
        environment["LC_ALL"] = _UTF8_LOCALE  # or Java could not read paths with accents
    try:
        with _changed_environment(environment), _silenced_stderr(VECTOR_MODULE in runtime.modules):
            importlib.import_module("jnius").autoclass("java.lang.System")
    except Exception as error:  # pyjnius raises many kinds here; they mean the same to the user
        raise JavaError(
            f"Java {runtime.version} from {runtime.origin} could not be started ({error}); {REMEDY}"
        ) from error


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise JavaError(
            "the working directory was deleted, and Java cannot start there; change to another one"
        ) from error


@contextlib.contextmanager
def _changed_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, and put them back after the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@functools.lru_cache(maxsize=1)
def _adopt() -> None:
    """Check that the running machine sees Lucene, whoever started it; silence Lucene's log."""
    jnius = importlib.import_module("jnius")
    try:
        jnius.autoclass("org.apache.lucene.util.Version")
    except jnius.JavaException as error:
        raise JavaError(
            "a Java virtual machine already runs in this process without Pyserini's jar; call "
            "sparse_ir.engines.lucene.java.start() before other code uses jnius"
        ) from error
    level = jnius.autoclass("java.util.logging.Level").SEVERE
    logger = jnius.autoclass("java.util.logging.Logger").getLogger("org.apache.lucene")
    logger.setLevel(level)
    _kept_alive.append(logger)


@contextlib.contextmanager
def _silenced_stderr(needed: bool) -> Iterator[None]:
    """Hide the one line that Java prints about incubator modules while it starts."""
    if not needed:
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
