"""Fixtures shared by all test modules: tiny random models, made once per run, and the texts to
encode.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, no progress among the lines that tests look for."""
    monkeypatch.setenv("SPARSE_IR_LOG_SECONDS", "3600")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model family -> folder of a random masked LM in the plain layout. Read only: copy before
    changing a file.
    """
    import tiny_models
    import torch

    # for models this small, threads that wait for each other cost more than they give
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    return {family: tiny_models.build(family, root / family) for family in tiny_models.FAMILIES}


@pytest.fixture(scope="session")
def tiny_folder(tiny_folders: dict[str, Path]) -> Path:
    """The random BERT."""
    return tiny_folders["bert"]


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """Short, long, empty and odd texts."""
    import tiny_models

    return list(tiny_models.TEXTS)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path) -> Any:
    """The WordPiece tokenizer of the random BERT, as the tokenizers library reads it."""
    from sparse_ir.models import tokenization

    return tokenization.read_tokenizer(tiny_folder / "tokenizer.json")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 questions made of three words of their documents, with teacher scores for one negative
    each. Read only.
    """
    import small_runs

    return small_runs.write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
