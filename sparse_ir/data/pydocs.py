"""The docstrings of Python's standard library as a collection, with questions and answers.

``read_pydocs`` imports the public modules of the library and reads what they show: a document is a
public module, class, function, method or property, and its id is the shortest public name.
``read_questions`` reads the questions and judgements that are packaged beside this module.
"""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from sparse_ir.data.readers import read_qrels, read_queries
from sparse_ir.data.records import LONE_SURROGATE, Document, Qrels, Query

MIN_WORDS = 4
# Modules (with everything below them) that act when they are imported, that nobody looks up, or
# that not every machine has.
SKIPPED = frozenset(
    (
        "antigravity",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "ntpath",
        "nturl2path",
        "pydoc_data",
        "test",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
    )
)
_HIDDEN = frozenset(("genericpath",))  # read when another module shows its names
_RENAMED = {"posixpath": "os.path", "_collections_abc": "collections.abc"}
# what __module__ says where it is not the public name
_C_HOMES = {"os": ("posix",), "builtins": ("io", "_io")}
_TEST_FOLDERS = frozenset(("test", "tests"))
_CROSS_REFERENCE = re.compile(r":[\w:]+:`[^`]*`")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\([^\n]*\)(?: *-> *\S+)? *(?:\n|$)")
# what C code keeps for inspect.signature
_SIGNATURE_BLOCK = re.compile(r"^[\w.]+\([^)]*\)\n--\n\n")
_NAME_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Entry(NamedTuple):
    """One public name: its cleaned docstring ("" for none) and the names of its parameters."""

    text: str
    parameters: str


def read_pydocs(progress: Callable[[int], None] | None = None) -> Iterator[Document]:
    """Yield the documents of the standard library; see ``read_modules``.

    A fresh interpreter reads them. This process imports nothing, and packages that it has loaded
    cannot have replaced functions of the library. ``progress(1)`` is called for each name of
    ``find_modules``.
    """
    command = [sys.executable, "-m", "sparse_ir.data.pydocs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:
        try:
            for line in child.stdout or ():
                fields = json.loads(line)
                if fields is not None:
                    yield Document(*fields)
                elif progress is not None:
                    progress(1)
        except GeneratorExit:  # the caller wants no more documents
            child.kill()
            raise
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {child.returncode}")


def _print_documents() -> None:
    """Print ``null`` for each module that was read, then the fields of each document."""

    def print_line(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")

    for document in read_modules(find_modules(), progress=lambda _: print_line(None)):
        print_line([document.doc_id, document.title, document.text])


def read_modules(
    names: Iterable[str],
    progress: Callable[[int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Yield the documents of some modules, which are imported, sorted by id.

    The text is the docstring as ``inspect.cleandoc`` gives it; the title is the name in separate
    words, then the parameter names. Left out are names with a leading underscore, and docstrings
    with fewer than ``MIN_WORDS`` words (signatures and cross references do not count). A class
    without a docstring has that of its ``__init__``. A docstring under several names appears once,
    under the name with the fewest dots, then the shortest.

    ``progress(1)`` is called for each module, and ``report(line)`` for each one that cannot be
    imported.
    """
    entries: dict[str, Entry] = {}
    for name in names:
        module = _import(name, report)
        if module is not None:
            entries.update(_read_module(_RENAMED.get(name, name), module))
        if progress is not None:
            progress(1)
    for name in _choose_names(entries):
        entry = entries[name]
        yield Document(name, _title(name, entry.parameters), entry.text)


def find_modules() -> list[str]:
    """Names of the standard library's public modules, without tests and ``SKIPPED``, sorted."""
    folder = sysconfig.get_path("stdlib")
    names = []
    for name in sys.stdlib_module_names:
        if _is_shown(name):
            names.append(name)
            names.extend(_walk(name, f"{folder}/{name}"))
    return sorted(names)


def _walk(package: str, folder: str) -> Iterator[str]:
    """The public modules below a package; nothing is imported."""
    for info in pkgutil.iter_modules([folder]):
        name = f"{package}.{info.name}"
        if _is_shown(name):
            yield name
            if info.ispkg:
                yield from _walk(name, f"{folder}/{info.name}")


def _is_shown(module: str) -> bool:
    if module in _RENAMED:
        return True
    if module in SKIPPED or module in _HIDDEN:
        return False
    return _is_public(module) and module.rpartition(".")[2] not in _TEST_FOLDERS


def _is_public(name: str) -> bool:
    return all(part and not part.startswith("_") for part in name.split("."))


def _import(name: str, report: Callable[[str], None] | None) -> ModuleType | None:
    """The module; None if it cannot be imported here, for instance on another system."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about modules that will be removed
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if report is not None:
            report(f"{name}: not read, {type(error).__name__}: {error}")
        return None


def _read_module(shown: str, module: ModuleType) -> dict[str, Entry]:
    """The module itself and all of its public names, members of classes included."""
    entries = {shown: Entry(_docstring(module), "")}
    prefix = f"{shown}."
    if shown == "builtins":
        prefix = ""
    for name in _public_names(module):
        value = _original(module, name)
        if inspect.isclass(value):
            entries.update(_read_class(prefix + name, value))
        elif callable(value):
            entries[prefix + name] = Entry(_docstring(value), _parameters(value))
    return entries


def _public_names(module: ModuleType) -> list[str]:
    """The names in ``__all__``, or else those whose objects belong to the module."""
    exported = getattr(module, "__all__", ())
    names = []
    for name in sorted({*dir(module), *exported}):
        if not _is_public(name) or not hasattr(module, name):
            continue
        if exported:
            is_shown = name in exported or _is_exported_below(module, name)
        else:
            is_shown = _belongs_to(module, _original(module, name))
        if is_shown:
            names.append(name)
    return names


def _is_exported_below(package: ModuleType, name: str) -> bool:
    """Whether a package has a name from the ``__all__`` of one of its modules."""
    home = getattr(getattr(package, name), "__module__", None)
    if not str(home).startswith(f"{package.__name__}."):
        return False
    return name in getattr(sys.modules.get(str(home)), "__all__", ())


def _belongs_to(module: ModuleType, value: object) -> bool:
    """Whether a module without ``__all__`` defines a value, itself or in a private module."""
    name = module.__name__
    home = getattr(value, "__module__", None)
    if home in (name, f"_{name}", None) or home in _C_HOMES.get(name, ()):
        return not isinstance(value, ModuleType)
    if hasattr(module, "__path__"):
        return str(home).startswith(f"{name}.")
    folder, _, last = str(home).rpartition(".")
    return folder == name.rpartition(".")[0] and bool(folder) and last.startswith("_")


def _original(module: ModuleType, name: str) -> Any:
    """The attribute; for ``sys.excepthook`` and the like, the original one."""
    value = getattr(module, name, None)
    if module is sys and name.endswith("hook"):
        return getattr(module, f"__{name}__", value)
    return value


def _read_class(name: str, value: type) -> dict[str, Entry]:
    initial = value.__init__ if inspect.isfunction(value.__init__) else None  # type: ignore[misc]
    text = _docstring(value) or _docstring(initial)
    entries = {name: Entry(text, _parameters(initial))}
    for member, inner in _members(value).items():
        if inspect.isclass(inner) and inner.__qualname__ == f"{value.__qualname__}.{member}":
            entries.update(_read_class(f"{name}.{member}", inner))
        elif inspect.isroutine(inner) or inspect.isdatadescriptor(inner):
            entries[f"{name}.{member}"] = Entry(_docstring(inner), _parameters(inner))
    return {shown: entry for shown, entry in entries.items() if _is_public(shown)}


def _members(value: type) -> dict[str, Any]:
    """What a class defines, and what it inherits from classes without a public name."""
    package = sys.modules.get(value.__module__.split(".")[0])
    hidden: list[type] = []
    shown: list[type] = []
    for base in value.__mro__[1:]:
        if _is_public(base.__module__) or getattr(package, base.__name__, None) is base:
            shown.append(base)
        else:
            hidden.append(base)
    members: dict[str, Any] = {}
    for base in reversed(hidden):
        # the members of a public base have documents already
        if not any(base in other.__mro__ for other in shown):
            members.update(vars(base))
    return members | dict(vars(value))


def _docstring(value: object) -> str:
    if value is None:
        return ""
    return _tidy(getattr(value, "__doc__", None))


def _tidy(docstring: object) -> str:
    """``inspect.cleandoc`` without outer white space, C signatures and what UTF-8 cannot hold."""
    if not isinstance(docstring, str):
        return ""
    text = _SIGNATURE_BLOCK.sub("", inspect.cleandoc(docstring).strip(), count=1)
    return LONE_SURROGATE.sub("\ufffd", text)


def _parameters(value: object) -> str:
    """Parameter names as a signature writes them, without ``self`` and private ones."""
    if value is None:
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):  # C code without a signature, or a broken one
        return ""
    names = []
    for parameter in parameters:
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        stars = ""
        if parameter.kind is parameter.VAR_POSITIONAL:
            stars = "*"
        elif parameter.kind is parameter.VAR_KEYWORD:
            stars = "**"
        names.append(stars + parameter.name)
    return ", ".join(names)


def _choose_names(entries: Mapping[str, Entry]) -> list[str]:
    """The names that become documents, sorted: each text that is long enough once."""
    best: dict[str, str] = {}
    for name in sorted(entries, key=_simplest_first):
        text = entries[name].text
        if _is_long_enough(text):
            best.setdefault(" ".join(text.split()), name)
    return sorted(best.values())


def _simplest_first(name: str) -> tuple[int, int, str]:
    return name.count("."), len(name), name


def _is_long_enough(text: str) -> bool:
    prose = _CROSS_REFERENCE.sub(" ", _SIGNATURE_LINE.sub("", text, count=1))
    return len(_WORD.findall(prose)) >= MIN_WORDS


def _title(name: str, parameters: str) -> str:
    """The parts of the name; a compound part is followed by its words, for the analyzer."""
    words: list[str] = []
    for part in name.split("."):
        words.append(part)
        pieces = _NAME_WORD.findall(part)
        if len(pieces) > 1:
            words.extend(pieces)
    title = " ".join(words)
    if parameters:
        title += f" ({parameters})"
    return title


def read_questions() -> tuple[list[Query], Qrels]:
    """The packaged test collection: hand-written questions, and their judgements.

    Grade 2 is the answer, grade 1 is also helpful.
    """
    folder = importlib.resources.files("sparse_ir") / "resources" / "pydocs"
    with importlib.resources.as_file(folder / "queries.jsonl") as path:
        queries = list(read_queries(path))
    with importlib.resources.as_file(folder / "qrels.tsv") as path:
        return queries, read_qrels(path)


def restrict_qrels(qrels: Qrels, doc_ids: Iterable[str]) -> tuple[Qrels, list[str]]:
    """The judgements on documents in ``doc_ids``, and the sorted ids of the other judged documents.

    A query that loses its last relevant document is left out as well: no system could answer it.
    """
    present = set(doc_ids)
    missing: set[str] = set()
    restricted: Qrels = {}
    for query_id, judged in qrels.items():
        kept = {doc_id: grade for doc_id, grade in judged.items() if doc_id in present}
        missing.update(judged.keys() - present)
        if any(kept.values()):
            restricted[query_id] = kept
    return restricted, sorted(missing)


if __name__ == "__main__":
    _print_documents()
