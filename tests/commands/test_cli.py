"""The command line: commands and their options, one line per error, and the whole path of a user."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from shell import (
    ENVIRONMENT,
    error_of,
    read_tree,
    report_of,
    run_command,
    start_command,
    write_collection,
)

import sparse_ir
from sparse_ir import cli, commands
from sparse_ir.commands import evaluating, indexing, searching
from sparse_ir.data import records, runs
from sparse_ir.errors import DamagedError, UncheckedError
from sparse_ir.indexing import verification

COMMANDS = {name: getattr(sparse_ir, name) for name in cli.NAMES}
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


# --- commands and their options ---


def parameters_of(command: Callable[..., object]) -> dict[str, bool]:
    """The parameters of a command without its progress bar: name -> must be given."""
    parameters = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            (options,) = get_args(get_type_hints(command)[name])
            parameters.update(dict.fromkeys(get_type_hints(options), False))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            parameters[name] = False  # compare says itself that it needs two
        elif name != "progress":
            parameters[name] = parameter.default is parameter.empty
    return parameters


def arguments_of(name: str) -> dict[str, Any]:
    """What the command line takes: first name -> argument."""
    collection = cli.make_app((name,))[name].assemble_argument_collection()
    return {argument.name: argument for argument in collection}


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The help text of a command, without borders and line breaks."""
    assert cli.main([*words, "--help"]) == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_there_is_a_command_for_each_function_marked_as_one_and_none_besides():
    marked = set()
    for module in pkgutil.iter_modules(commands.__path__):
        path = Path(commands.__path__[0]) / f"{module.name}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            decorators = getattr(node, "decorator_list", [])
            if "command" in map(ast.unparse, decorators):
                marked.add(node.name)
    assert set(cli.make_app()) - {"--help", "-h", "--version"} == set(COMMANDS) == marked
    assert len(cli.NAMES) == len(COMMANDS) == 21


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_its_function(name):
    arguments = arguments_of(name)
    own = {"--json"}
    if "progress" in inspect.signature(COMMANDS[name]).parameters:
        own |= {"--quiet", "--verbose", "--log-format"}
    if name == "search":
        own.add("--trec")
    positional = {"search": {"QUESTION"}, "show": {"DOC_ID"}, "info": {"PATH"}}.get(name, set())
    for key, parameter in inspect.signature(COMMANDS[name]).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.add(key.upper())
    wanted = {
        as_option(key): required
        for key, required in parameters_of(COMMANDS[name]).items()
        if key.upper() not in positional
    }
    wanted |= dict.fromkeys(positional, False)  # the function says itself how many it needs
    found = {key: bool(argument.required) for key, argument in arguments.items()}
    assert found == wanted | dict.fromkeys(own, False)
    assert {key for key in arguments if not key.startswith("--")} == positional
    assert all(argument.parameter.help for argument in arguments.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_with_its_whole_text(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for options that take two names
    shown = help_of(capsys, name)
    for option in cli.find_options(COMMANDS[name]):
        assert option.name.upper() if option.positional else as_option(option.name) in shown
        assert option.text
        assert option.text.replace(" ", "") in shown.replace(" ", "")
    description = inspect.getdoc(COMMANDS[name]).partition("\n\nArgs:")[0]
    assert "".join(description.split()) in shown.replace(" ", "")


def test_a_text_over_several_lines_is_read_to_its_end():
    texts = {option.name: option.text for option in cli.find_options(COMMANDS["build"])}
    assert texts["scale"].endswith("the collection's weights are spread over the bits.")
    assert texts["collection_idf"].endswith('or 0.5 for the model "default".')


def test_options_are_grouped_and_defaults_are_shown(capsys):
    shown = help_of(capsys, "search")
    assert "Required * --index PATH" in shown
    assert "--threads INTEGER Number of threads that search. [default: 1]" in shown
    assert shown.index("Approximation") < shown.index("--mass") < shown.index("Output --quiet")
    shown = help_of(capsys, "build")
    for group, option in (("Impacts", "--scale"), ("Pruning", "--prune-terms")):
        assert f"{group} {option}" in shown
    assert "Encoding --revision" in shown


def test_defaults_are_those_of_the_function():
    shown = {name: argument.field_info.default for name, argument in arguments_of("search").items()}
    assert (shown["--hits"], shown["--threads"], shown["--tag"]) == (None, 1, "sparse_ir")
    assert shown["--remove-query"] is False


@pytest.mark.parametrize(
    ("given", "wanted"), [([], None), (["--fold"], True), (["--no-fold"], False)]
)
def test_an_option_with_three_answers(given, wanted):
    words = ["index", "--vectors", "v", "--output", "o", *given]
    _, bound, _ = cli.make_app(("index",)).parse_args(words)
    bound.apply_defaults()
    assert bound.arguments["fold"] is wanted
    assert bound.arguments["vectors"] == "v"


def test_the_last_of_repeated_options_counts_and_doc_collects_all():
    words = ["explain", "--index", "i", "--query", "q", "--hits", "1", "--hits", "2"]
    _, bound, _ = cli.make_app(("explain",)).parse_args([*words, "--doc", "a", "--doc", "b"])
    assert (bound.arguments["hits"], bound.arguments["doc"]) == (2, ("a", "b"))


@pytest.mark.parametrize(
    "words", [["--help"], ["search", "--help"], ["train", "-h"], ["--version"]]
)
def test_a_help_text_loads_no_numeric_library(words):
    code = (
        "import sys; from sparse_ir import cli; code = cli.main(sys.argv[1:]);"
        "print(code, *(name for name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    code, *loaded = done.stderr.split()
    assert code == "0"
    heavy = {"numpy", "scipy", "torch", "transformers", "tqdm", "filelock", "requests", "datasets"}
    assert not heavy & set(loaded)
    modules = {name for name in loaded if name.startswith("sparse_ir.commands.")}
    if words[0] == "search":
        assert modules == {"sparse_ir.commands.arguments", "sparse_ir.commands.searching"}


def test_without_a_command_the_help_is_shown():
    done = run_command()
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS)


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


@pytest.mark.slow
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


def test_every_report_is_json(root, collection, tiny_folder, tmp_path, capsys):
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
        "info": [index],
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
        "show",
    } == set(COMMANDS)
    for name, arguments in calls.items():
        texts = [str(argument) for argument in arguments]
        assert cli.main([name, *texts, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert isinstance(report, dict)
        assert cli.main([name, *texts]) == 0
        shown = capsys.readouterr().out
        assert all(key in shown for key in report)


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
    assert error("encode") == "Missing option --model."
    assert error("encode", "--model", "m", "--input", "i") == "Missing option --output."
    assert error("encoed").startswith('Unknown command "encoed". Did you mean "encode"?')
    assert error("verify", "--bogus") == "Missing option --index; unknown option --bogus."
    assert error("verify", "--index", "i", "--bogus") == "Unknown option: --bogus."
    assert error("verify", "index", "--index", "i") == "Unexpected argument: index"
    road = ["--model", "lexical", "--input", "i", "--output", "o"]
    assert (
        error("encode", *road, "--shard-size", "many")
        == 'Invalid value for --shard-size: unable to convert "many" into int.'
    )
    assert error("encode", *road, "--precision", "float8") == (
        'Invalid value "float8" for --precision. Choose from: "float32", "bfloat16", "int8", '
        '"float32-int8", "8bit", "4bit", "auto". Did you mean "float32"?'
    )
    assert (
        error("encode", *road, "--min-weight", "x")
        == 'Invalid value for --min-weight: unable to convert "x" into float.'
    )
    assert error("index", "--vectors") == "Option --vectors requires a value."


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
    assert error(*search, "--hits", 0) == "hits is 0; it must be at least 1"
    assert error(*search, "--hits", -3) == "hits is -3; it must be at least 1"
    assert error(*search, "--threads", 0) == "threads is 0; it must be at least 1"
    assert error(*search, "--tag", "a b").startswith("tag of the run is 'a b'; it must be one word")
    index = ["index", "--vectors", root / "index.vectors", "--output", tmp_path / "index"]
    assert error(*index, "--threads", 0) == "threads is 0; it must be at least 1"
    assert error(*index, "--bits", 99) == "bits is 99; it must be 2 to 16"
    assert error(*index, "--scale", -1) == "scale is -1.0; it must be a positive number"
    encode = ["encode", "--model", "lexical", "--input", collection, "--output", tmp_path / "v"]
    assert error(*encode, "--shard-size", 0) == "shard size is 0; it must be at least 1"
    assert error(*encode, "--top-k", 5).startswith("the lexical model does not take top_k")
    assert error("bm25", "--input", collection, "--output", tmp_path / "b", "--b", 2) == (
        "b is 2.0; it must be between 0 and 1"
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
    message = error("index", "--vectors", root / "bm25", *road)
    assert message == f"{root / 'bm25'} is an index; it must be a folder of vectors"
    assert (
        error("search", "--index", missing, "--queries", collection, *road)
        == f"{missing} does not exist; build an index first"
    )
    assert "is no index of this package" in error(
        "search", "--index", collection, "--queries", collection, *road
    )
    assert "holds vectors, not an index" in error("verify", "--index", root / "index.vectors")
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
        "search", "--index", root / "index", "--queries", collection, "--output", tmp_path
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
    expected = "measure 'nDCG@0' has the cutoff 0; it must be 1 or more"
    assert error(*evaluate, "nDCG@0") == expected
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
    assert "nothing does not exist; it must be a folder that holds a model" in error_of(
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


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UncheckedError("no permission to read x"), 3, "no permission to read x"),
        (DamagedError("x is\n damaged"), 2, "x is damaged"),
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied"),
    ],
)
def test_what_could_not_be_checked_has_a_code_of_its_own(
    raised, code, line, monkeypatch, root, capfd
):
    def fail(folder: Path) -> None:
        raise raised

    monkeypatch.setattr(verification, "verify_index", fail)
    monkeypatch.setattr(sys, "argv", ["sparse-ir", "verify", "--index", str(root / "index")])
    with pytest.raises(SystemExit) as caught:
        cli.run()
    printed = capfd.readouterr()
    assert (caught.value.code, printed.out) == (code, "")
    assert printed.err == f"sparse-ir: error: {line}\n"
