"""The documentation collection: what is extracted, under which names, and that the packaged answers
exist in it.
"""

import importlib
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from sparse_ir.data import pydocs
from sparse_ir.data.records import Document

FAKE_MODULES = ["fakepkg", "fakepkg.motion", "fakepkg.docs", "fakepkg.latin", "fakepkg.surrogate"]


@pytest.fixture(scope="module")
def collection() -> list[Document]:
    return list(pydocs.read_pydocs())


@pytest.fixture(scope="module")
def fakepkg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with the odd things that real packages have."""
    folder = tmp_path_factory.mktemp("site") / "fakepkg"
    folder.mkdir(parents=True)
    sources = {
        "__init__.py": '"""A package made only for this test."""\nfrom ._impl import Engine, start, SPEED\n'
        "from os.path import join\n",
        "_impl.py": '''
import enum
SPEED = 3
class Engine:
    """Turn fuel into motion, one cycle at a time."""
    def __init__(self, cylinders, *, fuel="diesel", **rest): "Build it from cylinders and fuel and more."
    class Valve:
        """Let the mixture of fuel and air in."""
        def open(self, angle): """Open the valve by an angle in degrees."""
    @property
    def temperature(self):
        """Temperature of the cooling water in degrees."""
    @temperature.setter
    def temperature(self, value): "Setters are not the documentation of a property."
    def _secret(self): """A private method that nobody should find."""
    def stop(self): """Stop it."""
class Turbine:
    def __init__(self, blades):
        """Make a turbine from a number of blades."""
def start(engine, /, *args, key=None):
    """Start an engine with a key.

        Indented like this.

    And then the end.
    """
def helper(): """A helper that the package does not show."""
''',
        "motion.py": '''
__all__ = ["go", "went", "Adder"] + ["halt"]
from ._impl import Turbine as Adder
def go(): """Go to the place that is given in metres."""
went = go
def halt(): """See :func:`fakepkg.motion.stop_all_of_the_things`."""
def hidden(): """Public by its name but not in the list."""
def again(): """Go to the place   that is given
in metres."""
''',
        "docs.py": 'from math import cos\nclass Late: pass\nLate.__doc__ = "A docstring that comes late in the file."\n',
        "broken.py": "def broken(:\n",
        "latin.py": '# -*- coding: latin-1 -*-\ndef cafe():\n    """Brew a caf\xe9 for all of us."""\n',
        "bytes.py": "",
        "surrogate.py": 'def half():\n    """Half of a pair is \\ud800 here alone."""\n',
    }
    for name, source in sources.items():
        (folder / name).write_bytes(source.encode("latin-1" if name == "latin.py" else "utf-8"))
    (folder / "bytes.py").write_bytes(b'"""Not UTF-8 and no word about it: \xff\xfe."""\n')
    return folder


@pytest.fixture
def fake(fakepkg: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Document]:
    monkeypatch.syspath_prepend(str(fakepkg.parent))
    importlib.invalidate_caches()
    return {document.doc_id: document for document in pydocs.read_modules(FAKE_MODULES)}


# --- the packaged questions ---


def test_questions_are_valid() -> None:
    queries, qrels = pydocs.read_questions()
    assert len(queries) == 133
    ids = [query.query_id for query in queries]
    assert ids == sorted(set(ids))
    assert len({query.text for query in queries}) == len(queries)
    assert set(qrels) == {query.query_id for query in queries}
    for judged in qrels.values():
        assert 1 <= len(judged) <= 10
        assert set(judged.values()) <= {1, 2}
    without_answer = [query_id for query_id, judged in qrels.items() if 2 not in judged.values()]
    assert without_answer == ["q144", "q145"]  # their best answers are in other packages


def test_questions_do_not_name_their_answers() -> None:
    queries, qrels = pydocs.read_questions()
    for query in queries:
        for doc_id in qrels[query.query_id]:
            assert "." not in doc_id or doc_id.lower() not in query.text.lower().split(), query


def test_judged_documents_exist(collection: list[Document]) -> None:
    _, qrels = pydocs.read_questions()
    _, missing = pydocs.restrict_qrels(qrels, [document.doc_id for document in collection])
    assert missing == []


def test_restrict_qrels() -> None:
    qrels = {"q1": {"a": 2, "b": 1}, "q2": {"c": 2}, "q3": {"a": 2}}
    kept, missing = pydocs.restrict_qrels(qrels, ["a", "x"])
    assert kept == {"q1": {"a": 2}, "q3": {"a": 2}}
    assert missing == ["b", "c"]
    assert qrels == {"q1": {"a": 2, "b": 1}, "q2": {"c": 2}, "q3": {"a": 2}}


# --- the real collection ---


def test_collection_is_sound(collection: list[Document]) -> None:
    ids = [document.doc_id for document in collection]
    assert len(ids) > 4000
    assert ids == sorted(set(ids))
    assert len({" ".join(document.text.split()) for document in collection}) == len(ids)
    for doc_id, title, text, _ in collection:
        assert not any(part.startswith("_") or not part for part in doc_id.split("."))
        assert doc_id.split() == [doc_id]
        assert title.split()[0] in doc_id
        assert text == text.strip()
        text.encode()


def test_public_names_of_the_standard_library(collection: list[Document]) -> None:
    documents = {document.doc_id: document for document in collection}
    expected = {
        "threading.Thread.join",  # a plain method
        "time.sleep",
        "math.sqrt",
        "str.join",
        "open",  # C code
        "concurrent.futures.wait",  # defined in a private module
        "concurrent.futures.ThreadPoolExecutor",  # imported lazily
        "os.path.join",
        "os.path.exists",  # posixpath, genericpath
        "random.choice",  # a bound method of a hidden instance
        "asyncio.gather",  # __all__ is computed
        "socket.socket.connect",  # inherited from a private C class
        # moved between versions
        "pathlib.Path.exists",
        "pathlib.PurePath.suffix",
        "collections.abc.MutableMapping",
        "asyncio.TaskGroup",  # not in the package's own __all__
        "type",  # whose __doc__ is an attribute of its instances
    }
    assert expected - set(documents) == set()
    assert documents["threading.Thread.join"].title == "threading Thread join (timeout)"
    assert documents["threading.Thread.join"].text.startswith(
        "Wait until the thread terminates.\n\nThis blocks"
    )
    assert documents["type"].text.startswith("type(object) -> the object's type")
    assert "this" not in documents and "test" not in documents


@pytest.mark.slow
def test_second_process_imports_nothing_and_reads_the_same(collection: list[Document]) -> None:
    code = (
        "import sys, zlib; from sparse_ir.data import pydocs; before = set(sys.modules); "
        "documents = list(pydocs.read_pydocs()); "
        "print(sorted(set(sys.modules) - before), "
        "len(documents), zlib.crc32(repr(documents).encode()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    expected = f"[] {len(collection)} {zlib.crc32(repr(collection).encode())}\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_reading_can_be_stopped() -> None:
    documents = pydocs.read_pydocs()
    assert next(documents).doc_id == "ArithmeticError"
    documents.close()


def test_a_reader_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(failing))
    with pytest.raises(RuntimeError, match=r"-m sparse_ir.data.pydocs ended with exit code 3"):
        list(pydocs.read_pydocs())


def test_progress_counts_the_modules() -> None:
    counts: list[int] = []
    list(pydocs.read_pydocs(progress=counts.append))
    modules = pydocs.find_modules()
    assert counts == [1] * len(modules)
    assert {"json", "json.decoder", "math", "builtins"} <= set(modules)
    assert modules == sorted(set(modules))


# --- a small package, by hand ---


def test_fake_package(fake: dict[str, Document]) -> None:
    assert sorted(fake) == [
        "fakepkg",
        "fakepkg.Engine",
        "fakepkg.Engine.Valve",
        "fakepkg.Engine.Valve.open",
        "fakepkg.Engine.temperature",
        "fakepkg.docs.Late",
        "fakepkg.latin.cafe",
        "fakepkg.motion.Adder",
        "fakepkg.motion.go",
        "fakepkg.start",
        "fakepkg.surrogate.half",
    ]


def test_titles_and_texts(fake: dict[str, Document]) -> None:
    assert fake["fakepkg.Engine"].title == "fakepkg Engine (cylinders, fuel, **rest)"
    assert fake["fakepkg.start"] == Document(
        "fakepkg.start",
        "fakepkg start (engine, *args, key)",
        "Start an engine with a key.\n\n    Indented like this.\n\nAnd then the end.",
    )
    assert fake["fakepkg.Engine.temperature"].text == "Temperature of the cooling water in degrees."
    assert fake["fakepkg.motion.Adder"].text == "Make a turbine from a number of blades."
    assert fake["fakepkg.docs.Late"].text == "A docstring that comes late in the file."
    assert fake["fakepkg.latin.cafe"].text == "Brew a café for all of us."
    assert fake["fakepkg.surrogate.half"].text == "Half of a pair is \ufffd here alone."


def test_compound_names_are_also_split() -> None:
    assert pydocs._title("concurrent.futures.ThreadPoolExecutor.submit_all2", "") == (
        "concurrent futures ThreadPoolExecutor Thread Pool Executor submit_all2 submit all 2"
    )
    assert pydocs._title("http.HTTPStatus", "value") == "http HTTPStatus HTTP Status (value)"


@pytest.mark.parametrize(
    ("text", "long_enough"),
    [
        ("Stop it.", False),
        ("Whether this path exists.", True),
        ("In-place version of :meth:`~Tensor.add`", False),
        ("See :func:`torch.abs`", False),
        ("abs(x) -> y\nOf three words", False),
        ("", False),
        ("a.b(c, d)\n\nReturn c or d.", True),
    ],
)
def test_shortest_docstring(text: str, long_enough: bool) -> None:
    assert pydocs._is_long_enough(text) is long_enough


def test_modules_that_cannot_be_imported_are_reported(
    fakepkg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(fakepkg.parent))
    lines: list[str] = []
    names = ["fakepkg.broken", "fakepkg.bytes", "fakepkg.none", "fakepkg.latin"]
    found = list(pydocs.read_modules(names, report=lines.append))
    assert [document.doc_id for document in found] == ["fakepkg.latin.cafe"]
    assert [line.split(": not read, ")[0] for line in lines] == names[:3]
    reasons = [line.split(": not read, ")[1].split(":")[0] for line in lines]
    assert reasons == ["SyntaxError", "SyntaxError", "ModuleNotFoundError"]
    assert list(pydocs.read_modules(names)) == found
