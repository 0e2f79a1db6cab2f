"""The distribution: name, version, what the wheel holds, and the command that it installs."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sparse_ir
from sparse_ir import __main__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sparse_ir"
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "sparse_ir")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no build folder stays in the checkout."""
    root = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--wheel-dir",
            root / "dist",
            root,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = (root / "dist").iterdir()
    return path


def read_metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_the_version_is_the_newest_of_the_changelog():
    headings = re.findall(
        r"^## \[?(\d+\.\d+\.\d+)\]?(?: - \d{4}-\d\d-\d\d)?$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert headings[0] == sparse_ir.__version__
    assert headings == sorted(
        headings, key=lambda text: [int(part) for part in text.split(".")], reverse=True
    )


def test_the_wheel_has_name_version_and_licence(wheel):
    assert wheel.name == f"sparse_ir_toolkit-{sparse_ir.__version__}-py3-none-any.whl"
    metadata = read_metadata(wheel, "METADATA")
    assert "\nName: sparse-ir-toolkit\n" in metadata
    assert f"\nVersion: {sparse_ir.__version__}\n" in metadata
    assert "\nLicense-File: LICENSE\n" in metadata
    assert "\nLicense-File: NOTICE\n" in metadata


def test_no_licence_is_claimed_for_the_weights():
    """13 % of the training pairs are for research only, and 32 % have no licence."""
    card = (PACKAGE / "resources" / "model" / "README.md").read_text(encoding="utf-8")
    front_matter = card.split("---")[1]
    assert "\nlicense: unknown\n" in front_matter
    assert "apache" not in front_matter
    for name in ("NOTICE", "README.md", "docs/faq.md", "sparse_ir/resources/model/README.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert "13 %" in text and "32 %" in text, name
        assert "non-commercial research" in text and "papercopilot/paperlists" in text, name
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for source in re.findall(r"^path = \"(.+)\"$", card, re.MULTILINE):
        assert source in notice
    shares = [int(share) for share in re.findall(r"^ *(\d+) %", notice, re.MULTILINE)]
    assert sum(shares) == 100


def test_the_wheel_holds_every_module_and_resource_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == wanted
    assert {
        "sparse_ir/py.typed",
        "sparse_ir/resources/pydocs/queries.jsonl",
        "sparse_ir/resources/pydocs/qrels.tsv",
    } <= packed


def test_the_wheel_installs_the_command(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(read_metadata(wheel, "entry_points.txt"))
    assert dict(parser["console_scripts"]) == {"sparse-ir": "sparse_ir.__main__:run"}


def test_the_command_is_there_and_is_that_function():
    assert Path(sys.executable).with_name("sparse-ir").is_file()
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="sparse-ir")
    assert entry.load() is __main__.run
    assert importlib.metadata.distribution("sparse-ir-toolkit").version == sparse_ir.__version__
