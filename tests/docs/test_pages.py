"""README.md and docs/: every block runs, every table and reference page is what the code makes,
every link leads somewhere, and the site builds without a warning.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import tiny_decoders
import tiny_models
import torch
from pages import DOCS, ROOT, Reader

PAGES = pages.find_pages()
README = pages.read_page("README.md")
LARGEST_README = 8 * 1024
SLOW_PAGES = ("guides/bm25-and-json-vectors.md",)  # a script that starts Java eight times


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A folder with what the pages call the reader's own: two models and training pairs."""
    torch.set_num_threads(1)  # for models this small, threads cost more than they give
    folder = tmp_path_factory.mktemp("reader")
    tiny_models.build("bert", folder / "my_model")
    tiny_decoders.build("llama", folder / "my_decoder")
    write_pairs(folder / "my_pairs")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return Reader(folder)


def write_pairs(folder: Path) -> None:
    """Each sentence twice with different ends; two of its words are the question."""
    (folder / "qrels").mkdir(parents=True)
    corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore\n"]
    for sentence in tiny_models.SENTENCES:
        for end in ("and then", "but why"):
            number = len(corpus)
            words = f"{sentence} {end}".split()
            corpus.append({"_id": f"d{number}", "title": "", "text": " ".join(words)})
            queries.append({"_id": f"q{number}", "text": f"{words[1]} {words[-1]}"})
            qrels.append(f"q{number}\td{number}\t1\n")
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "train.tsv").write_text("".join(qrels))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_PAGES else [])
        for name in PAGES
        if pages.find_blocks(name)
    ],
)
def test_every_block_of_a_page_runs(reader: Reader, name: str) -> None:
    reader.try_page(name)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_says_what_it_is(name: str) -> None:
    for block in pages.find_blocks(name):
        assert block.language in pages.LANGUAGES, block.place
        assert block.directive in ("", *pages.DIRECTIVES), block.place
        needs_value = block.directive in ("not run", "tested by", "file", "excerpt")
        assert bool(block.value) == needs_value, block.place
        if block.directive == "tested by":
            assert Path(ROOT / block.value).is_file(), block.place
        if block.language == "toml":
            assert block.directive == "file", f"{block.place}: no command reads this configuration"
        if block.language == "json" and not block.directive:
            assert all(json.loads(line) for line in block.text.splitlines()), block.place


def test_what_needs_the_network_is_run_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    blocks = [
        block for name in PAGES for block in pages.find_blocks(name) if block.directive == "ci"
    ]
    assert blocks
    for block in blocks:
        for command in re.split(r" && |\n", block.text.strip()):
            assert command.replace(".venv", ".ci-venv") in ci, f"{block.place}: {command}"


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= LARGEST_README


def test_every_command_is_shown_in_a_guide() -> None:
    import sparse_ir

    commands = [name for name in sparse_ir.__all__ if name.islower() and name != "__version__"]
    assert len(commands) >= 19
    texts = "".join(pages.read_page(name) for name in PAGES if "reference" not in name)
    for command in commands:
        assert f"sparse-ir {command}" in texts


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).is_file(), link


@pytest.mark.parametrize("script", ["make_results", "make_reference"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{script}.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_settings_of_a_decoder_are_all_explained() -> None:
    import dataclasses

    from sparse_ir.models.decoder_settings import DecoderSettings

    _, _, section = pages.read_page("formats.md").partition("\n## sparse_ir.json\n")
    section = section.partition("\n## ")[0]
    shown = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE)
    expected = [
        (field.name, json.dumps(field.default)) for field in dataclasses.fields(DecoderSettings)
    ]
    assert shown == expected


def test_the_glossary_is_in_order_and_defines_each_word_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\*", pages.read_page("glossary.md"), re.MULTILINE)
    assert len(words) > 40
    assert words == sorted(words, key=str.lower)
    assert len(words) == len({word.lower() for word in words})


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    built = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("index.html")}
    for path in DOCS.rglob("*.md"):
        page = path.relative_to(DOCS).with_suffix("").as_posix()
        assert page.removesuffix("/index") in built or page == "index", page
