"""Measure how fast each form of input is read, and whether memory stays flat.

    python scripts/bench_input.py --corpus my_corpus --documents 50000 --rounds 3 \\
        --json scripts/results/input.json

The documents of a corpus, repeated under new ids and with two fields of metadata, are written
in every format. A fresh process reads each one as ``encode`` does: one pass that infers the types
of the metadata (Parquet states them), and one that checks every id and gives out the documents.
Speed is in documents per second of CPU time, in the best round. Memory is the peak of the process, for all documents and for a
quarter of them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from sparse_ir.data import pydocs
from sparse_ir.data.corpus import Corpus
from sparse_ir.data.readers import read_documents
from sparse_ir.data.records import Document
from sparse_ir.environment import describe_machine

ROWS_PER_GROUP = 1000


def main() -> None:
    arguments = parse_arguments()
    if arguments.read:
        print(json.dumps(read_input(arguments.read)))
        return
    result = compare(arguments)
    print(as_markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="default: the documentation of Python's library")
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--read", help=argparse.SUPPRESS)  # the part of a fresh process
    return parser.parse_args()


def read_input(source: str) -> dict[str, float]:
    """CPU seconds of the two passes over one source, and the peak memory of this process."""
    started = time.process_time()
    documents = sum(1 for _ in Corpus(source).read())
    seconds = time.process_time() - started
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    return {"documents": documents, "seconds": seconds, "peak_mb": peak / 1024}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of all formats."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for title, (file, write) in FORMATS.items():
            for count in (arguments.documents // 4, arguments.documents):
                place = scratch / str(count) / file
                place.parent.mkdir(exist_ok=True)
                write(place, make_records(arguments.corpus, count))
                runs = [read_in_process(place) for _ in range(arguments.rounds)]
                assert all(run["documents"] == count for run in runs)
                peak = min(run["peak_mb"] for run in runs)
                if count == arguments.documents:
                    seconds = min(run["seconds"] for run in runs)
                    figures[title] |= {"per_second": count / seconds, "peak_mb": peak}
                else:
                    figures[title] = {"peak_mb_of_a_quarter": peak}
    return {
        "documents": arguments.documents,
        "mean_characters": mean_length(arguments.corpus, arguments.documents),
        "rounds": arguments.rounds,
        "machine": describe_machine(),
        "formats": figures,
    }


def read_in_process(place: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--read", str(place)]
    return json.loads(subprocess.check_output(command, text=True))


def make_records(corpus: str | None, count: int) -> Iterator[dict[str, Any]]:
    """The documents of a corpus, again and again, under new ids and with metadata."""
    documents = itertools.cycle(find_documents(corpus, count))
    for number, document in zip(range(count), documents, strict=False):
        yield {
            "id": f"{number}-{document.doc_id}",
            "title": document.title,
            "text": document.text,
            "price": number / 4,
            "added": f"2024-01-{number % 28 + 1:02}",
        }


@functools.cache
def find_documents(corpus: str | None, count: int) -> list[Document]:
    """The documents that are repeated; of Python's documentation no more than are needed."""
    if corpus is None:
        return list(itertools.islice(pydocs.read_pydocs(), count))
    return list(read_documents(corpus))


def mean_length(corpus: str | None, count: int) -> float:
    total = sum(
        len(record["title"]) + len(record["text"]) for record in make_records(corpus, count)
    )
    return total / count


def write_json_lines(place: Path, records: Iterator[dict[str, Any]]) -> None:
    place.write_bytes(join_lines(records))


def write_gzip(place: Path, records: Iterator[dict[str, Any]]) -> None:
    place.write_bytes(gzip.compress(join_lines(records), compresslevel=6))


def write_zstd(place: Path, records: Iterator[dict[str, Any]]) -> None:
    place.write_bytes(zstandard.ZstdCompressor().compress(join_lines(records)))


def join_lines(records: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def write_json_array(place: Path, records: Iterator[dict[str, Any]]) -> None:
    place.write_text(json.dumps(list(records)))


def write_csv(place: Path, records: Iterator[dict[str, Any]]) -> None:
    with place.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "title", "text", "price", "added"])
        writer.writeheader()
        writer.writerows(records)


def write_parquet(place: Path, records: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(records))
    pq.write_table(table, place, row_group_size=ROWS_PER_GROUP)


def write_notes(place: Path, records: Iterator[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        front = f"---\nprice: {record['price']}\nadded: {record['added']}\n---\n"
        write_file(place, f"{number}.md", f"{front}# {record['title']}\n\n{record['text']}\n")


def write_pages(place: Path, records: Iterator[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        page = f"<title>{record['title']}</title><p>{record['text']}</p>\n"
        write_file(place, f"{number}.html", page)


def write_texts(place: Path, records: Iterator[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        write_file(place, f"{number}.txt", record["text"])


def write_file(place: Path, name: str, text: str) -> None:
    """A file in one of many folders, by the end of its number."""
    folder = place / Path(name).stem[-2:]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


Writer = Callable[[Path, Iterator[dict[str, Any]]], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "JSON Lines": ("c.jsonl", write_json_lines),
    "JSON Lines, gzip": ("c.jsonl.gz", write_gzip),
    "JSON Lines, zstd": ("c.jsonl.zst", write_zstd),
    "JSON array": ("c.json", write_json_array),
    "CSV": ("c.csv", write_csv),
    "Parquet": ("c.parquet", write_parquet),
    "folder of .txt": ("texts", write_texts),
    "folder of .html": ("pages", write_pages),
    "folder of .md": ("notes", write_notes),
}


def as_markdown(result: dict[str, Any]) -> str:
    documents = f"{result['documents']:,} documents of {result['mean_characters']:,.0f} characters"
    lines = [
        f"{documents} in the mean, best of {result['rounds']} rounds.",
        "",
        "| input | documents per CPU second | peak memory, MB | with a quarter of the documents, MB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for title, figures in result["formats"].items():
        lines.append(
            f"| {title} | {figures['per_second']:,.0f} | {figures['peak_mb']:.0f} | "
            f"{figures['peak_mb_of_a_quarter']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
