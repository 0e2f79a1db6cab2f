"""Fetch the data sets and the model that figures and recipes name, and check them.

    python scripts/prepare_data.py cranfield squad minilm
    python scripts/prepare_data.py all --output data

Data sets are written in BEIR's layout: ``OUTPUT/test/NAME`` for measuring, ``OUTPUT/train/NAME``
for training. The model is written to ``models/all-MiniLM-L6-v2``. A file from the network is
compared with its published checksum, and a finished data set with the SHA-256 of the documents,
queries and judgements that our figures were measured on. A folder that exists is checked and left
as it is.

``--from FOLDER`` reads the source files from a folder instead of the network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparse_ir.data import datasets, readers
from sparse_ir.data.download import Download, download_file
from sparse_ir.errors import DataError, SparseIRError
from sparse_ir.storage import files

GLASGOW = "http://ir.dcs.gla.ac.uk/resources/test_collections"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
COSQA = (
    "https://raw.githubusercontent.com/Jun-jie-Huang/CoCLR/"
    "778daa8aa9ac1dbee8839775edfce191d356861e/data/search"
)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# fetched by the package itself, into this folder below the output
BEIR = {"scifact": "test", "arguana": "test", "msmarco": ""}


class Collection(NamedTuple):
    """A collection in BEIR's terms."""

    documents: list[dict[str, str]]  # _id, title, text
    queries: list[dict[str, str]]  # _id, text
    qrels: dict[str, list[tuple[str, str, int]]]  # split -> query_id, doc_id, grade


class Source(NamedTuple):
    """Where a data set comes from, how it is read, and what comes out."""

    downloads: tuple[Download, ...]
    read: Callable[[Path], Collection]  # from the folder with the source files
    place: str  # below the output folder
    split: str  # that the checksum of the judgements belongs to
    documents_sha256: str
    queries_sha256: str
    qrels_sha256: str
    sha256: str | None = None  # of the only file, where that is what is published


def main(arguments: list[str] | None = None) -> None:
    """Prepare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*BEIR, *SOURCES, "minilm"]
    parser.add_argument("names", nargs="+", choices=[*known, "all"], metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("data"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--from", type=Path, dest="folder", help="folder with the source files")
    options = parser.parse_args(arguments)
    names = known if "all" in options.names else options.names
    for name in names:
        try:
            print(f"{name}: {prepare(name, options.output, options.models, options.folder)}")
        except SparseIRError as error:
            sys.exit(f"{name}: {error}")


def prepare(name: str, output: Path, models: Path, folder: Path | None) -> Path:
    """Prepare one data set, or the model; returns its folder."""
    if name in BEIR:
        return datasets.fetch(name, output / BEIR[name], progress=True).corpus.parent
    if name == "minilm":
        return fetch_model(models / MINILM.rpartition("/")[2])
    source = SOURCES[name]
    target = output / source.place
    if not target.exists():
        with tempfile.TemporaryDirectory() as scratch:
            if folder is None:
                folder = Path(scratch)
                for download in source.downloads:
                    fetch_file(download, folder, source.sha256)
            write(source.read(folder), target)
    check(target, source)
    return target


def fetch_file(download: Download, folder: Path, sha256: str | None) -> None:
    """Download a file into a folder, and unpack it if it is an archive."""
    path = folder / download.url.rpartition("/")[2]
    observed = download_file(download, path, progress=True)
    if sha256 is not None and observed.sha256 != sha256:
        raise DataError(f"{download.url}: sha256 is {observed.sha256}, but must be {sha256}")
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")


def fetch_model(target: Path) -> Path:
    """Download MiniLM at a fixed commit, and check its weights."""
    import huggingface_hub

    patterns = ["*.json", "*.txt", "*.safetensors"]
    huggingface_hub.snapshot_download(
        MINILM, revision=MINILM_REVISION, allow_patterns=patterns, local_dir=target
    )
    sha256 = files.sha256_of_file(target / "model.safetensors")
    if sha256 != MINILM_SHA256:
        raise DataError(f"{target}: sha256 of the weights is {sha256}, but must be {MINILM_SHA256}")
    return target


def write(collection: Collection, target: Path) -> None:
    """Write a collection in BEIR's layout, whole or not at all."""
    with files.building(target) as folder:
        for name, records in (("corpus", collection.documents), ("queries", collection.queries)):
            with files.atomic_writer(folder / f"{name}.jsonl") as stream:
                for record in records:
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        for split, judgements in collection.qrels.items():
            with files.atomic_writer(folder / "qrels" / f"{split}.tsv") as stream:
                stream.write("query-id\tcorpus-id\tscore\n")
                for query_id, doc_id, grade in judgements:
                    stream.write(f"{query_id}\t{doc_id}\t{grade}\n")


def check(folder: Path, source: Source) -> None:
    """Raise ``DataError`` if a data set is not the one that our figures were measured on."""
    expected = (source.documents_sha256, source.queries_sha256, source.qrels_sha256)
    for what, sha256, wanted in zip(
        ("documents", "queries", "judgements"),
        hash_content(folder, source.split),
        expected,
        strict=True,
    ):
        if sha256 != wanted:
            raise DataError(
                f"{folder}: sha256 of the {what} is {sha256}, but must be {wanted}; figures from "
                "this folder cannot be compared with ours"
            )


def hash_content(folder: Path, split: str) -> tuple[str, str, str]:
    """SHA-256 of documents, queries and judgements, whatever their order and white space."""
    documents = []
    for document in readers.read_documents(folder):
        documents.append((document.doc_id, _join(document.contents)))
    queries = [(query.query_id, _join(query.text)) for query in readers.read_queries(folder)]
    judgements = []
    for query_id, judged in readers.read_qrels(folder, split).items():
        for doc_id, grade in judged.items():
            judgements.append((query_id, doc_id, grade))
    return _hash(documents), _hash(queries), _hash(judgements)


def _hash(records: list[Any]) -> str:
    text = json.dumps(sorted(records), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _join(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())


def read_smart(path: Path) -> Iterator[dict[str, str]]:
    """Records of a file in SMART's format: ``.I NUMBER``, then fields such as ``.T`` and ``.W``."""
    records = re.split(r"^\.I ", path.read_text(encoding="latin-1"), flags=re.MULTILINE)
    for record in records[1:]:
        parts = re.split(r"^\.([A-Z])[ \t]*$", record, flags=re.MULTILINE)
        fields = {"I": parts[0].strip()}
        for name, content in zip(parts[1::2], parts[2::2], strict=True):
            fields.setdefault(name, _join(content))
        yield fields


def read_cranfield(folder: Path) -> Collection:
    """Cranfield: abstracts begin with their title, and grade 1 is the best of 1 to 4.

    Queries are numbered in the order of their file, as in the judgements. Grade -1 marks the paper
    that a query was taken from; it counts as the best grade.
    """
    documents = []
    for record in read_smart(folder / "cran.all.1400"):
        title = record.get("T", "")
        text = record.get("W", "").removeprefix(title).strip()
        documents.append({"_id": record["I"], "title": title, "text": text})
    queries = []
    for number, record in enumerate(read_smart(folder / "cran.qry"), 1):
        queries.append({"_id": str(number), "text": record["W"]})
    judgements = []
    for line in (folder / "cranqrel").read_text(encoding="latin-1").splitlines():
        query_id, doc_id, grade = line.split()
        judgements.append((query_id, doc_id, 4 if grade == "-1" else 5 - int(grade)))
    return Collection(documents, queries, {"test": judgements})


def read_cisi(folder: Path) -> Collection:
    """CISI: 112 queries, of which 76 have judgements."""
    documents = []
    for record in read_smart(folder / "CISI.ALL"):
        title = record.get("T", "")
        documents.append({"_id": record["I"], "title": title, "text": record.get("W", "")})
    queries = []
    for record in read_smart(folder / "CISI.QRY"):
        queries.append({"_id": record["I"], "text": record["W"]})
    judgements = []
    for line in (folder / "CISI.REL").read_text(encoding="latin-1").splitlines():
        if line.strip():
            query_id, doc_id, *_ = line.split()
            judgements.append((query_id, doc_id, 1))
    return Collection(documents, queries, {"test": judgements})


def read_vaswani(folder: Path) -> Collection:
    """Vaswani (NPL): records of a number and a text, or numbers, each closed by a slash."""
    documents = []
    for number, text in _read_slashed(folder / "doc-text"):
        documents.append({"_id": number, "title": "", "text": text})
    queries = [
        {"_id": number, "text": text} for number, text in _read_slashed(folder / "query-text")
    ]
    judgements = []
    for query_id, doc_ids in _read_slashed(folder / "rlv-ass"):
        for doc_id in doc_ids.split():
            judgements.append((query_id, doc_id, 1))
    return Collection(documents, queries, {"test": judgements})


def _read_slashed(path: Path) -> Iterator[tuple[str, str]]:
    records = re.split(r"^ *\/ *$", path.read_text(encoding="latin-1"), flags=re.MULTILINE)
    for record in records:
        number, _, text = record.strip().partition("\n")
        if number:
            yield number.strip(), _join(text)


def read_squad_dev(folder: Path) -> Collection:
    """SQuAD's dev side: questions keep their ids, paragraphs are numbered in their article."""
    return _read_squad(folder / "dev-v1.1.json", "test", lambda doc_id, number, given: given)


def read_squad(folder: Path) -> Collection:
    """SQuAD's training side: questions are numbered in their paragraph."""
    return _read_squad(
        folder / "train-v1.1.json", "train", lambda doc_id, number, given: f"{doc_id}_q{number}"
    )


def _read_squad(path: Path, split: str, name_query: Callable[[str, int, str], str]) -> Collection:
    documents = []
    queries = []
    judgements = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for position, paragraph in enumerate(article["paragraphs"]):
            doc_id = f"{article['title']}_{position}"
            title = article["title"].replace("_", " ")
            documents.append({"_id": doc_id, "title": title, "text": paragraph["context"]})
            for number, question in enumerate(paragraph["qas"]):
                query_id = name_query(doc_id, number, question["id"])
                queries.append({"_id": query_id, "text": _join(question["question"])})
                judgements.append((query_id, doc_id, 1))
    return Collection(documents, queries, {split: judgements})


def read_cosqa(folder: Path) -> Collection:
    """CoSQA: web queries, and the one Python function that answers each."""
    codes = json.loads((folder / "code_idx_map.txt").read_text(encoding="utf-8"))
    documents = []
    for code, number in codes.items():
        documents.append({"_id": str(number), "title": "", "text": code})
    queries = []
    qrels = {}
    for split in ("dev", "test"):
        path = folder / f"cosqa-retrieval-{split}-500.json"
        qrels[split] = []
        for record in json.loads(path.read_text(encoding="utf-8")):
            queries.append({"_id": record["idx"], "text": record["doc"]})
            qrels[split].append((record["idx"], str(record["retrieval_idx"]), 1))
    return Collection(documents, queries, qrels)


SOURCES: dict[str, Source] = {
    "cranfield": Source(
        (Download(f"{GLASGOW}/cran/cran.tar.gz", 0.6, "1730f7be572d95a5a4b56c59a7b900a5"),),
        read_cranfield,
        "test/cranfield",
        "test",
        "6a96d7ce79f84a1f3743128b55db34324f67f41aa90b3958fa477080e84e5338",
        "28f16577e7a7d1a5665010511e5547fe1819cadb52a81cfdfcb38a24f779ae89",
        "55d7ae264b0a65e7682a0b69d002cd4b93d2bada7dbfcc9368a959c5ae642ead",
    ),
    "cisi": Source(
        (Download(f"{GLASGOW}/cisi/cisi.tar.gz", 3, None),),
        read_cisi,
        "test/cisi",
        "test",
        "69724e3055b9c609509a921d3d74ba94860779e6218c9213b1f24730735c2ab3",
        "b93069d51bf91e0cd57a57ec0f327b7114ac730535514d1ebab44de8064ea35d",
        "912ff79f0f4c1e64108a778ee9b7a7a6b436fca09e0a56268b6c942d4f760c5a",
    ),
    "vaswani": Source(
        (Download(f"{GLASGOW}/npl/npl.tar.gz", 2.4, "23e5607081191b153738e81fbd834680"),),
        read_vaswani,
        "test/vaswani",
        "test",
        "dc67fb051dc2f6e02a7446083218a9100de65df66701fd596c2ccb54a7fc9f5c",
        "52311a41e4e190f03800d213cb7da3f570a3bbf9fe5d43a32ce70f00eaf510c7",
        "6cd2e98d2b28ed11b923258b6a5fd277b471e62e82fd0a73c9893ec2218e5136",
    ),
    "cosqa": Source(
        (
            Download(f"{COSQA}/code_idx_map.txt", 6, None),
            Download(f"{COSQA}/cosqa-retrieval-dev-500.json", 2, None),
            Download(f"{COSQA}/cosqa-retrieval-test-500.json", 2, None),
        ),
        read_cosqa,
        "test/cosqa",
        "test",
        "1627b1f2ffad952b3bfb2ad8c116559df575f9fd3acbbef107cc8911db69785e",
        "1eadfb9800b4e26341ca725445456b16e674629e346b3f2155d3589ecbdd979c",
        "5220eb02b232e2084042efa50ced09ed5ee43c1766c9531ce2801a5b7209ef3c",
    ),
    "squad-dev": Source(
        (Download(f"{SQUAD}/dev-v1.1.json", 5.4, None),),
        read_squad_dev,
        "test/squad-dev",
        "test",
        "1c751f19cd4d1377636fbcd6947119c90631788a5641b47ef2ceaea4500ff6a2",
        "bac0875262a624ab803695aca79065acabb9371c1c0c2d2fc2a955eb5f7153de",
        "34ae461a5dab68e4389c1dff3c76961b89269fb0be7b343b8bfc24c3c88786d5",
        sha256="95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    ),
    "squad": Source(
        (Download(f"{SQUAD}/train-v1.1.json", 33.4, None),),
        read_squad,
        "train/squad",
        "train",
        "4bcb479cdba9dd267b1ccc0fbd1393de0d317b79507933774c08610ff7f3d067",
        "42753b904d1c023aa1b06326a6046b50083c6364d7bf3b22bdf3bbc29fa1c329",
        "9e1456109b745711f2c441e6b875da48e6929caa040fa1dc04a7803a12bb7513",
        sha256="3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    ),
}


if __name__ == "__main__":
    main()
