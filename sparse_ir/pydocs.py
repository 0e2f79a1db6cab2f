"""The documentation of the installed Python packages as a collection, with questions and answers of our own.

``read_pydocs`` reads docstrings from source files by syntax tree: numpy, scipy, torch and transformers are never
imported. Only a fixed list of standard-library modules (``INSPECTED``), whose docstrings live in C, is imported.
A document is a public module, class, function, method or property; its id is the shortest public name.
``read_questions`` reads the test collection that is packaged beside it. It is not a documentation browser: texts
are as their authors wrote them, and what a package builds at run time (numpy's ufuncs, say) is not there.
Next file to read: ``verbs``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data import Document, Qrels, Query, read_qrels, read_queries

STANDARD_LIBRARY = "python"
DEFAULT = (STANDARD_LIBRARY, "numpy", "scipy", "torch", "transformers")
MIN_WORDS = 5

# Modules whose import has no side effect and whose docstrings live, in whole or in part, in C.
INSPECTED = (
    "array", "ast", "asyncio", "atexit", "base64", "binascii", "bisect", "builtins", "bz2", "cmath", "codecs",
    "collections", "concurrent.futures", "contextvars", "copy", "csv", "ctypes", "datetime", "decimal", "errno",
    "faulthandler", "fcntl", "fractions", "functools", "gc", "hashlib", "heapq", "hmac", "inspect", "io", "ipaddress",
    "itertools", "json", "locale", "lzma", "marshal", "math", "mmap", "multiprocessing", "operator", "os", "pathlib",
    "pickle", "queue", "random", "re", "resource", "secrets", "select", "signal", "socket", "sqlite3", "ssl", "stat",
    "statistics", "string", "struct", "subprocess", "sys", "tempfile", "threading", "time", "tracemalloc", "types",
    "typing", "unicodedata", "uuid", "warnings", "weakref", "zipimport", "zlib",
)

# Module names (with all that lies below them) that nobody looks up, or that not every machine has.
SKIPPED = frozenset((
    "antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "msilib", "ntpath", "nturl2path",
    "pydoc_data", "test", "this", "tkinter", "turtle", "turtledemo",
    "numpy.core", "numpy.distutils", "numpy.f2py", "numpy.matlib", "scipy.misc",
    "torch.ao", "torch.bin", "torch.contrib", "torch.distributed", "torch.fx", "torch.include", "torch.onnx",
    "torch.package", "torch.quantization", "torch.utils.benchmark", "torch.utils.bottleneck",
    "torch.utils.hipify", "torch.utils.model_dump", "torch.utils.tensorboard",
    "transformers.cli", "transformers.conversion_mapping", "transformers.distributed", "transformers.exporters",
    "transformers.integrations", "transformers.loss", "transformers.quantizers", "transformers.testing_utils",
))
_ONLY_BELOW = {"transformers.models": "transformers.models.auto"}   # 400 model families repeat one another
_TEST_FOLDERS = frozenset(("test", "tests", "conftest"))
_HIDDEN = frozenset(("genericpath",))                     # read when another module shows its names
_RENAMED = {"posixpath": "os.path"}
_C_DOC_FILES = {
    "numpy": ("numpy._core._add_newdocs",),
    "scipy": ("scipy.special._add_newdocs",),
    "torch": ("torch._size_docs", "torch._storage_docs", "torch._tensor_docs", "torch._torch_docs"),
}

_CROSS_REFERENCE = re.compile(r":[\w:]+:`[^`]*`")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*?\)( *-> *[^\n]*)?(\n|$)", re.DOTALL)
_PERCENT_FIELD = re.compile(r"%\(\w+\)s")
_BRACE_FIELD = re.compile(r"(?<!\{)\{\w*\}(?!\})")
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_Progress = Callable[[int], None] | None
_Report = Callable[[str], None] | None


class Entry(NamedTuple):
    """One defined name: its cleaned docstring ("" for none) and the names of its parameters."""

    text: str
    parameters: str


class Source(NamedTuple):
    """What one source file says: definitions by qualified name, imports, star imports, ``__all__`` if it is plain."""

    entries: dict[str, Entry]
    imports: dict[str, tuple[str, str]]
    stars: list[str]
    exported: frozenset[str] | None
    shows_imports: bool


# ---------------------------------------------------------------------------------------------- the collection

def read_pydocs(packages: Sequence[str] = DEFAULT, progress: _Progress = None,
                report: _Report = None) -> Iterator[Document]:
    """Yield the documents of the installed ones among ``packages``, sorted by id; "python" is the standard library.

    The text is the docstring as ``inspect.cleandoc`` gives it; the title is the name in separate words, then the
    parameter names. Left out: names with a leading underscore, tests, ``SKIPPED``, all of ``transformers.models``
    but ``auto``, and docstrings with fewer than ``MIN_WORDS`` words (signatures and cross references do not count).
    A docstring under several names is there once, under the name with the fewest dots, then the shortest.
    ``progress(1)`` is called for each file of ``find_modules``; ``report(line)`` for each file that cannot be read
    (default: a warning). A package that is not installed gives no documents.
    """
    entries: dict[str, Entry] = {}
    for package in packages:
        entries.update(_read_package(package, progress, report or _warn))
    chosen = _drop_repeated({name: entry for name, entry in entries.items() if _is_long_enough(entry.text)})
    for name in sorted(chosen):
        yield Document(name, _title(name, entries[name].parameters), entries[name].text)


def find_modules(packages: Sequence[str] = DEFAULT) -> dict[str, Path]:
    """The public modules with a source file, name → path, sorted; its length is the total of ``read_pydocs``."""
    files = {name: path for package in packages for name, path in _find_files(package).items() if _is_shown(name)}
    return dict(sorted(files.items()))


def installed_versions(packages: Sequence[str] = DEFAULT) -> dict[str, str]:
    """Version of each of the packages that is installed; "python" is the running interpreter."""
    versions = {}
    for package in packages:
        if package == STANDARD_LIBRARY:
            versions[package] = platform.python_version()
        elif importlib.util.find_spec(package) is not None:
            versions[package] = _version(package)
    return versions


def read_questions() -> tuple[list[Query], Qrels]:
    """The packaged test collection: hand-written questions, and judgements (2 = the answer, 1 = also helpful)."""
    folder = importlib.resources.files("sparse_ir") / "resources" / "pydocs"
    with importlib.resources.as_file(folder / "queries.jsonl") as path:
        queries = list(read_queries(path))
    with importlib.resources.as_file(folder / "qrels.tsv") as path:
        return queries, read_qrels(path)


def restrict_qrels(qrels: Qrels, doc_ids: Iterable[str]) -> tuple[Qrels, list[str]]:
    """The judgements on documents in ``doc_ids``, and the sorted ids of the judged documents that are not there.

    A query that loses its last relevant document is left out too: no system could answer it.
    """
    present = set(doc_ids)
    kept = {query_id: {doc_id: grade for doc_id, grade in judged.items() if doc_id in present}
            for query_id, judged in qrels.items()}
    missing = {doc_id for judged in qrels.values() for doc_id in judged} - present
    return {query_id: judged for query_id, judged in kept.items() if any(judged.values())}, sorted(missing)


def _read_package(package: str, progress: _Progress, report: Callable[[str], None]) -> dict[str, Entry]:
    library = _Library(_find_files(package), report)
    entries: dict[str, Entry] = {}
    for module in sorted(library.files):
        if _is_shown(module):
            entries.update(library.public_entries(module))
            if progress:
                progress(1)
    for module in _C_DOC_FILES.get(package, ()):
        if module in library.files:
            entries = library.c_entries(package, module) | entries
    if package == STANDARD_LIBRARY:
        entries = _merge(entries, _inspect_modules())
    return {name: entry for name, entry in entries.items() if _is_public(name)}
