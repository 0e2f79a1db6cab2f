"""Every reader of a file, with the name and the content of a sound file."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

from sparse_ir.data import qrels, readers, runs
from sparse_ir.models import decoder_settings, static_queries, tokenization
from sparse_ir.storage import files
from sparse_ir.training.configuration import config_parser

CORPUS = b'{"_id": "a", "title": "t", "text": "one"}\n{"_id": "b", "text": "two"}\n'
TRAINING = b'[model]\nstart = "x"\n[[data]]\npath = "y"\nweight = 0.5\n[run]\nsteps = 5\n'
RULES = (
    b'{"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", '
    b'"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}}'
)


def read_all(path: Path) -> object:
    return list(readers.read_documents(path))


# name of the file -> a sound content, and its reader
READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "corpus.jsonl": (CORPUS, read_all),
    "corpus.jsonl.gz": (gzip.compress(CORPUS, mtime=0), read_all),
    "collection.tsv": (b"a\tone\nb\ttwo\n", read_all),
    "corpus.csv": (b"id,title,text\na,t,one\nb,,two\n", read_all),
    "corpus.json": (b'[{"_id": "a", "text": "one"}]', read_all),
    "queries.jsonl": (CORPUS, lambda path: list(readers.read_queries(path))),
    "test.tsv": (b"query-id\tcorpus-id\tscore\nq\ta\t1\n", qrels.read_qrels),
    "test.qrels": (b"q 0 a 1\nq 0 b 0\n", qrels.read_qrels),
    "run.trec": (b"q Q0 a 1 2.5 tag\nq Q0 b 2 1.5 tag\n", runs.read_run),
    "run.json": (b'{"q": {"a": 2.5, "b": 1.5}}', runs.read_run),
    "train.toml": (TRAINING, config_parser.read_config),
    "sparse_ir.json": (b'{"format": 1, "mode": "causal"}', decoder_settings.read_decoder_file),
    "tokenizer.json": (RULES, tokenization.read_tokenizer),
    "idf.json": (b'{"a": 1.5}', lambda path: static_queries._read_weight_table(path)),
    "any.json": (b'{"a": [1, 2.5, "x"]}', files.read_json),
}
