"""Compare causal, echo and bidirectional reading of one decoder at the same sparsity.

    python scripts/compare_decoders.py --start HuggingFaceTB/SmolLM2-135M-Instruct --lora 16 \\
        --dense models/all-MiniLM-L6-v2 --train data/train/nq-mix \\
        --collections data/test/nq-utd --output runs/decoders

Every variant trains for the same number of steps on the same batches from the same decoder, by LoRA
or whole, with a dense and a BM25 teacher or by InfoNCE alone. Training aims at twice ``--terms``;
the heaviest ``--terms`` of a document are indexed, and the heaviest ``--query-terms`` of a query are
searched. Without ``--start``, a small random decoder with its own tokenizer is made. ``untrained``
is the decoder before training. ``clm`` and ``mntp`` adapt first, in steps taken from those of
ranking. Logits are centered except in ``uncentered``. BM25 reads the same texts. A killed run can be
repeated: finished variants are kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_ir.commands import evaluating, indexing, searching, training
from sparse_ir.data import readers
from sparse_ir.data.records import Qrels
from sparse_ir.evaluation import significance
from sparse_ir.retrieval.searcher import Index
from sparse_ir.storage import files
from sparse_ir.training import pipeline
from sparse_ir.training.configuration import config_parser

BASE, BM25 = "causal", "BM25"
MODES = ("causal", "echo", "bidirectional")
VARIANTS = (
    *MODES,
    "causal, clm",
    "bidirectional, mntp",
    "causal, uncentered",
    *(f"{mode}, untrained" for mode in MODES),
)
SPECIAL = ["<pad>", "<s>", "</s>", "<mask>"]
FRAME = 12  # tokens of the echo's template


def main() -> None:
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = [cut(collection, arguments) for collection in arguments.collections]
    start = find_start(arguments)
    found = {BM25: measure_bm25(names, arguments)}
    for name, seed in itertools.product(arguments.only or VARIANTS, arguments.seeds):
        measure(name, seed, start, names, arguments)
        found |= gather(arguments)
        print(as_markdown(found), flush=True)
        if arguments.json:
            files.write_json(arguments.json, found)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--start", help="a decoder, folder or hub name; default: a small random one"
    )
    parser.add_argument("--train", nargs="+", required=True, help="BEIR folders with pairs")
    parser.add_argument(
        "--collections", nargs="+", required=True, help="BEIR folders to measure on"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, help="variants to run; finished ones are shown too"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--dense", help="bi-encoder that teaches together with BM25; default: InfoNCE alone"
    )
    parser.add_argument(
        "--lora",
        type=int,
        default=0,
        metavar="RANK",
        help="rank of LoRA adapters; default: train the whole decoder",
    )
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    numbers = {
        "layers": 4,
        "width": 256,
        "vocabulary": 8192,
        "length": 96,
        "batch": 16,
        "neighbourhood": 1,
        "language-steps": 0,
        "adaptation-steps": 60,
        "steps": 300,
        "terms": 120,
        "query-terms": 32,
        "words": 48,
        "documents": 2000,
        "queries": 500,
    }
    helps = {
        "neighbourhood": "positives drawn together as each other's hard negatives",
        "words": "of a document that are read, by BM25 too",
        "documents": "of a collection, judged ones first",
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=helps.get(name))
    return parser.parse_args()


# --- where it begins ---


def find_start(arguments: argparse.Namespace) -> str:
    """The decoder of ``--start``, or a random one that may first learn from the documents."""
    if arguments.start:
        return str(arguments.start)
    start = arguments.output / "start"
    if not (start / "config.json").is_file():
        make_decoder(start, arguments)
    if not arguments.language_steps:
        return str(start)
    config = make_config(str(start), "causal, clm", 1, arguments)
    config["run"] |= {
        "steps": arguments.language_steps + arguments.steps,
        "stop_after": arguments.language_steps,
    }
    config["warm_start"] |= {"steps": arguments.language_steps, "learning_rate": 1e-3}
    config.pop("lora", None)
    return train(arguments.output / "language", config, arguments)["model"]


def documents_of(folders: list[str]) -> Iterator[str]:
    for folder in folders:
        yield from (document.contents for document in readers.read_documents(folder))


def make_decoder(folder: Path, arguments: argparse.Namespace) -> None:
    """A random Llama with tied output layer, and a tokenizer trained on the documents."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        documents_of(arguments.train),
        trainers.BpeTrainer(
            vocab_size=arguments.vocabulary,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    owner = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(
            vocab_size=len(owner),
            hidden_size=arguments.width,
            num_hidden_layers=arguments.layers,
            num_attention_heads=max(arguments.width // 64, 1),
            intermediate_size=3 * arguments.width,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    owner.save_pretrained(folder)
    model.save_pretrained(folder)


def cut(collection: str, arguments: argparse.Namespace) -> str:
    """A smaller copy of a collection, and its name.

    It has the first words of documents, the first queries whose judged documents fit, and then the
    first of the other documents."""
    name = Path(collection).name
    with files.building(arguments.output / "collections" / name) as folder:
        qrels = choose_queries(
            readers.read_qrels(collection), arguments.queries, arguments.documents
        )
        judged = {doc_id for judgements in qrels.values() for doc_id in judgements}
        others = [
            document.doc_id
            for document in readers.read_documents(collection)
            if document.doc_id not in judged
        ]
        kept = judged | set(others[: max(arguments.documents - len(judged), 0)])
        with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
            for document in readers.read_documents(collection):
                if document.doc_id in kept:
                    text = " ".join(document.contents.split()[: arguments.words])
                    stream.write(
                        json.dumps({"_id": document.doc_id, "title": "", "text": text}) + "\n"
                    )
        with (folder / "queries.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps({"_id": query.query_id, "text": query.text}) + "\n"
                for query in readers.read_queries(collection)
                if query.query_id in qrels
            )
        (folder / "qrels").mkdir()
        lines = [
            f"{query_id}\t{doc_id}\t{relevance}\n"
            for query_id, judgements in qrels.items()
            for doc_id, relevance in judgements.items()
        ]
        (folder / "qrels" / "test.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8"
        )
    return name


def choose_queries(qrels: Qrels, queries: int, documents: int) -> Qrels:
    chosen: Qrels = {}
    judged: set[str] = set()
    for query_id, judgements in qrels.items():
        if len(chosen) < queries and len(judged | set(judgements)) <= documents:
            chosen[query_id] = judgements
            judged |= set(judgements)
    return chosen


# --- one variant ---


def make_config(start: str, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of a variant.

    For the untrained decoder it is one step that moves only the point where the ReLU begins.
    """
    mode, _, kind = name.partition(", ")
    copies, frame = (2, FRAME) if mode == "echo" else (1, 0)
    steps = 1 if kind == "untrained" else arguments.steps
    adaptation = arguments.adaptation_steps if kind in ("clm", "mntp") else 0
    ramp = min(steps // 2, steps - adaptation)
    teachers = (
        [{"kind": "dense", "model": arguments.dense}, {"kind": "bm25", "weight": 0.6}]
        if arguments.dense
        else []
    )
    return {
        "version": 1,
        "model": {
            "start": start,
            "query": "neural",
            "dropout": 0.0,
            "max_length": copies * arguments.length + frame,
            "query_max_length": copies * 32 + frame,
            "saved_max_length": 2 * copies * arguments.length + frame,
        },
        "decoder": {
            "mode": mode,
            "logit_scale": "hidden^-1/4",
            "centered": kind != "uncentered",
            "initial_terms": 4 * arguments.terms,
        },
        **({"lora": {"r": arguments.lora, "alpha": 2 * arguments.lora}} if arguments.lora else {}),
        "data": [source(path, arguments) for path in arguments.train],
        "batch": {"queries": arguments.batch, "neighbourhood": arguments.neighbourhood},
        "loss": [{"name": "kl"}, {"name": "info_nce", "weight": 0.3}]
        if teachers
        else [{"name": "info_nce"}],
        "teacher": teachers,
        "documents": {
            "penalty": "flops",
            "target_terms": 2.0 * arguments.terms,
            "ramp_steps": ramp,
        },
        "queries": {
            "penalty": "flops",
            "target_terms": 2.0 * arguments.query_terms,
            "ramp_steps": ramp,
        },
        "optimizer": {
            "learning_rate": 1e-12 if kind == "untrained" else arguments.rate,
            "warmup_steps": max(steps // 10, 1),
            "max_grad_norm": 1.0,
        },
        "warm_start": {
            "steps": adaptation,
            "learning_rate": arguments.rate,
            "objective": "mntp" if kind == "mntp" else "clm",
        },
        "run": {
            "steps": steps,
            "seed": seed,
            "save_every": 20,
            "log_every": 5,
            "keep": 1,
            "tensorboard": False,
        },
    }


def source(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A source of pairs, with mined negatives if batches hold neighbourhoods."""
    found: dict[str, Any] = {"path": path, "allow_missing": True}
    if arguments.neighbourhood > 1:
        negatives = arguments.output / "negatives" / f"{Path(path).name}.jsonl"
        if not negatives.is_file():
            negatives.parent.mkdir(exist_ok=True)
            training.mine(path, negatives)
        found["negatives"] = str(negatives)
    return found


def train(folder: Path, config: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    path.write_text(
        config_parser.format_config(config_parser.parse_config(config)), encoding="utf-8"
    )
    return pipeline.train(path, folder / "run", cache=arguments.output / "teachers", progress=True)


def measure(
    name: str, seed: int, start: str, collections: list[str], arguments: argparse.Namespace
) -> None:
    """Train and evaluate one variant, and keep its figures."""
    folder = folder_of(name, seed, arguments)
    if (folder / "figures.json").is_file():
        return
    began = time.perf_counter()
    report = train(folder, make_config(start, name, seed, arguments), arguments)
    figures = {
        "name": name,
        "seed": seed,
        "training_seconds": round(time.perf_counter() - began),
        "terms_in_training": report["documents_terms"],
        "query_terms_in_training": report["queries_terms"],
    }
    began = time.perf_counter()
    found = {
        collection: evaluate(report["model"], collection, folder, arguments)
        for collection in collections
    }
    figures["measuring_seconds"] = round(time.perf_counter() - began)
    # an existing file is a finished variant
    files.write_json(folder / "figures.json", {**figures, "collections": found})


def folder_of(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    return Path(arguments.output / "variants" / f"{name.replace(', ', '-')}-{seed}")


def evaluate(
    model: str, collection: str, folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    texts, place = str(arguments.output / "collections" / collection), folder / collection
    encoded = indexing.encode(model, texts, place / "vectors")
    indexing.index(place / "vectors", place / "index", fields="sparse", prune_terms=arguments.terms)
    found = answer(place / "index", texts, place / "run.trec", top_terms=arguments.query_terms)
    return {"terms_found": encoded["mean_terms"], **found}


def answer(index: Path, texts: str, run: Path, **options: Any) -> dict[str, Any]:
    """Search and measure: nDCG@10, also by query, and the postings of an average document."""
    searching.search(index, texts, run, hits=100, **options)
    report = evaluating.evaluate(run, texts, measures="nDCG@10", per_query=True)
    with Index(index) as opened:
        counted = opened.statistics()
    return {
        "terms": counted.postings / counted.documents,
        "nDCG@10": report["nDCG@10"],
        "per_query": report["per_query"]["nDCG@10"],
    }


def measure_bm25(collections: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for collection in collections:
        texts, place = (
            str(arguments.output / "collections" / collection),
            arguments.output / "bm25" / collection,
        )
        indexing.bm25(texts, place)
        found[collection] = answer(place, texts, place.with_suffix(".trec"))
    return {"seeds": [], "collections": found}


# --- the table ---


def gather(arguments: argparse.Namespace) -> dict[str, Any]:
    """Name -> figures of all variants that are done; per query the mean over seeds."""
    found: dict[str, Any] = {}
    for name in VARIANTS:
        done = [
            files.read_json(path)
            for path in sorted((arguments.output / "variants").glob("*/figures.json"))
        ]
        if own := [figures for figures in done if figures["name"] == name]:
            found[name] = {
                "seeds": [figures["seed"] for figures in own],
                "collections": {
                    collection: average([figures["collections"][collection] for figures in own])
                    for collection in own[0]["collections"]
                },
            }
    return found


def average(measured_by_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of equal tables of numbers, and nDCG@10 of each."""
    found: dict[str, Any] = {
        key: mean([each[key] for each in measured_by_seed])
        for key in ("terms_found", "terms", "nDCG@10")
    }
    found["by_seed"] = [each["nDCG@10"] for each in measured_by_seed]
    found["per_query"] = {
        query_id: mean([each["per_query"][query_id] for each in measured_by_seed])
        for query_id in measured_by_seed[0]["per_query"]
    }
    return found


def as_markdown(found: dict[str, Any]) -> str:
    """One row per variant; the last columns compare all queries with the causal decoder."""
    collections = list(found[BM25]["collections"])
    pooled = {name: pool(row) for name, row in found.items()}
    others = {name: values for name, values in pooled.items() if name != BASE}
    compared = significance.compare(pooled[BASE], others) if BASE in found else {}
    lines = [
        "| variant | terms | " + " | ".join(collections) + " | mean | difference (95 %) | p, "
        "Holm | won, lost |",
        "|---|" + "---:|" * (len(collections) + 5),
    ]
    for name, row in found.items():
        values = [row["collections"][collection]["nDCG@10"] for collection in collections]
        terms = mean([row["collections"][collection]["terms"] for collection in collections])
        cells = [name, f"{terms:.0f}", *(f"{value:.3f}" for value in values), f"{mean(values):.3f}"]
        if name in compared:
            other = compared[name]
            p = f"{other.p_adjusted:.4f}" if other.p_adjusted >= 1e-4 else "< 0.0001"
            cells += [
                f"{other.difference:+.3f} ({other.low:+.3f} to {other.high:+.3f})",
                p,
                f"{other.wins}, {other.losses}",
            ]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pool(row: dict[str, Any]) -> dict[str, float]:
    return {
        f"{collection}/{query_id}": value
        for collection, measured in row["collections"].items()
        for query_id, value in measured["per_query"].items()
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
