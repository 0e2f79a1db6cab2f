"""The documentation of the installed Python packages as a collection, with questions and answers of
our own.

``read_pydocs`` reads docstrings from source files by syntax tree: numpy, scipy, torch and
transformers are never imported. Only a fixed list of standard-library modules (``INSPECTED``),
whose docstrings live in C, is imported. A document is a public module, class, function, method or
property; its id is the shortest public name. ``read_questions`` reads the test collection that is
packaged beside it. It is not a documentation browser: texts are as their authors wrote them, and
what a package builds at run time (numpy's ufuncs, say) is not there.
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

from sparse_ir.data.readers import read_qrels, read_queries
from sparse_ir.data.records import Document, Qrels, Query

STANDARD_LIBRARY = "python"
DEFAULT = (STANDARD_LIBRARY, "numpy", "scipy", "torch", "transformers")
MIN_WORDS = 4
# Modules whose import has no side effect and whose docstrings live, in whole or in part, in C.
INSPECTED = (
    "array",
    "ast",
    "asyncio",
    "atexit",
    "base64",
    "binascii",
    "bisect",
    "builtins",
    "bz2",
    "cmath",
    "codecs",
    "collections",
    "concurrent.futures",
    "contextvars",
    "copy",
    "csv",
    "ctypes",
    "datetime",
    "decimal",
    "errno",
    "faulthandler",
    "fcntl",
    "fractions",
    "functools",
    "gc",
    "hashlib",
    "heapq",
    "hmac",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "locale",
    "lzma",
    "marshal",
    "math",
    "mmap",
    "multiprocessing",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "queue",
    "random",
    "re",
    "resource",
    "secrets",
    "select",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "stat",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "tracemalloc",
    "types",
    "typing",
    "unicodedata",
    "uuid",
    "warnings",
    "weakref",
    "zipimport",
    "zlib",
)
# Module names (with all that lies below them) that nobody looks up, or that not every machine has.
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
        "numpy.core",
        "numpy.distutils",
        "numpy.f2py",
        "numpy.matlib",
        "scipy.misc",
        "torch.ao",
        "torch.bin",
        "torch.contrib",
        "torch.distributed",
        "torch.fx",
        "torch.include",
        "torch.mtia",
        "torch.onnx",
        "torch.package",
        "torch.quantization",
        "torch.utils.benchmark",
        "torch.utils.bottleneck",
        "torch.utils.hipify",
        "torch.utils.model_dump",
        "torch.utils.tensorboard",
        "torch.xpu",
        "transformers.cli",
        "transformers.conversion_mapping",
        "transformers.distributed",
        "transformers.exporters",
        "transformers.integrations",
        "transformers.loss",
        "transformers.quantizers",
        "transformers.testing_utils",
    )
)
# 400 model families repeat one another
_ONLY_BELOW = {"transformers.models": "transformers.models.auto"}
_TEST_FOLDERS = frozenset(("test", "tests", "conftest"))
_HIDDEN = frozenset(("genericpath",))  # read when another module shows its names
_RENAMED = {"posixpath": "os.path", "_collections_abc": "collections.abc"}
# what __module__ says where it is not the public name
_C_HOMES = {"os": ("posix",), "builtins": ("io", "_io")}
_C_DOC_FILES = {
    "numpy": ("numpy._core._add_newdocs",),
    "scipy": ("scipy.special._add_newdocs",),
    "torch": ("torch._size_docs", "torch._storage_docs", "torch._tensor_docs", "torch._torch_docs"),
}
_CROSS_REFERENCE = re.compile(r":[\w:]+:`[^`]*`")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_SIGNATURE_LINE = re.compile(r"^[\w.]+\([^\n]*\)(?: *-> *\S+)? *(?:\n|$)")
# what C code keeps for inspect.signature
_SIGNATURE_BLOCK = re.compile(r"^[\w.]+\([^)]*\)\n--\n\n")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
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
    """What one source file says: definitions by qualified name, imports, star imports, ``__all__``
    if it is plain.
    """

    entries: dict[str, Entry]
    imports: dict[str, tuple[str, str]]
    stars: list[str]
    exported: frozenset[str] | None
    is_package: bool


class Library(NamedTuple):
    """The source files of one package by module name, what was read of them so far, and whom to
    tell of trouble.
    """

    files: dict[str, Path]
    sources: dict[str, Source]
    report: Callable[[str], None]


def read_pydocs(
    packages: Sequence[str] = DEFAULT, progress: _Progress = None, report: _Report = None
) -> Iterator[Document]:
    """Yield the documents of the installed ones among ``packages``, sorted by id; "python" is the
    standard library.

    The text is the docstring as ``inspect.cleandoc`` gives it; the title is the name in separate
    words, then the parameter names. Left out: names with a leading underscore, tests, ``SKIPPED``,
    all of ``transformers.models`` but ``auto``, and docstrings with fewer than ``MIN_WORDS`` words
    (signatures and cross references do not count). A class without a docstring has that of its
    ``__init__``. A docstring under several names is there once, under the name with the fewest
    dots, then the shortest. ``progress(1)`` is called for each file of ``find_modules``;
    ``report(line)`` for each file that cannot be read (default: a warning). A package that is not
    installed gives no documents.
    """
    entries: dict[str, Entry] = {}
    for package in packages:
        entries.update(_read_package(package, progress, report or _warn))
    chosen = _drop_repeated(
        {name: entry for name, entry in entries.items() if _is_long_enough(entry.text)}
    )
    for name in sorted(chosen):
        yield Document(name, _title(name, entries[name].parameters), entries[name].text)


def find_modules(packages: Sequence[str] = DEFAULT) -> dict[str, Path]:
    """The public modules with a source file, name → path, sorted; its length is the total of
    ``read_pydocs``.
    """
    files = {
        name: path
        for package in packages
        for name, path in _find_files(package).items()
        if _is_shown(name)
    }
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
    """The packaged test collection: hand-written questions, and judgements (2 = the answer, 1 =
    also helpful).
    """
    folder = importlib.resources.files("sparse_ir") / "resources" / "pydocs"
    with importlib.resources.as_file(folder / "queries.jsonl") as path:
        queries = list(read_queries(path))
    with importlib.resources.as_file(folder / "qrels.tsv") as path:
        return queries, read_qrels(path)


def restrict_qrels(qrels: Qrels, doc_ids: Iterable[str]) -> tuple[Qrels, list[str]]:
    """The judgements on documents in ``doc_ids``, and the sorted ids of the judged documents that
    are not there.

    A query that loses its last relevant document is left out too: no system could answer it.
    """
    present = set(doc_ids)
    kept = {
        query_id: {doc_id: grade for doc_id, grade in judged.items() if doc_id in present}
        for query_id, judged in qrels.items()
    }
    missing = {doc_id for judged in qrels.values() for doc_id in judged} - present
    return {query_id: judged for query_id, judged in kept.items() if any(judged.values())}, sorted(
        missing
    )


def _read_package(
    package: str, progress: _Progress, report: Callable[[str], None]
) -> dict[str, Entry]:
    library = Library(_find_files(package), {}, report)
    entries: dict[str, Entry] = {}
    for module in sorted(library.files):
        if _is_shown(module):
            entries.update(_public_entries(library, module))
            if progress:
                progress(1)
    for module in _C_DOC_FILES.get(package, ()):
        _fill(entries, _read_c_docs(library, package, module))
    if package == STANDARD_LIBRARY:
        _fill(entries, _inspect_modules())
    return {name: entry for name, entry in entries.items() if _is_public(name)}


def _fill(entries: dict[str, Entry], others: Mapping[str, Entry]) -> None:
    """Add ``others`` where ``entries`` have no text: the source file speaks first."""
    for name, entry in others.items():
        if name not in entries or not entries[name].text:
            entries[name] = entry


def _drop_repeated(entries: Mapping[str, Entry]) -> set[str]:
    best: dict[str, str] = {}
    for name in sorted(entries, key=lambda name: (name.count("."), len(name), name)):
        best.setdefault(" ".join(entries[name].text.split()), name)
    return set(best.values())


def _is_long_enough(text: str) -> bool:
    prose = _CROSS_REFERENCE.sub(" ", _SIGNATURE_LINE.sub("", text, count=1))
    return len(_WORD.findall(prose)) >= MIN_WORDS


def _title(name: str, parameters: str) -> str:
    """The parts of the name, each compound part followed by its words: what an analyzer could not
    split itself.
    """
    words: list[str] = []
    for part in name.split("."):
        pieces = _NAME_WORD.findall(part)
        words += [part, *pieces] if len(pieces) > 1 else [part]
    return " ".join(words) + (f" ({parameters})" if parameters else "")


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _find_files(package: str) -> dict[str, Path]:
    """Module name → source file, private modules included because public ones import from them."""
    if package == STANDARD_LIBRARY:
        folder = Path(sysconfig.get_path("stdlib"))
        return {
            module: path
            for name in sorted(sys.stdlib_module_names)
            if not _is_skipped(name)
            for module, path in _walk(folder, name)
        }
    spec = importlib.util.find_spec(package)  # of a top-level name: looks, does not import
    if spec is None or spec.origin is None:
        return {}
    origin = Path(spec.origin)
    return dict(
        _walk(origin.parent.parent if spec.submodule_search_locations else origin.parent, package)
    )


def _walk(folder: Path, module: str) -> Iterator[tuple[str, Path]]:
    base = folder / module.rpartition(".")[2]
    if base.with_suffix(".py").is_file():
        yield module, base.with_suffix(".py")
    if not (base / "__init__.py").is_file():
        return
    yield module, base / "__init__.py"
    for path in sorted(base.iterdir()):
        name = f"{module}.{path.stem}"
        if (
            (path.suffix == ".py" or path.is_dir())
            and path.stem != "__init__"
            and not _is_skipped(name)
        ):
            yield from _walk(base, name)


def _is_skipped(module: str) -> bool:
    for folder, only in _ONLY_BELOW.items():
        if module.startswith(folder + ".") and not (module + ".").startswith(only + "."):
            return True
    return module in SKIPPED or module.rpartition(".")[2] in _TEST_FOLDERS


def _is_shown(module: str) -> bool:
    return module in _RENAMED or (_is_public(module) and module not in _HIDDEN)


def _is_public(name: str) -> bool:
    return all(part and not part.startswith("_") for part in name.split("."))


def _source(library: Library, module: str) -> Source:
    """The source of ``module``, read once; an unreadable file is reported and counts as empty."""
    if module not in library.sources:
        path = library.files[module]
        try:
            tree = _parse(path)
        except (SyntaxError, ValueError, OSError, RecursionError) as error:
            library.report(f"{path}: not read, {type(error).__name__}: {error}")
            tree = ast.Module(body=[], type_ignores=[])
        library.sources[module] = _read_tree(tree, module, path.name == "__init__.py")
    return library.sources[module]


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        return ast.parse(path.read_bytes())  # bytes: Python's own rule for the encoding


def _read_tree(tree: ast.Module, module: str, is_package: bool) -> Source:
    entries = {"": Entry(_docstring(tree), "")}
    imports: dict[str, tuple[str, str]] = {}
    stars: list[str] = []
    statements = list(_flatten(tree.body))
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            _read_import(
                statement, module if is_package else module.rpartition(".")[0], imports, stars
            )
        else:
            _read_definition(statement, "", entries)
    return Source(entries, imports, stars, _read_exports(statements), is_package)


def _flatten(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block and of the ``if``, ``try``, ``with``, ``for`` blocks in it, but of
    no ``def``.
    """
    for statement in body:
        if isinstance(statement, (ast.If, ast.Try, ast.With, ast.For)):
            for field in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(statement, field, ()):
                    yield from _flatten(
                        inner.body if isinstance(inner, ast.ExceptHandler) else [inner]
                    )
        else:
            yield statement


def _read_import(
    statement: ast.ImportFrom, package: str, imports: dict[str, tuple[str, str]], stars: list[str]
) -> None:
    parts = (
        package.split(".")[: len(package.split(".")) - statement.level + 1]
        if statement.level
        else []
    )
    source = ".".join([*parts, statement.module] if statement.module else parts)
    for alias in statement.names:
        if alias.name == "*":
            stars.append(source)
        else:
            imports.setdefault(alias.asname or alias.name, (source, alias.name))


def _read_definition(statement: ast.stmt, prefix: str, entries: dict[str, Entry]) -> None:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
        _add(
            entries,
            prefix + statement.name,
            Entry(_docstring(statement), _parameters(statement, bool(prefix))),
        )
    elif isinstance(statement, ast.ClassDef):
        _read_class(statement, prefix + statement.name, entries)
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        _read_assignment(_dotted(statement.targets[0]), statement.value, prefix, entries)


def _read_class(statement: ast.ClassDef, name: str, entries: dict[str, Entry]) -> None:
    members = list(_flatten(statement.body))
    inits = [
        member
        for member in members
        if isinstance(member, ast.FunctionDef) and member.name == "__init__"
    ]
    parameters = _parameters(inits[0], True) if inits else ""
    _add(
        entries,
        name,
        Entry(_docstring(statement) or (_docstring(inits[0]) if inits else ""), parameters),
    )
    for member in members:
        _read_definition(member, name + ".", entries)


def _read_assignment(target: str, value: ast.expr, prefix: str, entries: dict[str, Entry]) -> None:
    """A name that gets its docstring by assignment: the four forms that are certain.

    ``conv1d = _add_docstr(torch.conv1d, "...")``, ``Adam.__doc__ = "..."``, ``norm =
    norm_gen(...)`` and ``old = new``.
    """
    call = value if isinstance(value, ast.Call) else None
    source = _dotted(call.func if call else value)
    if target.endswith("__doc__"):
        owner = (prefix + target).removesuffix("__doc__").removesuffix(".")
        if owner in entries and owner:
            _add(entries, owner, Entry(_clean(value), entries[owner].parameters))
    elif call and source.endswith("add_docstr") and len(call.args) > 1 and "." not in target:
        _add(entries, prefix + target, Entry(_clean(call.args[1]), ""))
    elif target and source in entries and "." not in target + prefix:
        _add(
            entries, target, Entry(entries[source].text, "" if call else entries[source].parameters)
        )


def _add(entries: dict[str, Entry], name: str, entry: Entry) -> None:
    """The first definition with a docstring counts: later ones are setters, overloads or other
    platforms.
    """
    if name not in entries or not entries[name].text:
        entries[name] = entry


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return _tidy(_PERCENT_FIELD.sub("", ast.get_docstring(node, clean=False) or ""))


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> str:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    if is_method and names[:1] in (["self"], ["cls"]):
        names = names[1:]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return ", ".join(name for name in names if not name.startswith("_"))


def _read_exports(statements: Iterable[ast.stmt]) -> frozenset[str] | None:
    """The names in ``__all__``; None when there is none, or when it is computed while the program
    runs.
    """
    names: set[str] = set()
    values = [value for statement in statements if (value := _export_value(statement)) is not None]
    for value in values:
        strings = _strings(value)
        if strings is None:
            return None
        names.update(strings)
    return frozenset(names) if values else None


def _export_value(statement: ast.stmt) -> ast.expr | None:
    """The expression a statement puts into, or adds to, ``__all__``."""
    targets: list[ast.expr] = []
    value: ast.expr | None = None
    if isinstance(statement, ast.Assign):
        targets, value = statement.targets, statement.value
    elif isinstance(statement, (ast.AugAssign, ast.AnnAssign)):
        targets, value = [statement.target], statement.value
    elif (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and statement.value.args
    ):
        call = statement.value
        if _dotted(call.func) in ("__all__.append", "__all__.extend"):
            return call.args[0]
    return value if any(_dotted(target) == "__all__" for target in targets) else None


def _strings(value: ast.expr) -> list[str] | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        left, right = _strings(value.left), _strings(value.right)
        return None if left is None or right is None else left + right
    if isinstance(value, (ast.List, ast.Tuple)):
        parts = [_strings(element) for element in value.elts]
        return None if None in parts else [name for part in parts if part for name in part]
    return None


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` for a name or a chain of attributes, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _public_entries(library: Library, module: str) -> dict[str, Entry]:
    """Every public name of a module, members of classes included, whichever
    file it is defined in.
    """
    shown = _RENAMED.get(module, module)
    entries = {shown: _source(library, module).entries[""]}
    for name in _public_names(library, module, ()):
        home = _resolve(library, module, name, ())
        if home is not None:
            source, original = _source(library, home[0]), home[1]
            for qualified, entry in source.entries.items():
                if qualified == original or qualified.startswith(original + "."):
                    entries[f"{shown}.{name}{qualified[len(original) :]}"] = entry
    return entries


def _public_names(library: Library, module: str, above: tuple[str, ...]) -> set[str]:
    """``__all__`` if it is plain; else what is defined there, and imports that are meant to be
    shown.
    """
    source = _source(library, module)
    if source.exported is not None:
        return {name for name in source.exported if _is_public(name)}
    names = {name for name in source.entries if name and "." not in name}
    for name, (origin, _) in source.imports.items():
        if (
            f"{origin}.".startswith(f"{module}.")
            if source.is_package
            else _is_private_sibling(module, origin)
        ):
            names.add(name)
    for star in source.stars:
        if star in library.files and star not in above and _is_shown_by_star(module, star):
            names |= _public_names(library, star, (*above, module))
    return {name for name in names if _is_public(name)}


def _is_private_sibling(module: str, origin: str) -> bool:
    folder, _, name = origin.rpartition(".")
    return bool(folder) and folder == module.rpartition(".")[0] and not _is_public(name)


def _is_shown_by_star(module: str, star: str) -> bool:
    """Is ``from star import *`` meant for the users of ``module``? From its own or from private
    modules it is.
    """
    is_same_root = module.lstrip("_").split(".")[0] == star.lstrip("_").split(".")[0]
    return f"{star}.".startswith(f"{module}.") or (is_same_root and not _is_public(star))


def _resolve(
    library: Library, module: str, name: str, above: tuple[tuple[str, str], ...]
) -> tuple[str, str] | None:
    """Module and name where a name is defined, following imports; None when that is outside of the
    library.
    """
    if module not in library.files or (module, name) in above:
        return None
    source, above = _source(library, module), (*above, (module, name))
    if name in source.entries:
        return module, name
    if name in source.imports:
        origin, original = source.imports[name]
        return _resolve(library, origin, original, above)
    found = (_resolve(library, star, name, above) for star in source.stars)
    return next((home for home in found if home is not None), None)


def _read_c_docs(library: Library, package: str, module: str) -> dict[str, Entry]:
    """What a file of ``add_newdoc`` or ``add_docstr`` calls says, under public names."""
    if module not in library.files:
        return {}
    shown = _source(library, package).imports
    entries = {}
    for statement in _flatten(_parse(library.files[module]).body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            for name, text in _added_docs(statement.value):
                if package != "numpy" or name.split(".")[1] in shown:
                    entries[name] = Entry(text, "")
    return entries


def _added_docs(call: ast.Call) -> Iterator[tuple[str, str]]:
    function, arguments = _dotted(call.func).rpartition(".")[2], call.args
    if function == "add_docstr" and len(arguments) == 2:
        yield _dotted(arguments[0]), _clean(arguments[1])
    elif function == "add_docstr_all" and len(arguments) == 2:
        yield f"torch.Tensor.{_literal(arguments[0])}", _clean(arguments[1])
    elif function == "_array_method_doc" and len(arguments) == 3:
        yield f"numpy.ndarray.{_literal(arguments[0])}", _clean(arguments[2])
    elif function == "add_newdoc" and len(arguments) == 2:
        yield f"scipy.special.{_literal(arguments[0])}", _clean(arguments[1])
    elif function == "add_newdoc" and len(arguments) == 3:
        name = f"numpy.{_literal(arguments[1])}"
        for member, text in _member_docs(arguments[2]):
            yield name + member, text


def _member_docs(value: ast.expr) -> Iterator[tuple[str, str]]:
    """numpy's third argument: a docstring, a pair (member, docstring), or a list of such pairs."""
    if isinstance(value, ast.Tuple) and len(value.elts) == 2:
        yield f".{_literal(value.elts[0])}", _clean(value.elts[1])
    elif isinstance(value, ast.List):
        for element in value.elts:
            yield from _member_docs(element)
    else:
        yield "", _clean(value)


def _clean(value: ast.expr) -> str:
    return _tidy(_literal(value))


def _tidy(docstring: str) -> str:
    """``inspect.cleandoc``, then without outer white space, machine-readable signature and what
    UTF-8 cannot hold.
    """
    text = _SIGNATURE_BLOCK.sub("", inspect.cleandoc(docstring).strip(), count=1)
    return _LONE_SURROGATE.sub("\ufffd", text)


def _literal(value: ast.expr) -> str:
    """The plain text of a string expression; fields that are filled in at run time are left out."""
    if isinstance(value, ast.Constant):
        return value.value if isinstance(value.value, str) else ""
    if isinstance(value, ast.BinOp):
        return _PERCENT_FIELD.sub("", _literal(value.left)) + _literal(value.right)
    if isinstance(value, ast.JoinedStr):
        return "".join(_literal(part) for part in value.values)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        text = _literal(value.func.value)
        is_format = value.func.attr == "format"
        return (
            _BRACE_FIELD.sub("", text).replace("{{", "{").replace("}}", "}") if is_format else text
        )
    return ""


def _inspect_modules() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name in INSPECTED:
        module = importlib.import_module(name)
        prefix = "" if name == "builtins" else name + "."
        entries[name] = Entry(_own_docstring(module), "")
        for member in _inspectable_names(module, name):
            _inspect(_value(module, member), prefix + member, entries)
    return entries


def _inspectable_names(module: Any, name: str) -> list[str]:
    """``__all__``, or else the public names whose objects say that they come from this module (or
    its C half).
    """
    if hasattr(module, "__all__"):
        return sorted(member for member in module.__all__ if hasattr(module, member))
    homes = {name, "_" + name, None, *_C_HOMES.get(name, ())}
    return sorted(
        member
        for member in dir(module)
        if getattr(_value(module, member), "__module__", "") in homes
    )


def _value(module: Any, member: str) -> Any:
    """The attribute; for ``sys.excepthook`` and its like the original, whatever somebody has put in
    its place.
    """
    value = getattr(module, member)
    return (
        getattr(module, f"__{member}__", value)
        if module is sys and member.endswith("hook")
        else value
    )


def _inspect(value: Any, name: str, entries: dict[str, Entry]) -> None:
    if inspect.isclass(value):
        initial = value.__init__ if inspect.isfunction(value.__init__) else None
        entries[name] = Entry(_own_docstring(value) or _own_docstring(initial), "")
        for member, inner in _members(value).items():
            if inspect.isroutine(inner) or inspect.isdatadescriptor(inner):
                entries[f"{name}.{member}"] = Entry(
                    _own_docstring(inner), _inspected_parameters(inner)
                )
    elif inspect.isroutine(value):
        entries[name] = Entry(_own_docstring(value), _inspected_parameters(value))


def _members(value: type) -> dict[str, Any]:
    """What the class defines, and what it inherits from classes that have no public name of their
    own.
    """
    package = sys.modules.get(value.__module__.split(".")[0])
    hidden: list[type] = []
    shown: list[type] = []
    for base in value.__mro__[1:]:
        is_shown = _is_public(base.__module__) or getattr(package, base.__name__, None) is base
        (shown if is_shown else hidden).append(base)
    members: dict[str, Any] = {}
    for base in reversed(hidden):
        # else they stand under that name already
        if not any(base in other.__mro__ for other in shown):
            members.update(vars(base))
    return members | dict(vars(value))


def _own_docstring(value: Any) -> str:
    text = getattr(value, "__doc__", None) if value is not None else None
    return _tidy(text) if isinstance(text, str) else ""


def _inspected_parameters(value: Any) -> str:
    try:
        names = inspect.signature(value).parameters
    # C code without a signature, or with one that fails
    except (TypeError, ValueError, AttributeError):
        return ""
    return ", ".join(
        name for name in names if name not in ("self", "cls") and not name.startswith("_")
    )
