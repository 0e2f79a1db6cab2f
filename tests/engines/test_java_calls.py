"""The rule about calls into Java: nothing is computed while pyjnius holds the receiver of a call.

See the docstrings in ``sparse_ir/engines/lucene``. A method of Java is known by its name: it has a
capital letter inside, which no name of ours has.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparse_ir

FOLDER = Path(sparse_ir.__file__).parent / "engines" / "lucene"
JAVA_NAME = re.compile(r"[a-z][a-z0-9]*[A-Z]\w*")
# they give a class, which is kept: its static methods have no receiver that could be freed
GIVE_A_CLASS = {"java_class", "narrow_class", "autoclass"}
# they give a string of Python
GIVE_TEXT = {"toString", "utf8ToString"}


def calls_in(node: ast.AST) -> list[ast.Call]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Call)]


def name_of(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def is_java(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and bool(JAVA_NAME.fullmatch(call.func.attr))


def find_broken_calls(source: str) -> Iterator[str]:
    """Calls of Java methods with a call among the arguments, or a receiver without a variable."""
    for call in calls_in(ast.parse(source)):
        if not isinstance(call.func, ast.Attribute):
            continue
        kept = GIVE_A_CLASS if is_java(call) else GIVE_A_CLASS | GIVE_TEXT
        receivers = [part for part in calls_in(call.func.value) if name_of(part) not in kept]
        if any(is_java(part) for part in receivers) or (is_java(call) and receivers):
            yield f"line {call.lineno}: the receiver needs a variable: {ast.unparse(call)}"
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if is_java(call) and any(calls_in(argument) for argument in arguments):
            yield f"line {call.lineno}: compute the arguments before: {ast.unparse(call)}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_receivers_and_arguments_of_java_methods_are_computed_before_the_call(path):
    assert list(find_broken_calls(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "reader.storedFields().document(1)",
        "searcher.explainHit(make_query(), 1)",
        "open_reader(path).maxDoc()",
        "writer.addDocument(fields=[f() for f in makers])",
    ],
)
def test_a_broken_call_is_found(line):
    assert len(list(find_broken_calls(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "self._reader.maxDoc()",
        "searcher.explainHit(query, 2 * number)",
        "java.java_class('a.B').newDefaultInstance()",
        "records.get(make_key())",
        "log.toString().splitlines()",
    ],
)
def test_a_good_call_is_left_alone(line):
    assert list(find_broken_calls(line)) == []
