"""The command line: the verbs under their names, one line for each error, and the whole road as a
user takes it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import click
import pytest
from click.testing import CliRunner
from shell import (
    ENVIRONMENT,
    error_of,
    read_tree,
    report_of,
    run_command,
    start_command,
    write_collection,
)

from sparse_ir import cli, commands
from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.data import records, runs
from sparse_ir.indexing import verification

VERBS = {verb.__name__: verb for verb in cli.VERBS}
Run = Callable[..., str]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("cli") / "collection", 60)


@pytest.fixture(scope="module")
def root(collection: Path) -> Path:
    """Beside the collection: the lexical vectors and indexes, a BM25 index, a run."""
    root = collection.parent
    indexing.build("lexical", str(collection), root / "index", shard_size=16)
    indexing.bm25(str(collection), root / "bm25")
    searching.search(root / "index", str(collection), root / "run")
    return root


@pytest.fixture
def error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The entry point in this process: the one line that it prints about an error of its user's."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["sparse-ir", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.run()
        printed = capfd.readouterr()
        assert (caught.value.code, printed.out) == (2, "")
        assert printed.err.startswith("sparse-ir: error: ")
        assert printed.err.count("\n") == 1
        return printed.err.removeprefix("sparse-ir: error: ").rstrip("\n")

    return run


# --- commands and verbs ---


def options_of(verb: Callable[..., object]) -> dict[str, bool]:
    """What a verb takes, without its progress bar: name -> must be given."""
    found = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_args(get_type_hints(verb)[name])
            found.update(dict.fromkeys(get_type_hints(options), False))
        elif name != "progress":
            # also for the one that may be given several times
            found[name] = parameter.default is parameter.empty
    return found


def test_there_is_a_command_for_each_function_of_the_commands_and_none_besides():
    found = set()
    for module in pkgutil.iter_modules(commands.__path__, "sparse_ir.commands."):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if (
                inspect.isfunction(value)
                and value.__module__ == module.name
                and not name.startswith("_")
            ):
                found.add(name)
    assert set(cli.main.commands) == set(VERBS) == found


@pytest.mark.parametrize("name", VERBS)
def test_a_command_has_the_options_of_its_verb(name):
    parameters = {parameter.name: parameter for parameter in cli.main.commands[name].params}
    own = {"json_output"} | (
        {"quiet"} if "progress" in inspect.signature(VERBS[name]).parameters else set()
    )
    assert {
        key: parameter.required for key, parameter in parameters.items() if key not in own
    } == options_of(VERBS[name])
    assert own <= set(parameters)
    several = {
        key
        for key, parameter in inspect.signature(VERBS[name]).parameters.items()
        if parameter.kind is parameter.VAR_POSITIONAL
    }
    assert {
        key for key, parameter in parameters.items() if isinstance(parameter, click.Argument)
    } == several
    assert all(parameter.help for key, parameter in parameters.items() if key not in several)


@pytest.mark.parametrize("name", VERBS)
def test_help_names_every_option_and_says_what_the_verb_does(name):
    shown = CliRunner().invoke(
        cli.main, [name, "--help"], terminal_width=200, max_content_width=200
    )
    assert shown.exit_code == 0
    for option in options_of(VERBS[name]):
        assert (
            f"--{option.replace('_', '-')}" in shown.output or f"{option.upper()}: " in shown.output
        )
    first = inspect.getdoc(VERBS[name]).split("\n")[0]
    assert " ".join(first.split()) in " ".join(shown.output.split())


def test_defaults_are_those_of_the_verb():
    shown = {parameter.name: parameter.default for parameter in cli.main.commands["search"].params}
    assert (shown["hits"], shown["threads"], shown["tag"], shown["remove_query"]) == (
        1000,
        1,
        "sparse_ir",
        False,
    )
    assert "[default: 1000]" in CliRunner().invoke(cli.main, ["search", "--help"]).output


@pytest.mark.parametrize(
    ("given", "wanted"), [([], None), (["--fold"], True), (["--no-fold"], False)]
)
def test_an_option_with_three_answers(given, wanted):
    command = cli.main.commands["index"]
    context = command.make_context("index", ["--vectors", "v", "--output", "o", *given])
    assert context.params["fold"] is wanted
    assert context.params["vectors"] == Path("v")


def test_without_a_command_the_help_is_shown():
    done = run_command()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in VERBS)


def test_the_module_is_the_command(collection, root):
    for arguments in (
        ["--version"],
        ["evaluate", "--run", root / "run", "--qrels", collection, "--json"],
        ["verify", "--index", root / "nothing"],
    ):
        command = run_command(*arguments)
        module = subprocess.run(
            [sys.executable, "-m", "sparse_ir", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
        assert (module.returncode, module.stdout, module.stderr) == (
            command.returncode,
            command.stdout,
            command.stderr,
        )


# --- the whole road ---


def test_the_road_with_a_neural_model_equals_build(collection, tiny_folder, tmp_path):
    vectors, index, run = tmp_path / "vectors", tmp_path / "index", tmp_path / "run"
    encoded = report_of(
        "encode",
        "--model",
        tiny_folder,
        "--input",
        collection,
        "--output",
        vectors,
        "--shard-size",
        16,
        "--top-k",
        40,
    )
    assert (encoded["documents"], encoded["empty_documents"]) == (60, 6)
    indexed = report_of(
        "index", "--vectors", vectors, "--output", index, "--scale", 100, "--threads", 2
    )
    assert indexed["rule"]["scale"] == 100
    assert (
        report_of("search", "--index", index, "--queries", collection, "--output", run)["queries"]
        == 8
    )
    measured = report_of(
        "evaluate", "--run", run, "--qrels", collection, "--measures", "nDCG@10 AP"
    )
    assert list(measured)[:2] == ["nDCG@10", "AP"]

    indexing.build(
        str(tiny_folder), str(collection), tmp_path / "built", shard_size=16, top_k=40, scale=100
    )
    assert read_tree(tmp_path / "built.vectors") == read_tree(vectors)
    searching.search(tmp_path / "built", str(collection), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == run.read_bytes()
    assert (
        evaluating.evaluate(tmp_path / "again", str(collection), measures="nDCG@10")["nDCG@10"]
        == measured["nDCG@10"]
    )


def test_every_report_is_json(root, collection, tiny_folder, tmp_path):
    vectors, index, run = tmp_path / "v", tmp_path / "i", tmp_path / "run"
    calls = {
        "encode": ["--model", "lexical", "--input", collection, "--output", vectors],
        "index": ["--vectors", vectors, "--output", index, "--bits", 6],
        "build": [
            "--model",
            "lexical",
            "--input",
            collection,
            "--output",
            tmp_path / "b",
            "--quiet",
        ],
        "bm25": ["--input", collection, "--output", tmp_path / "bm25"],
        "search": ["--index", index, "--queries", collection, "--output", run],
        "evaluate": ["--run", run, "--qrels", collection, "--per-query"],
        "verify": ["--index", index],
        "export": ["--vectors", vectors, "--output", tmp_path / "json"],
        "idf": ["--model", tiny_folder, "--input", collection, "--output", tmp_path / "idf.json"],
    }
    # the demo, the doctor and the road of training have tests of their own
    assert {
        *calls,
        "demo",
        "mine",
        "teach",
        "train",
        "doctor",
        "beir",
        "leaderboard",
        "compare",
        "explain",
        "tune",
    } == set(VERBS)
    for name, arguments in calls.items():
        texts = [str(argument) for argument in arguments]
        shown = CliRunner().invoke(cli.main, [name, *texts, "--json"], catch_exceptions=False)
        report = json.loads(shown.stdout)
        assert shown.exit_code == 0
        assert isinstance(report, dict)
        plain = CliRunner().invoke(cli.main, [name, *texts], catch_exceptions=False)
        assert plain.exit_code == 0
        assert all(key in plain.stdout for key in report)


def test_a_report_goes_to_stdout_and_nothing_else_is_printed(root, collection):
    done = run_command("evaluate", "--run", root / "run", "--qrels", collection)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split()[0] == "nDCG@10"


def test_a_reader_that_leaves_early_is_no_error(root):
    command = [sys.executable, "-m", "sparse_ir", "--help"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(timeout=60)


@pytest.mark.slow
def test_a_build_killed_at_any_time_goes_on_where_it_stopped(root, collection, tmp_path):
    index, folder = tmp_path / "index", tmp_path / "index.vectors"
    arguments = [
        "build",
        "--model",
        "lexical",
        "--input",
        collection,
        "--output",
        index,
        "--shard-size",
        2,
    ]
    search = ["search", "--index", index, "--queries", collection, "--output", tmp_path / "run"]

    def kill_when(reached: Callable[[], object]) -> None:
        process = start_command(*arguments)
        deadline = time.monotonic() + 60
        while process.poll() is None and not reached() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    kill_when(lambda: (folder / "shards" / "000004.json").exists())  # in the middle of encoding
    assert error_of(*search) == f"{index} does not exist; build an index first"
    kill_when(lambda: list(tmp_path.glob(".index.tmp-*/lucene")))  # in the middle of indexing
    assert error_of(*search) == f"{index} does not exist; build an index first"
    shards = {path: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}
    assert len(shards) == 2 * 30
    assert report_of(*arguments)["documents"] == 60
    assert {path: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()} == shards
    assert [path for path in tmp_path.iterdir() if ".tmp-" in path.name] == []
    report_of(*search)
    assert (tmp_path / "run").read_bytes() == (root / "run").read_bytes()


# --- errors ---


def test_options_that_are_wrong_are_one_line(error):
    assert error("encode") == "Missing option '--model'."
    assert error("encode", "--model", "m", "--input", "i") == "Missing option '--output'."
    assert error("encoed").startswith("No such command 'encoed'.")
    assert error("verify", "--bogus").startswith("No such option '--bogus'.")
    assert error("verify", "index", "--index", "i") == "Got unexpected extra argument (index)"
    road = ["--model", "lexical", "--input", "i", "--output", "o"]
    assert (
        error("encode", *road, "--shard-size", "many")
        == "Invalid value for '--shard-size': 'many' is not a valid integer."
    )
    assert error("encode", *road, "--precision", "float8") == (
        "Invalid value for '--precision': 'float8' is not one of 'float32', 'bfloat16', 'int8', "
        "'float32-int8', "
        "'8bit', '4bit', 'auto'."
    )
    assert (
        error("encode", *road, "--min-weight", "x")
        == "Invalid value for '--min-weight': 'x' is not a valid float."
    )
    assert error("index", "--vectors") == "Option '--vectors' requires an argument."


def test_numbers_out_of_range_are_one_line(error, root, collection, tmp_path):
    search = [
        "search",
        "--index",
        root / "index",
        "--queries",
        collection,
        "--output",
        tmp_path / "run",
    ]
    assert error(*search, "--hits", 0) == "0 hits are not allowed; ask for at least 1"
    assert error(*search, "--hits", -3) == "-3 hits are not allowed; ask for at least 1"
    assert error(*search, "--threads", 0) == "threads is 0; it must be at least 1"
    assert error(*search, "--tag", "a b").startswith("tag of the run is 'a b'; it must be one word")
    index = ["index", "--vectors", root / "index.vectors", "--output", tmp_path / "index"]
    assert error(*index, "--threads", 0) == "threads is 0; it must be at least 1"
    assert error(*index, "--bits", 99) == "bits is 99; it must be 2 to 16"
    assert error(*index, "--scale", -1) == "scale -1.0 is not allowed; it must be a positive number"
    encode = ["encode", "--model", "lexical", "--input", collection, "--output", tmp_path / "v"]
    assert error(*encode, "--shard-size", 0) == "shard size 0 is not allowed; it must be at least 1"
    assert error(*encode, "--top-k", 5).startswith("the lexical model does not take top_k")
    assert error("bm25", "--input", collection, "--output", tmp_path / "b", "--b", 2).startswith(
        "BM25 with k1=0.9"
    )
    assert list(tmp_path.glob("[!.]*")) == []


def test_places_that_are_wrong_are_one_line(error, root, collection, tmp_path):
    missing = tmp_path / "missing"
    road = ["--output", tmp_path / "out"]
    assert error("encode", "--model", "lexical", "--input", missing, *road).startswith(
        f"{missing}: no such corpus"
    )
    assert error("index", "--vectors", collection, *road).startswith(
        f'{collection / "corpus.jsonl"}:1: "id"'
    )
    assert error("index", "--vectors", root / "bm25", *road).endswith("choose another folder")
    assert (
        error("search", "--index", missing, "--queries", collection, *road)
        == f"{missing} does not exist; build an index first"
    )
    assert "is no index of this package" in error(
        "search", "--index", collection, "--queries", collection, *road
    )
    assert "is not an index manifest" in error("verify", "--index", root / "index.vectors")
    assert error("evaluate", "--run", missing, "--qrels", collection).startswith(
        f"{missing}: no such run"
    )
    assert error("evaluate", "--run", root / "run", "--qrels", missing).startswith(
        "no qrels of split 'test'"
    )
    assert "splits there: test" in error(
        "evaluate", "--run", root / "run", "--qrels", collection, "--split", "dev"
    )
    assert "choose another output or delete it" in error(
        "index", "--vectors", root / "index.vectors", "--output", collection
    )
    assert "is a folder; it must be the name of a file" in error(
        "search", "--index", root / "index", "--queries", collection, "--output", collection
    )


def test_files_that_are_broken_are_one_line_with_the_place(error, root, collection, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "a"}\n{"_id": "2", "text"\n')
    for command in (["encode", "--model", "lexical"], ["bm25"], ["build", "--model", "lexical"]):
        message = error(*command, "--input", tmp_path, "--output", tmp_path / command[0])
        assert message.startswith(f"{tmp_path / 'corpus.jsonl'}:2: not JSON")
    (tmp_path / "queries.tsv").write_text("q1\ttext\nq2 text\n")
    message = error(
        "search",
        "--index",
        root / "index",
        "--queries",
        tmp_path / "queries.tsv",
        "--output",
        tmp_path / "run",
    )
    assert message.startswith(f"{tmp_path / 'queries.tsv'}:2: 1 columns")
    (tmp_path / "run").write_text("q1 Q0 d1 1 high x\n")
    assert (
        error("evaluate", "--run", tmp_path / "run", "--qrels", collection)
        == f"{tmp_path / 'run'}:1: score is 'high'; it must be a finite number"
    )


def test_measures_that_are_unknown_are_one_line(error, root, collection):
    evaluate = ["evaluate", "--run", root / "run", "--qrels", collection, "--measures"]
    assert error(*evaluate, "nDGC@10").startswith("measure 'nDGC@10' is unknown (")
    assert error(*evaluate, "nDCG@0") == "measure 'nDCG@0' has the cut-off 0, allowed: 1 or more"
    assert error(*evaluate, " ").startswith("measures: none given")


def test_damaged_and_wrong_indexes_are_one_line(error, root, collection, tmp_path):
    for name, content in read_tree(root / "index").items():
        (tmp_path / "index" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "index" / name).write_bytes(content)
    search = [
        "search",
        "--index",
        tmp_path / "index",
        "--queries",
        collection,
        "--output",
        tmp_path / "run",
    ]
    (victim,) = (tmp_path / "index" / "lucene").glob("*.doc")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert f"{victim} is damaged" in error("verify", "--index", tmp_path / "index")
    victim.write_bytes(content[:-1])
    assert f"{victim} has {len(content) - 1} bytes instead of {len(content)}" in error(*search)
    victim.unlink()
    assert error(*search) == f"{victim} is missing; build the index again"
    assert (
        error(
            "search",
            "--index",
            root / "bm25",
            "--queries",
            collection,
            "--output",
            tmp_path / "run",
            "--query-model",
            "lexical",
        )
        == f"{root / 'bm25'} is a BM25 index and takes no query encoder"
    )


def test_json_vectors_without_a_model_are_one_line(error, root, collection, tmp_path):
    indexing.export(root / "index.vectors", tmp_path / "json")
    indexing.index(tmp_path / "json", tmp_path / "index")
    message = error(
        "search",
        "--index",
        tmp_path / "index",
        "--queries",
        collection,
        "--output",
        tmp_path / "run",
    )
    assert message.endswith("was built from vectors without a query side: name the query model")


def test_models_that_are_not_there_are_one_line(collection, tmp_path):
    road = ["--input", collection, "--output", tmp_path / "out"]
    message = error_of("encode", "--model", "no-such/model", *road)
    assert message.startswith(
        "no-such/model is not in the local cache and the hub cannot be reached"
    )
    assert "is no folder, and no hub name" in error_of(
        "encode", "--model", tmp_path / "nothing", *road
    )
    assert not (tmp_path / "out").exists()


def test_data_sets_of_the_hub_that_are_not_there_are_one_line(tmp_path):
    message = error_of("bm25", "--input", "BeIR/no-such-set", "--output", tmp_path / "out")
    assert message.startswith("hf:BeIR/no-such-set: part 'corpus' cannot be loaded from the hub (")


def test_one_line_in_a_process_of_its_own_after_a_model_was_loaded(
    collection, tiny_folder, tmp_path
):
    (tmp_path / "photo.jpg").write_bytes(b"")
    message = error_of(
        "encode", "--model", tiny_folder, "--input", collection, "--output", tmp_path
    )
    assert (
        message
        == f"{tmp_path} is not empty and holds no vectors; choose another output or delete it"
    )


def test_a_defect_is_not_hidden(monkeypatch, root):
    def broken(folder: Path) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(verification, "verify_index", broken)
    monkeypatch.setattr(sys, "argv", ["sparse-ir", "verify", "--index", str(root / "index")])
    with pytest.raises(ZeroDivisionError, match="a defect"):
        cli.run()


def test_an_interrupt_ends_with_the_code_of_the_signal(collection, tmp_path):
    process = start_command(
        "build",
        "--model",
        "lexical",
        "--input",
        collection,
        "--output",
        tmp_path / "index",
        "--shard-size",
        1,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("index.vectors/shards/*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors.strip()) == (130, b"", b"")
    assert not (tmp_path / "index").exists()


def test_scores_in_the_run_are_whole_and_ordered(root):
    for hits in runs.read_run(root / "run").values():
        assert hits == records.rank_hits(hits)
        assert all(score.is_integer() for _, score in hits)
