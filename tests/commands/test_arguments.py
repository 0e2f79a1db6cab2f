"""Calls from Python: strings or paths, and one error that names an argument of a wrong type."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from shell import write_collection

import sparse_ir
from sparse_ir import cli
from sparse_ir.commands.arguments import StrPath, command
from sparse_ir.errors import ConfigError, DamagedError, DataError, SparseIRError


@command
def example(place: StrPath, *names: str, count: int = 1, share: float | None = None) -> str:
    """An example of a command."""
    return f"{place} {names} {count} {share}"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, r"place must be a string or a path, not \[\]"),
        ((None,), {}, "place must be a string or a path, not None"),
        (("a", "b", 3), {}, "names must be a string, not 3"),
        (("a",), {"count": "5"}, "count must be a whole number, not '5'"),
        (("a",), {"count": 5.0}, "count must be a whole number, not 5.0"),
        (("a",), {"count": True}, "count must be a whole number, not True"),
        (("a",), {"share": "half"}, "share must be a number or None, not 'half'"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        example(*arguments, **options)


def test_right_types_pass():
    assert example("a", "b", count=np.int64(3), share=1) == "a ('b',) 3 1"
    assert example(Path("a"), share=np.float32(0.5)) == "a () 1 0.5"
    assert example.__name__ == "example"


def test_a_missing_argument_is_a_type_error_as_anywhere_in_python():
    with pytest.raises(TypeError, match="missing a required argument: 'place'"):
        example()


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind is not inspect.Parameter.VAR_POSITIONAL


@pytest.mark.parametrize("name", cli.NAMES)
def test_every_command_names_an_argument_of_a_wrong_type(name):
    """Each argument in turn gets an object that no command can use."""
    function = getattr(sparse_ir, name)
    parameters = inspect.signature(function).parameters
    options = list(cli.find_options(function))
    required = {}
    for option in options:
        if option.group == "Required" and not option.positional:
            required[option.name] = "x"
        elif option.positional and _is_named(parameters[option.name]):
            required[option.name] = ("x",)
    for option in options:
        if option.positional and not _is_named(parameters[option.name]):
            with pytest.raises(ConfigError, match=f"{option.name} must be a"):
                function(object(), **required)
        else:
            with pytest.raises(ConfigError, match=f"{option.name} must be .*, not <object"):
                function(**(required | {option.name: object()}))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("encode", {"model": "lexical", "input": ["a"]}, r"input must be .* item 1 is 'a'"),
        ("encode", {"model": "lexical", "input": 5}, r"input must be .* not 5"),
        ("build", {"model": "lexical", "input": "c", "shards": 1}, "build has no option 'shards'"),
        ("mine", {"input": "c", "miner": "bm52"}, "miner must be one of 'bm25', 'index', 'dense'"),
        ("search", {"index": "i", "queries": "q", "mas": 1.0}, "search has no option 'mas'"),
        ("beir", {"model": ["a", "b"]}, r"model must be a string or a path, not \['a', 'b'\]"),
    ],
)
def test_wrong_arguments_of_commands(name, arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        getattr(sparse_ir, name)(output=tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_query_that_is_not_a_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match="query must be a string, not 5"):
        sparse_ir.explain(tmp_path, 5)


@pytest.mark.parametrize("folder", [5, None, ["a"]])
def test_an_index_folder_that_is_no_path_is_named(folder):
    with pytest.raises(ConfigError, match="folder must be a string or a path, not"):
        sparse_ir.Index(folder)


def test_a_missing_file_is_a_named_error(tmp_path):
    missing = str(tmp_path / "missing")
    output = tmp_path / "out"
    calls = [
        ("encode", ("lexical", missing, output)),
        ("index", (missing, output)),
        ("search", (missing, missing, output)),
        ("evaluate", (missing, missing)),
        ("verify", (missing,)),
        ("export", (missing, output)),
        ("explain", (missing, "query")),
        ("tune", (missing, missing, "p95 <= 1 ms")),
        ("train", (missing, output)),
        ("teach", (missing, output)),
        ("mine", (missing, output)),
        ("leaderboard", (missing, output)),
    ]
    for name, arguments in calls:
        with pytest.raises(SparseIRError, match="missing") as caught:
            getattr(sparse_ir, name)(*arguments)
        assert isinstance(caught.value, ConfigError | DataError | DamagedError), name


def test_places_are_strings_or_paths(tmp_path):
    corpus = write_collection(tmp_path / "corpus", 20)
    for kind in (str, Path):
        root = tmp_path / kind.__name__
        index, run = kind(root / "index"), kind(root / "run")
        assert sparse_ir.build("lexical", kind(corpus), index)["documents"] == 20
        assert sparse_ir.bm25(kind(corpus), kind(root / "bm25"))["documents"] == 20
        assert sparse_ir.search(index, kind(corpus), run)["queries"] == 8
        assert sparse_ir.evaluate(run, kind(corpus))["queries"] == 8
        assert sparse_ir.verify(index)["ok"]
        assert (
            sparse_ir.export(kind(root / "index.vectors"), kind(root / "json"))["documents"] == 20
        )
        explained = sparse_ir.explain(index, "a text", input=kind(corpus), page=kind(root / "page"))
        assert explained["page"] == str(root / "page")
